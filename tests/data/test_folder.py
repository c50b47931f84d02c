"""Images of one's own: classes, splits and names of folders, and arrays in an NPZ file."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.data import ArraysDataModule, FolderDataModule, cache
from vaelab.errors import UserError


def write(root: Path, names: Sequence[str]) -> None:
    """Files of 4 x 4 pixels. The red of each is its number."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / name)


def ready(root: Path, **settings: Any) -> FolderDataModule:
    data = FolderDataModule(str(root), **{"size": 4, **settings})
    data.setup()
    return data


def numbers(data: FolderDataModule, split: str) -> list[int]:
    return data.splits[split][0][:, 0, 0, 0].tolist()


FLAT = [f"{i:02}.png" for i in range(20)]
CLASSES = [f"{'xyz'[i % 3]}/{i:02}.png" for i in range(20)]


def test_without_folders_there_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    data = ready(tmp_path, batch_size=5)
    assert [len(numbers(data, split)) for split in ("train", "val", "test")] == [16, 2, 2]
    assert sorted(numbers(data, "train") + numbers(data, "val") + numbers(data, "test")) == list(range(20))
    assert all(labels is None for _, labels in data.splits.values())
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y) == ((5, 3, 4, 4), None)
    assert data.examples(2)[1] is None
    assert re.fullmatch(r"folder-[0-9a-f]{8}", data.name)
    assert data.description.startswith(f"{data.name} (16 / 2 / 2 images")


def test_folders_are_the_classes_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path, [*CLASSES, "z/deep/er/20.png"])
    data = ready(tmp_path, test_size=5, val_size=3)
    assert data.classes == ["x", "y", "z"]
    for split, count in {"train": 13, "val": 3, "test": 5}.items():
        images, labels = data.splits[split]
        assert len(images) == count
        assert labels is not None
        assert labels.tolist() == [i % 3 for i in images[:, 0, 0, 0].tolist()]


def test_the_draw_depends_on_its_seed_and_an_image_keeps_its_place(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    data, other = ready(tmp_path, test_size=5, val_size=0), ready(tmp_path, test_size=5, val_size=4, seed=3)
    assert numbers(data, "test") == numbers(other, "test")
    assert numbers(data, "train") == numbers(other, "val") + numbers(other, "train")
    assert numbers(ready(tmp_path, test_size=5, split_seed=1), "test") != numbers(data, "test")
    Image.new("RGB", (4, 4), (99, 0, 0)).save(tmp_path / "new.png")
    again = ready(tmp_path, test_size=5, val_size=0)
    order = numbers(again, "test") + numbers(again, "train")
    assert [i for i in order if i != 99] == numbers(data, "test") + numbers(data, "train")


def test_the_name_tells_other_files_draws_and_sizes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", FLAT)
    name = ready(tmp_path / "a").name
    write(tmp_path / "b", FLAT)
    assert ready(tmp_path / "b").name == name  # a copy in another place
    assert ready(tmp_path / "a", dataset=name, used=name).name == name  # how a finished run is opened
    assert ready(tmp_path / "a", dataset="photos").name == name.replace("folder", "photos")
    others = [ready(tmp_path / "a", **settings).name for settings in ({"split_seed": 1}, {"channels": 1}, {"size": 8})]
    assert len({name, *others}) == 4
    (tmp_path / "a" / "07.png").unlink()
    monkeypatch.setattr(cache, "decoded", lambda *_: pytest.fail("the files are decoded"))
    with pytest.raises(UserError, match=rf"^this run was trained on {name}, but data.root=.*/a now gives folder-"):
        ready(tmp_path / "a", dataset=name, used=name)


def test_folders_train_val_and_test_are_the_splits(tmp_path: Path) -> None:
    names = [f"{split}/{'xy'[i % 2]}/{i}.png" for split in ("train", "val", "test") for i in range(4)]
    write(tmp_path, names)
    data = ready(tmp_path)
    assert [sorted(numbers(data, split)) for split in ("train", "val", "test")] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]  # fmt: skip
    assert data.classes == ["x", "y"]
    assert data.val_size == 4
    assert len(numbers(ready(tmp_path, val_size=0), "val")) == 0
    for path in [*(tmp_path / "val").rglob("*.png"), *(tmp_path / "test").rglob("*.png")]:
        path.unlink()
    data = ready(tmp_path, val_size=1, test_size=1)
    assert [len(numbers(data, split)) for split in ("train", "val", "test")] == [2, 1, 1]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path, [f"{['car', 'plane', 'train'][i % 3]}/{i}.png" for i in range(20)])
    assert ready(tmp_path).classes == ["car", "plane", "train"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    (tmp_path / "07.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    assert sum(len(part) for part, _ in ready(tmp_path).splits.values()) == 20


def test_grey_images_and_rectangles(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    assert ready(tmp_path, channels=1, size=6).splits["train"][0].shape[1:] == (1, 6, 6)
    assert ready(tmp_path, image_shape=[3, 2, 6]).splits["train"][0].shape[1:] == (3, 2, 6)


def test_binary_pixels(tmp_path: Path) -> None:
    write(tmp_path, FLAT)
    assert set(ready(tmp_path, binarization="threshold").splits["test"][0].unique().tolist()) <= {0, 255}


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        (FLAT, {"root": None}, r"^the folder of the images is needed: data.root=FOLDER$"),
        (FLAT, {"root": "nowhere"}, r"^data.root=nowhere: there is no such folder$"),
        ([], {}, r"has 0 images \(.png, .*\), which give train 0, val 0, test 0: a run trains on some and"),
        (FLAT[:2], {}, r"has 2 images .*, which give train 2, val 0, test 0"),
        (FLAT, {"test_size": 19, "val_size": 5}, r"which give train 0, val 1, test 19"),
        (["train/0.png", "test/1.png", "extra/2.png"], {}, r"has the folders test, train, and other images, such as e"),
        ([*CLASSES, "20.png"], {}, r"has 1 images, such as 20.png, beside the class folders x, y, z: put all"),
        (FLAT, {"channels": 2}, r"^image_shape=\[2, 4, 4\]: an image file has 1 channel \(grey\) or 3 \(colour\)$"),
        (FLAT, {"size": 0}, r"^image_shape=\[3, 0, 0\]: "),
        (FLAT, {"val_size": 1.5}, r"^val_size=1.5: a whole number of images, or a share between 0 and 1"),
        (FLAT, {"test_size": -1}, r"^test_size=-1: a whole number of images, or a share"),
        (FLAT, {"split_seed": -1}, r"^split_seed=-1: "),
        (CLASSES, {"num_classes": 2}, r"labels up to 2, but data.num_classes=2"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, names: list[str], settings: dict, sentence: str) -> None:
    write(tmp_path, names)
    with pytest.raises(UserError, match=sentence):
        FolderDataModule(**{"root": str(tmp_path), "size": 4, **settings}).setup()


# Arrays --------------------------------------------------------------------------------------------------------------


def images(count: int, shape: Sequence[int] = (4, 5)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def opened(folder: Path, settings: dict | None = None, **arrays: np.ndarray) -> ArraysDataModule:
    np.savez(folder / "x.npz", **arrays)
    data = ArraysDataModule(str(folder), "x.npz", **{"image_shape": [1, 4, 5], "val_size": 3, **(settings or {})})
    data.setup()
    return data


def test_arrays_with_and_without_labels(tmp_path: Path) -> None:
    arrays = {"train_images": images(10), "test_images": images(4)}
    data = opened(tmp_path, **arrays)
    assert torch.equal(data.splits["train"][0][:, 0], torch.from_numpy(arrays["train_images"][:7]))
    assert [len(images) for images, _ in data.splits.values()] == [7, 3, 4]
    assert all(labels is None for _, labels in data.splits.values())
    labels = {"train_labels": np.arange(10) % 3, "test_labels": np.arange(4, dtype=np.uint8)}
    data = opened(tmp_path, **arrays, **labels)
    assert data.splits["val"][1].tolist() == [1, 2, 0]
    assert data.splits["test"][1].tolist() == [0, 1, 2, 3]


def test_a_share_of_the_training_arrays_validates(tmp_path: Path) -> None:
    arrays = {"train_images": images(10), "test_images": images(4)}
    assert [len(part) for part, _ in opened(tmp_path, {"val_size": 0.2}, **arrays).splits.values()] == [8, 2, 4]
    with pytest.raises(UserError, match=r"^val_size=-1: a whole number of images, or a share between 0 and 1"):
        ArraysDataModule(path="x.npz", val_size=-1)


def test_validation_arrays_and_both_orders_of_axes(tmp_path: Path) -> None:
    last = {f"{split}_images": images(i + 2, (4, 5, 3)) for i, split in enumerate(("train", "val", "test"))}
    data = opened(tmp_path, {"image_shape": [3, 4, 5]}, **last)
    for split in ("train", "val", "test"):
        assert torch.equal(data.splits[split][0].movedim(1, -1), torch.from_numpy(last[f"{split}_images"]))
    assert data.val_size == 3
    assert opened(tmp_path, {"image_shape": [3, 4, 5], "val_size": 0}, **last).val_size == 0
    first = {name: part.transpose(0, 3, 1, 2) for name, part in last.items()}
    again = opened(tmp_path, {"image_shape": [3, 4, 5]}, **first)
    assert torch.equal(again.splits["test"][0], data.splits["test"][0])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"train_images": images(5)}, r"x.npz has no array test_images$"),
        ({"train_images": images(5), "images": images(5)}, r"x.npz has an array images, but the names are tra"),
        ({"train_images": images(5) / 255, "test_images": images(5)}, r"holds float64, but grey levels from 0 to 255"),
        ({"train_images": images(5, (5, 4)), "test_images": images(5)}, r"has the shape \(5, 1, 5, 4\), but data.ima"),
        ({"train_images": images(5), "test_images": images(5), "test_labels": np.arange(4)}, r"^test_labels of .*: 5 "),
        ({"train_images": images(5), "test_images": images(5), "test_labels": np.ones(5)}, r"^test_labels of .*: 5 "),
        ({"train_images": np.array([{}])}, r"x.npz is not an NPZ file of plain arrays"),
    ],
    ids=["no test", "a name", "floats", "shape", "few labels", "float labels", "pickled"],
)  # fmt: skip
def test_bad_arrays_get_one_sentence(tmp_path: Path, arrays: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path, **arrays)


@pytest.mark.parametrize("labels", [np.arange(30) // 15, np.repeat([2, 0, 1], 10)])
def test_labels_that_are_sorted_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    """In any order of the classes."""
    sentence = r"^the training labels of arrays-.* are sorted, but the last training images validate, and some metrics "
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path, train_images=images(30), train_labels=labels, test_images=images(2))


@pytest.mark.parametrize("labels", [np.arange(30) % 2, np.zeros(30, int), np.arange(30)])
def test_labels_that_are_not_sorted_are_read(tmp_path: Path, labels: np.ndarray) -> None:
    data = opened(tmp_path, train_images=images(30), train_labels=labels, test_images=images(2), test_labels=labels[:2])
    assert data.splits["train"][1].tolist() == labels[:27].tolist()


def test_arrays_that_do_not_fit_into_memory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaelab.data.folder.MOST", 100)
    with pytest.raises(UserError, match=r"x.npz unpacks to [\d,]+ bytes, and 100 are the most: use data=folder$"):
        opened(tmp_path, train_images=images(10), test_images=images(4))


def test_no_arrays(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the file of the arrays is needed: data.path=FILE.npz$"):
        ArraysDataModule()
    with pytest.raises(UserError, match=r"no.npz: there is no such file$"):
        ArraysDataModule(str(tmp_path), "no.npz").setup()
    (tmp_path / "x.npz").write_text("no arrays")
    with pytest.raises(UserError, match=r"x.npz is not an NPZ file of plain arrays"):
        ArraysDataModule(str(tmp_path), "x.npz").setup()


def test_the_name_of_arrays_tells_files_apart(tmp_path: Path) -> None:
    names = [opened(tmp_path, train_images=images(5), test_images=images(5) // k).name for k in (1, 2)]
    assert names[0] != names[1]
    assert all(re.fullmatch("arrays-[0-9a-f]{8}", name) for name in names)
