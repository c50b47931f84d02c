"""Images in memory as a LightningDataModule, with splits and binarisation. Each data set is a subclass."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from vaelab import checks
from vaelab.data.loader import Loader, binarize, seeded, thresholds
from vaelab.errors import UserError
from vaelab.interfaces import UNSEEN

BINARIZATIONS = ("none", "threshold", "static", "dynamic")
PUBLISHED = "published"  # the binarization of files that hold binary pixels
SPLITS = ("train", "val", "test")
Part = tuple[Tensor, Tensor | None]  # images (N, C, H, W), uint8, and labels (N,), int64, or None, on the CPU


class DataSet(NamedTuple):
    """A data set as its files give it."""

    name: str  # in all records
    train: Part
    test: Part
    val: Part | None = None  # None: the last `val_size` training images validate


def cut(part: Part, rows: slice) -> Part:
    """Some of the images of a part, with their labels."""
    images, labels = part
    return images[rows], None if labels is None else labels[rows]


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` of the labels (N,), equally many of each class: (N,), bool. The draw depends on the seed.

    Raises UserError if the classes do not have so many images.
    """
    order = torch.randperm(len(labels), generator=seeded(torch.device("cpu"), seed, 0, 0, 1))  # not that of an epoch
    classes, sizes = labels.unique(return_counts=True)
    each, rest = divmod(count, len(classes))
    if rest or each > sizes.min():
        most = int(sizes.min()) * len(classes)
        raise UserError(
            f"data.num_labels={count}: a multiple of the {len(classes)} classes is needed, at most {most:,}"
        )
    seen = torch.zeros(len(labels), dtype=torch.bool)
    for label in classes:
        seen[order[labels[order] == label][:each]] = True
    return seen


def room(device: torch.device) -> float:
    """The bytes that images may take on a device: half of what a GPU has left."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf


def check_part(
    images: Tensor,
    labels: Tensor | None,
    image_shape: Sequence[int],
    num_classes: int | None,
    images_name: str,  # in the messages
    labels_name: str,
) -> None:
    """Raise UserError unless images (N, C, H, W) have this shape, and N labels below `num_classes` a mixed order."""
    if labels is not None and len(images) != len(labels):
        raise UserError(f"{images_name}: {len(images):,} images, but {labels_name}: {len(labels):,} labels")
    shape = list(images.shape[1:])
    if shape != list(image_shape):
        raise UserError(f"{images_name}: the images have the shape {shape}, but data.image_shape={list(image_shape)}")
    if labels is None:
        return
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0:
        raise UserError(f"{labels_name}: labels from {low} to {high}, but the first class is 0")
    if num_classes and high >= num_classes:
        found = f"labels up to {high}, but data.num_classes={num_classes} has labels up to {num_classes - 1}"
        raise UserError(f"{labels_name}: {found}: set it to {high + 1} if the labels are right")
    classes, changes = len(labels.unique()), int(labels.diff().count_nonzero())
    if 1 < classes <= len(labels) / 10 and changes == classes - 1:
        raise UserError(
            f"{labels_name} are sorted, but the last training images validate, and some metrics take the first images: "
            "bring images and labels into a random order before you save them"
        )


class ImageDataModule(L.LightningDataModule):
    """A data set in memory. A subclass defines `read`, and everything after it is the same for all.

    `binarization` decides what a pixel is:

    * "none": a grey level in [0, 1],
    * "threshold": 1 if the grey level is above 127 of 255, otherwise 0,
    * "static": one draw from Bernoulli(grey level) for each image, once,
    * "dynamic": a new draw whenever a training image is served. Validation and test images have a static draw,
    * "published": the binary pixels of the files, only for data sets that have them.

    Raises UserError for an argument out of its range, for images of another shape than `image_shape`, and for a data
    set other than `used`.
    """

    binarizations: tuple[str, ...] = BINARIZATIONS  # the choices of this data set
    resizes = False  # whether images of any size are resized to those of the data set

    def __init__(
        self,
        root: str = "data",  # the folder that holds the folders of data sets
        dataset: str = "MNIST",  # the name of the data set
        image_shape: Sequence[int] = (1, 28, 28),  # (C, H, W); the files must agree
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        train_size: int | None = None,  # the number of training images, the first ones; None: all but validation
        val_size: int = 5000,  # the number of validation images: the last ones of the training set
        num_classes: int | None = None,  # labels are whole numbers below it; None: any
        num_labels: int | None = None,  # the number of training images whose labels training sees; None: all
        binarization: str = "dynamic",
        binarization_seed: int = 0,  # the seed of all static draws, a part of the protocol
        seed: int = 0,  # the seed of the order of the training images and of the dynamic draws
        used: str | None = None,  # the data set that the run to resume was trained on
    ) -> None:
        super().__init__()
        checks.one_of(self.binarizations, binarization=binarization)
        train = 1 if train_size is None else train_size
        checks.whole(batch_size=batch_size, eval_batch_size=eval_batch_size, train_size=train)
        checks.whole(num_classes=1 if num_classes is None else num_classes)
        checks.whole(0, val_size=val_size, num_labels=0 if num_labels is None else num_labels)
        checks.whole(0, checks.SEEDS, binarization_seed=binarization_seed, seed=seed)
        if isinstance(image_shape, int | str) or [type(size) for size in image_shape] != 3 * [int]:
            raise UserError(f"image_shape={image_shape}: three whole numbers are needed, such as [1,28,28]")
        self.root, self.dataset, self.image_shape = Path(root).expanduser(), dataset, tuple(image_shape)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_size, self.val_size, self.num_classes = train_size, val_size, num_classes
        self.num_labels = num_labels
        self.seen: Tensor | None = None  # (N,), bool: whether training sees the label of an image; None: all labels
        self.binarization, self.binarization_seed, self.seed, self.used = binarization, binarization_seed, seed, used
        self.splits: dict[str, Part] = {}
        self.name = ""  # the name of the data set that is used
        self.serve: Callable[[Loader], Any] | None = None  # wraps the training loader before a Trainer gets it
        self._train_loader: Loader | None = None
        self._loader_state: dict[str, Any] | None = None

    def read(self) -> DataSet:
        """Find, check and read the files. Raises UserError for missing or damaged files."""
        raise NotImplementedError

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol of every metric: the data set, its sizes and the binarisation."""
        chosen = {} if self.num_labels is None else {"labels": self.num_labels}
        static = "published static" if self.binarization == PUBLISHED else f"static({self.binarization_seed})"
        return {
            "dataset": self.name,
            "images": {split: len(images) for split, (images, _) in self.splits.items()},
            "binarization": {split: static if self._is_static(split) else self.binarization for split in SPLITS},
            **chosen,
        }

    @property
    def description(self) -> str:
        """The protocol in one line."""
        sizes = " / ".join(f"{n:,}" for n in self.protocol["images"].values())
        kind = self.protocol["binarization"]["test"] if self.binarization == PUBLISHED else self.binarization
        labels = "" if self.num_labels is None else f", {self.num_labels:,} labels to train"
        return f"{self.name} ({sizes} images to train / validate / test), binarization {kind}{labels}"

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and binarise."""
        if self.splits:
            return
        self.prepare_data()
        self.name, train, test, val = self.read()
        if not re.fullmatch(r"[\w-]+", self.name):
            raise UserError(f"{self.name!r}: the name of a data set has letters, digits, _ and - only")
        self.check_used(self.name)
        for split, part in (("training", train), ("validation", val or train), ("test", test)):
            what = (f"the {split} {kind} of {self.name}" for kind in ("images", "labels"))
            check_part(*part, self.image_shape, self.num_classes, *what)
        train, val = self._split(train) if val is None else (self._first(train), val)
        for split, (images, labels) in zip(SPLITS, (train, val, test), strict=True):
            self.splits[split] = self.fixed(images, split), labels
        labels = self.splits["train"][1]
        if self.num_labels and labels is None:
            raise UserError(f"data.num_labels={self.num_labels}, but {self.name} has no labels: leave it out")
        if self.num_labels is not None and labels is not None:
            self.seen = balanced(labels, self.num_labels, self.seed)

    def check_used(self, name: str) -> None:
        """Raise UserError if the run to resume or to open was trained on another data set than the one of this name."""
        if self.used not in (None, name):
            raise UserError(
                f"this run was trained on {self.used}, but data.root={self.root} now gives {name}: set data.root "
                f"to the folder of {self.used}, or start a new run"
            )

    def _split(self, part: Part) -> tuple[Part, Part]:
        """Split into the training images, which come first, and the last `val_size` images for validation."""
        count = len(part[0])
        rest = count - self.val_size
        train_size = rest if self.train_size is None else self.train_size
        if not 0 < train_size <= rest:
            sizes = f"data.val_size={self.val_size} and data.train_size={self.train_size}"
            raise UserError(f"{sizes} do not fit into the {count:,} training images of {self.name}")
        return cut(part, slice(train_size)), cut(part, slice(rest, None))

    def _first(self, train: Part) -> Part:
        """The first `train_size` training images of a data set with validation images of its own."""
        if self.train_size is not None and self.train_size > len(train[0]):
            raise UserError(f"data.train_size={self.train_size}, but {self.name} has {len(train[0]):,} training images")
        return cut(train, slice(self.train_size))

    def _is_static(self, split: str) -> bool:
        """Whether the pixels of a split are drawn once. Published pixels stay as they are in a draw."""
        return self.binarization in ("static", PUBLISHED) or (self.binarization == "dynamic" and split != "train")

    def fixed(self, images: Tensor, split: str) -> Tensor:
        """The images that are kept: grey levels, or pixels of 0 and 255 if training does not redraw them."""
        if self.binarization == "threshold":
            return (images > 127).to(torch.uint8).mul_(255)
        return self._draw(images, split) if self._is_static(split) else images

    def _draw(self, images: Tensor, split: str) -> Tensor:
        """The static draw of images: pixels of 0 and 255."""
        generator = seeded(torch.device("cpu"), self.binarization_seed, SPLITS.index(split))
        return binarize(thresholds(images), generator).to(torch.uint8).mul_(255)

    def _loader(self, split: str) -> Loader:
        trainer: Any = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        images, labels = self.splits[split]
        if split == "train" and labels is not None and self.seen is not None:
            labels = labels.where(self.seen, UNSEEN)
        if images.nbytes > room(device):
            device = torch.device("cpu")
        training = split == "train"
        return Loader(
            images.to(device),
            None if labels is None else labels.to(device),
            self.batch_size if training else self.eval_batch_size,
            shuffle=training and not (trainer and trainer.overfit_batches),
            dynamic=training and self.binarization == "dynamic",
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            epoch=trainer.current_epoch if trainer and training else 0,
            limit=trainer.limit_train_batches if trainer and training else None,
        )

    def train_dataloader(self) -> Any:
        self._train_loader = self._loader("train")
        if self._loader_state:
            self._train_loader.load_state_dict(self._loader_state)
            self._loader_state = None
        return self.serve(self._train_loader) if self.serve else self._train_loader

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The loader makes each batch on the training device, unless its images are too large for it."""
        if not isinstance(batch, tuple | list):  # a window of indices
            return batch
        x, y = batch
        return x.to(device), None if y is None else y.to(device)

    def examples(self, count: int, device: torch.device | None = None) -> Part:
        """The first images and labels of the validation set, or of the training set if there is no validation set."""
        return self.images("val" if self.val_size else "train", count, device)

    def images(self, split: str, count: int | None = None, device: torch.device | None = None) -> Part:
        """The first images (count, C, H, W) in [0, 1] and their labels or None. Binary images are static draws."""
        images, labels = self.pixels(split, count)
        return images.to(device).float().div(255), None if labels is None else labels.to(device)

    def pixels(self, split: str, count: int | None = None) -> Part:
        """The same images as uint8, without a copy unless they are drawn."""
        images, labels = cut(self.splits[split], slice(count))
        drawn = self.binarization == "dynamic" and split == "train"
        return self._draw(images, split) if drawn else images, labels

    def state_dict(self) -> dict[str, Any]:
        """The state of the training loader, for a checkpoint."""
        if self._train_loader is None or self.trainer is None:
            return {}
        state = self._train_loader.state_dict()
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        if epochs.processed == epochs.started:  # the epoch is over, perhaps before its last batch
            state["batch"] = 0
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loader_state = state_dict
