"""CIFAR-10, SVHN and Omniglot are read from torchvision's files, and nothing is downloaded in these tests."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import cifar10, colours, omniglot, svhn

from vaelab.data import CIFAR10DataModule, ImageDataModule, OmniglotDataModule, SVHNDataModule, files
from vaelab.errors import UserError

KINDS = {"CIFAR10": CIFAR10DataModule, "SVHN": SVHNDataModule, "Omniglot": OmniglotDataModule}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "reachable", functools.cache(lambda *_: ()))


def ready(dataset: str, root: Path, **settings: Any) -> ImageDataModule:
    data = KINDS[dataset](root=str(root), **{"val_size": 4, **settings})
    data.setup()
    return data


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path, monkeypatch)
    data = ready("CIFAR10", tmp_path, num_classes=10)
    assert data.description.startswith("CIFAR10 (16 / 4 / 4 images")
    assert torch.equal(data.splits["train"][0][4:8], torch.from_numpy(colours(4, 1)))
    assert torch.equal(data.splits["val"][0], torch.from_numpy(colours(4, 4)))
    assert data.splits["test"][1].tolist() == [5] * 4
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [
        "cifar-10-batches-py", "cifar-10-python.tar.gz"]  # fmt: skip
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    assert torch.equal(ready("CIFAR10", tmp_path).splits["train"][0], data.splits["train"][0])
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"no batch")
    with pytest.raises(UserError, match=r"data_batch_3 is missing or damaged: it needs the md5 \w+; move it away to"):
        ready("CIFAR10", tmp_path)
    assert (tmp_path / "cifar-10-batches-py" / "data_batch_3").read_bytes() == b"no batch"


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svhn(tmp_path, monkeypatch)
    data = ready("SVHN", tmp_path, num_classes=10)
    assert data.description.startswith("SVHN (16 / 4 / 6 images")
    assert torch.equal(data.splits["test"][0], torch.from_numpy(colours(6, 1)))
    assert data.splits["train"][1].tolist() == [i % 10 for i in range(1, 17)]
    (tmp_path / "test_32x32.mat").write_bytes(b"no file")
    with pytest.raises(UserError, match=r"test_32x32.mat is damaged: it does not have the md5"):
        ready("SVHN", tmp_path)


def test_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    omniglot(tmp_path, monkeypatch)
    data = ready("Omniglot", tmp_path, binarization="none", test_size=0)
    assert [len(images) for images, _ in data.splits.values()] == [16, 4, 6]
    assert all(labels is None for _, labels in data.splits.values())
    images = data.splits["test"][0]
    assert images.shape[1:] == (1, 28, 28)
    assert (images[:, 0, 14, 14] == 255).all()  # ink is white
    assert (images[:, 0, 0, 0] == 0).all()
    widths = sorted(round(x) for x in (images[:, 0, 14].float().sum(1) / 255 * 105 / 28).tolist())
    assert widths == pytest.approx([81 + 2 * i for i in range(6)], abs=2)
    (tmp_path / "omniglot-py" / "images_background.zip").unlink()
    assert ready("Omniglot", tmp_path, binarization="none", test_size=0).name == data.name


@pytest.mark.parametrize(
    ("dataset", "archives"),
    [
        ("CIFAR10", ["cifar-10-python.tar.gz"]),
        ("SVHN", ["train_32x32.mat", "test_32x32.mat"]),
        ("Omniglot", ["images_background.zip"]),
    ],
)
def test_without_a_network_one_sentence_names_the_files(tmp_path: Path, dataset: str, archives: list[str]) -> None:
    with pytest.raises(UserError) as error:
        ready(dataset, tmp_path / "data")
    message = str(error.value)
    assert message.startswith(
        f"{dataset} is not on this machine yet, and it cannot be downloaded now (no mirror answers: "
    )
    assert f"connect to a network for the first run, or put into {tmp_path / 'data'}" in message
    assert all(f"{name} (md5 " in message for name in archives)
    assert not (tmp_path / "data").exists()
