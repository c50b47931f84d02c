"""Random draws that depend on a seed alone and do not change torch's random state."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fixed_noise(device: torch.device, seed: int = 0) -> Iterator[None]:
    """A context in which random draws depend on the seed alone. At its end, torch's random state is restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond, as it also seeds GPUs
        else:
            torch.manual_seed(seed)
        yield
