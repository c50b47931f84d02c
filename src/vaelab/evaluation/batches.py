"""Images in batches, for what would not fit into memory at once."""

from collections.abc import Iterator

from torch import Tensor


def batches(x: Tensor, y: Tensor | None, size: int = 1000) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images (N, C, H, W) and labels (N,), if there are any, `size` at a time."""
    labels = [None] * len(x) if y is None else y.split(size)
    return zip(x.split(size), labels, strict=False)
