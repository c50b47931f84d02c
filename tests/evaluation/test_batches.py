"""Batches hold all images in order, with their labels if there are any."""

import torch

from vaelab.evaluation.batches import batches


def test_batches_are_the_whole_in_order() -> None:
    x, y = torch.randn(25, 1, 2, 2), torch.arange(25)
    parts = list(batches(x, y, 10))
    assert [len(images) for images, _ in parts] == [10, 10, 5]
    assert torch.equal(torch.cat([images for images, _ in parts]), x)
    assert torch.equal(torch.cat([labels for _, labels in parts]), y)
    assert [labels for _, labels in batches(x, None, 10)] == [None] * 3


def test_grey_levels_become_floats_batch_by_batch() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    first, second = (part for part, _ in batches(x, None, 200))
    assert first.dtype == torch.float32
    assert torch.equal(torch.cat([first, second]).flatten(), torch.arange(256) / 255)
