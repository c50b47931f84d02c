"""Images in batches that fit into memory."""

from collections.abc import Iterator

import torch
from torch import Tensor


def floats(x: Tensor) -> Tensor:
    """Images with values in [0, 1]: grey levels (uint8) are divided by 255, and other images stay as they are."""
    return x.float().div(255) if x.dtype == torch.uint8 else x


def batches(x: Tensor, y: Tensor | None, size: int = 1000) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of `size` images of x (N, C, H, W) as `floats`, with their labels y (N,) or None."""
    labels = [None] * len(x) if y is None else y.split(size)
    return zip(map(floats, x.split(size)), labels, strict=False)
