"""Images in batches that fit into memory."""

from collections.abc import Iterator

from torch import Tensor


def batches(x: Tensor, y: Tensor | None, size: int = 1000) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of `size` images of x (N, C, H, W), with their labels y (N,) or None."""
    labels = [None] * len(x) if y is None else y.split(size)
    return zip(x.split(size), labels, strict=False)
