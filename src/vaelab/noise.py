"""Noise that depends on a seed alone, and leaves torch's own stream of random numbers as it was."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fixed_noise(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Random draws inside depend on the seed alone. Afterwards torch's random state is what it was before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds the GPUs, and takes a millisecond
        else:
            torch.manual_seed(seed)
        yield
