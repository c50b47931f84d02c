"""MNIST and its relatives are read from torchvision's folders; MNIST-5k replaces MNIST."""

import gzip
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import ready, refused, write_idx

from vaelab.data import EMNISTDataModule, MNISTDataModule, QMNISTDataModule
from vaelab.errors import UserError


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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"val_size": 60_000}, r"^data.val_size=60000 leaves none of MNIST's 60,000 training images; MNIST-5k always"),
        ({"train_size": 4001}, r"^data.train_size=4001, but MNIST-5k has 4,000 training images$"),
        ({"train_size": 4501, "val_size": 0}, r"^data.train_size=4501, but MNIST-5k has 4,500 training images$"),
    ],
)
def test_sizes_that_the_last_resort_does_not_have(tmp_path: Path, settings: dict, sentence: str) -> None:
    for dataset in ("MNIST", "MNIST-5k"):
        with pytest.raises(UserError, match=sentence):
            ready(tmp_path, dataset=dataset, **settings)
    assert ready(tmp_path, val_size=59_999).name == "MNIST-5k"


def test_faults_between_files_name_the_file(data_root: Path, tmp_path: Path) -> None:
    def message(name: str, values: np.ndarray) -> str:
        shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
        write_idx(tmp_path / "MNIST/raw" / name, values)
        return refused(lambda: ready(tmp_path, num_classes=10))

    raw = tmp_path / "MNIST/raw"
    found = message("train-labels-idx1-ubyte", np.zeros(599))
    assert found == f"{raw}/train-images-idx3-ubyte: 600 images, but {raw}/train-labels-idx1-ubyte: 599 labels"
    found = message("t10k-labels-idx1-ubyte", np.full(200, 37))
    assert found.startswith(
        f"{raw}/t10k-labels-idx1-ubyte: labels up to 37, but data.num_classes=10 has labels up to 9"
    )
    found = message("t10k-images-idx3-ubyte", np.zeros((200, 14, 14)))
    assert found.startswith(
        f"{raw}/t10k-images-idx3-ubyte: the images have the shape [1, 14, 14], but data.image_shape"
    )


@pytest.mark.parametrize(
    ("md5", "sentence"),
    [
        ("foo", "^md5=foo: checksums by the names of files are needed, or null$"),
        (["a"], "^md5=.*: checksums by the names of files are needed, or null$"),
        ({"train": "0" * 32}, "^a name in md5=train: choose one of train-images-idx3-ubyte, "),
        (
            {"t10k-labels-idx1-ubyte": "foo"},
            "^md5.t10k-labels-idx1-ubyte=foo: 32 hexadecimal digits are needed, or null$",
        ),
    ],
)
def test_checksums_have_names_and_digits(md5: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        MNISTDataModule(md5=md5)
    MNISTDataModule(md5={"t10k-labels-idx1-ubyte": None})


def write_emnist(root: Path, split: str, labels: np.ndarray) -> np.ndarray:
    """Write small files in EMNIST's format, where an image is transposed, and return the upright images (N, 28, 28)."""
    upright = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28)).astype(np.uint8)
    for part in ("train", "test"):
        folder = root / "EMNIST" / "raw"
        write_idx(folder / f"emnist-{split}-{part}-images-idx3-ubyte", upright.transpose(0, 2, 1))
        write_idx(folder / f"emnist-{split}-{part}-labels-idx1-ubyte", labels)
    return upright


@pytest.mark.parametrize(
    ("split", "classes"),
    [("byclass", 62), ("bymerge", 47), ("balanced", 47), ("letters", 26), ("digits", 10), ("mnist", 10)],
)
def test_emnist_is_upright_and_its_labels_begin_with_zero(tmp_path: Path, split: str, classes: int) -> None:
    first = 1 if split == "letters" else 0
    labels = first + np.arange(classes)
    upright = write_emnist(tmp_path, split, labels)
    data = EMNISTDataModule(str(tmp_path), f"EMNIST-{split}", num_classes=classes, val_size=1, binarization="none")
    data.setup()
    assert data.name == f"EMNIST-{split}"
    assert data.splits["test"][1].tolist() == list(range(classes))
    assert np.array_equal(data.splits["test"][0][:, 0], upright)
    theirs = torchvision.datasets.EMNIST(tmp_path, split=split, train=True, download=False)
    assert len(theirs.classes) - first == classes  # torchvision counts a class "N/A" for the label 0
    image, label = theirs[3]
    assert np.array_equal(np.array(image).T, upright[3])  # torchvision shows images as the files have them
    assert label - first == 3
    write_emnist(tmp_path, split, labels + 1)
    assert f"raw/emnist-{split}-train-labels-idx1-ubyte: labels up to {classes}" in refused(
        EMNISTDataModule(str(tmp_path), f"EMNIST-{split}", num_classes=classes).setup
    )


def test_emnist_in_the_archive_of_its_authors(tmp_path: Path) -> None:
    upright, folder = write_emnist(tmp_path, "letters", np.array([1, 26, 3])), tmp_path / "EMNIST" / "raw"
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for path in sorted(folder.glob("emnist-*")):
            archive.writestr(f"gzip/{path.name}.gz", gzip.compress(path.read_bytes()))
            path.unlink()
    data = EMNISTDataModule(str(tmp_path), "EMNIST-letters", num_classes=26, val_size=1, binarization="none")
    data.setup()
    assert np.array_equal(data.splits["test"][0][:, 0], upright)
    assert data.splits["test"][1].tolist() == [0, 25, 2]


def test_emnist_has_splits_with_their_own_classes() -> None:
    with pytest.raises(UserError, match=r"^num_classes=47, but EMNIST-letters has 26 classes"):
        EMNISTDataModule(dataset="EMNIST-letters")
    with pytest.raises(UserError, match=r"^dataset=EMNIST: choose one of EMNIST-byclass, EMNIST-bymerge, "):
        EMNISTDataModule(dataset="EMNIST")


def test_qmnist(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    numbers = np.arange(40).reshape(5, 8) * [1, 1000, 1, 1, 1, 1, 1, -1] + [-8, *7 * [0]] * np.arange(5)[:, None]
    numbers[:, 0] = [7, 0, 9, 3, 1]
    for part in ("train", "test"):
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", numbers)
    data = QMNISTDataModule(str(tmp_path), num_classes=10, val_size=1, binarization="none")
    data.setup()
    assert data.protocol["images"] == {"train": 4, "val": 1, "test": 5}
    assert data.splits["test"][1].tolist() == [7, 0, 9, 3, 1]
    theirs = torchvision.datasets.QMNIST(tmp_path, train=False, download=False)
    assert [label for _, label in theirs] == [7, 0, 9, 3, 1]
    assert torch.equal(data.splits["test"][0][:, 0], theirs.data)
