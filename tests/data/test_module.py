"""Splits, binarisation and the protocol of any data set."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ready

from vaelab.data import ImageDataModule, MNISTDataModule
from vaelab.data.module import DataSet
from vaelab.errors import UserError
from vaelab.interfaces import UNSEEN


def test_split_is_fixed_and_the_test_set_is_the_official_one(data_root: Path, digits: tuple) -> None:
    data = ready(data_root, binarization="none")
    assert data.protocol == {
        "dataset": "MNIST",
        "images": {"train": 500, "val": 100, "test": 200},
        "binarization": {"train": "none", "val": "none", "test": "none"},
    }
    for split, part in {"train": slice(0, 500), "val": slice(500, 600), "test": slice(600, 800)}.items():
        assert torch.equal(data.splits[split][0], digits[0][part])
        assert torch.equal(data.splits[split][1], digits[1][part])


def test_sizes_can_be_chosen(data_root: Path) -> None:
    assert list(ready(data_root, train_size=70, val_size=30).protocol["images"].values()) == [70, 30, 200]
    data = ready(data_root, val_size=0)
    assert list(data.protocol["images"].values()) == [600, 0, 200]
    assert len(data.val_dataloader()) == 0
    assert len(data.examples(8)[0]) == 8


@pytest.mark.parametrize(("train_size", "val_size"), [(None, 600), (None, 700), (501, 100)])
def test_sizes_that_do_not_fit(data_root: Path, train_size: int | None, val_size: int) -> None:
    with pytest.raises(ValueError, match="do not fit into the 600 training images of MNIST"):
        ready(data_root, train_size=train_size, val_size=val_size)


@pytest.mark.parametrize(
    "name",
    [
        "batch_size",
        "eval_batch_size",
        "train_size",
        "val_size",
        "seed",
        "binarization_seed",
        "num_classes",
        "num_labels",
    ],
)
def test_sizes_are_whole_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=-1: a whole number, at least ., is needed"):
        MNISTDataModule(**{name: -1})


def test_binarization_is_named() -> None:
    with pytest.raises(ValueError, match=r"^binarization=random: choose one of none, threshold, static, dynamic"):
        MNISTDataModule(binarization="random")


def test_image_shape_must_agree(data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"images have the shape \[1, 28, 28\], but data.image_shape=\[1, 32, 32\]"):
        ready(data_root, image_shape=[1, 32, 32])


def test_some_labels_are_seen_in_training_alone(data_root: Path) -> None:
    data, whole = ready(data_root, num_labels=30, batch_size=500), ready(data_root)
    (_, labels), *more = data.train_dataloader()
    assert not more
    seen = labels != UNSEEN
    assert torch.equal(labels[seen].bincount(), torch.full((10,), 3))
    true = whole.splits["train"][1]
    order = data._train_loader._shuffled()
    assert torch.equal(labels[seen], true[order][seen])
    for split in ("train", "val", "test"):  # probes and metrics have all labels
        assert torch.equal(data.images(split)[1], whole.images(split)[1])
    assert (next(iter(data.val_dataloader()))[1] >= 0).all()
    assert (data.protocol["labels"], "labels" in whole.protocol) == (30, False)
    assert data.description.endswith(", 30 labels to train")


def test_the_seed_chooses_the_labels_that_are_seen(data_root: Path) -> None:
    first, again, other = (ready(data_root, num_labels=30, seed=seed).seen for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert ready(data_root, num_labels=0).seen.sum() == 0


@pytest.mark.parametrize("count", [35, 510])
def test_labels_are_balanced(data_root: Path, count: int) -> None:
    with pytest.raises(UserError, match=f"data.num_labels={count}: a multiple of the 10 classes .*, at most 500"):
        ready(data_root, num_labels=count)


def test_labels_that_do_not_exist() -> None:
    images = part(6)[0]
    with pytest.raises(UserError, match=r"data.num_labels=2, but x has no labels: leave it out"):
        Own(DataSet("x", (images, None), (images, None)), num_labels=2, binarization="none").setup()
    Own(DataSet("x", (images, None), (images, None)), num_labels=0, binarization="none").setup()


class Own(ImageDataModule):
    """Images that a test chooses."""

    def __init__(self, made: DataSet, **settings: Any) -> None:
        super().__init__(dataset=made.name, **{"image_shape": [1, 2, 3], "val_size": 1, **settings})
        self.made = made

    def read(self) -> DataSet:
        return self.made


def part(
    count: int, shape: tuple = (1, 2, 3), labels: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with their number as pixels, and labels, which are zero unless given."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, *shape)
    return images, torch.zeros(count, dtype=torch.long) if labels is None else torch.tensor(labels)


def test_a_data_set_of_one_s_own() -> None:
    """A subclass gives its images, and splits, loaders and protocol are made."""
    data = Own(DataSet("mine", part(5), part(2)), binarization="none", train_size=3)
    data.setup()
    assert data.protocol["dataset"] == "mine"
    assert list(data.protocol["images"].values()) == [3, 1, 2]
    assert data.splits["val"][0].unique().tolist() == [4]
    data = Own(DataSet("mine", part(5), part(2), part(4)), binarization="none", train_size=3)
    data.setup()
    assert list(data.protocol["images"].values()) == [3, 4, 2]


def test_images_without_labels() -> None:
    made = DataSet("mine", (part(5)[0], None), (part(2)[0], None))
    data = Own(made, binarization="none", num_classes=3, batch_size=2)
    data.setup()
    assert list(data.protocol["images"].values()) == [4, 1, 2]
    assert all(labels is None for _, labels in data.splits.values())
    assert [(len(x), y) for x, y in data.train_dataloader()] == [(2, None), (2, None)]
    x, y = data.images("test")
    assert (x.shape, y) == ((2, 1, 2, 3), None)


def test_images_that_are_too_large_for_a_gpu_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Own(DataSet("mine", part(5), part(2)), binarization="none")
    data.setup()
    gpu = torch.device("meta")  # a device that holds no values
    trainer = {"strategy": SimpleNamespace(root_device=gpu), "overfit_batches": 0, "global_rank": 0, "world_size": 1}
    data.trainer = SimpleNamespace(**trainer, current_epoch=0, limit_train_batches=None)  # type: ignore[assignment]
    monkeypatch.setattr("vaelab.data.module.room", lambda _: 23)  # 24 bytes are needed
    loader = data.train_dataloader()
    assert loader.images.device == loader.labels.device == torch.device("cpu")
    x, y = data.transfer_batch_to_device(next(iter(loader)), gpu, 0)
    assert x.device == y.device == gpu
    monkeypatch.setattr("vaelab.data.module.room", lambda _: 24)
    monkeypatch.setattr("vaelab.data.module.Loader", lambda images, labels, *_, **__: (images, labels))
    assert all(part.device == gpu for part in data.train_dataloader())


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            DataSet("x", part(5), part(2, (1, 3, 2))),
            r"^the test images of x: the images have the shape \[1, 3, 2\], but da",
        ),
        (
            DataSet("x", part(5), part(2), part(2, (3, 2, 3))),
            r"^the validation images of x: .* shape \[3, 2, 3\], but dat",
        ),
        (
            DataSet("x", part(5, labels=[0, 1]), part(2)),
            r"^the training images of x: 5 images, but .* labels of x: 2 la",
        ),
        (
            DataSet("x", part(3, labels=[0, -1, 2]), part(2)),
            r"^the training labels of x: labels from -1 to 2, but the f",
        ),
        (
            DataSet("x", part(3), part(2, labels=[7, 3])),
            r"^the test labels of x: labels up to 7, but data.num_classes=4",
        ),
        (
            DataSet("x", part(1), part(2)),
            r"^data.val_size=1 and data.train_size=None do not fit into the 1 training imag",
        ),
    ],
)
def test_parts_that_do_not_fit(made: DataSet, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Own(made, num_classes=4).setup()


def test_labels_with_gaps_need_as_many_classes_as_the_highest_says() -> None:
    made = DataSet("x", part(3, labels=[0, 10, 20]), part(2))
    with pytest.raises(
        UserError, match=r"data.num_classes=10 has labels up to 9: set it to 21 if the labels are right"
    ):
        Own(made, num_classes=10).setup()
    for num_classes in (21, None):
        data = Own(made, num_classes=num_classes)
        data.setup()
        assert data.splits["train"][1].tolist() == [0, 10]


def test_grey_levels_and_threshold(data_root: Path, digits: tuple) -> None:
    x, _ = next(iter(ready(data_root, binarization="none").test_dataloader()))
    assert torch.equal(x, digits[0][600:800] / 255)
    x, _ = next(iter(ready(data_root, binarization="threshold").test_dataloader()))
    assert torch.equal(x, (digits[0][600:800] > 127).float())


def test_static_draws_are_one_per_image_and_depend_on_their_own_seed_alone(data_root: Path) -> None:
    def splits(**settings: Any) -> list[torch.Tensor]:
        return [images for images, _ in ready(data_root, binarization="static", **settings).splits.values()]

    first, other_run, other_draw = splits(), splits(seed=5), splits(binarization_seed=1)
    assert all(set(part.unique().tolist()) == {0, 255} for part in first)
    assert all(torch.equal(a, b) for a, b in zip(first, other_run, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other_draw, strict=True))


def test_dynamic_evaluates_on_the_static_draw(data_root: Path) -> None:
    dynamic, static = (ready(data_root, binarization=kind) for kind in ("dynamic", "static"))
    for split in ("val", "test"):
        assert torch.equal(dynamic.splits[split][0], static.splits[split][0])
    assert dynamic.protocol["binarization"] == {"train": "dynamic", "val": "static(0)", "test": "static(0)"}
    (first, _), (second, _) = (next(iter(dynamic.train_dataloader())) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert set(dynamic.examples(5)[0].unique().tolist()) == {0.0, 1.0}
    assert first.shape == second.shape
