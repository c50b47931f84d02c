"""MNIST is read from torchvision's folders, or replaced by MNIST-5k."""

from pathlib import Path

import pytest
import torch
from conftest import ready


def test_last_resort_is_split_by_digit_without_overlap(tmp_path: Path, digits: tuple) -> None:
    data = ready(tmp_path, binarization="none")
    assert data.name == "MNIST-5k"
    assert data.protocol["dataset"] == "MNIST-5k"
    sizes = {"train": 400, "val": 50, "test": 50}
    for split, each in sizes.items():
        assert torch.equal(data.splits[split][1].bincount(), torch.full((10,), each))
    everything = torch.cat([images for images, _ in data.splits.values()])
    assert len(everything) == 5000
    assert torch.equal(everything.unique(dim=0), digits[0].unique(dim=0))
    no_val = ready(tmp_path, binarization="none", val_size=0)
    assert [len(labels) for _, labels in no_val.splits.values()] == [4500, 0, 500]
    assert torch.equal(no_val.splits["test"][0], data.splits["test"][0])
    assert torch.equal(ready(tmp_path, train_size=100).splits["train"][1].bincount(), torch.full((10,), 10))


def test_a_resumed_run_does_not_change_its_data_silently(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"this run was trained on MNIST-5k, but data.root=.* now gives MNIST:"):
        ready(data_root, used="MNIST-5k")
