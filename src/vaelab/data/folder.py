"""Images of one's own: a folder of files, or arrays in an NPZ file."""

import hashlib
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vaelab import checks
from vaelab.data import cache
from vaelab.data.cache import File
from vaelab.data.idx import MOST
from vaelab.data.images import SUFFIXES
from vaelab.data.module import SPLITS, DataSet, ImageDataModule, Part, cut
from vaelab.errors import UserError

DIGEST = re.compile(r"-[0-9a-f]{8}$")  # at the end of the name of a data set that was used


def check_sizes(**sizes: float) -> None:
    """Raise UserError for a size of a split that is neither a number of images nor a share of all."""
    for name, size in sizes.items():
        if not (type(size) is int and size >= 0) and not 0 < size < 1:
            raise UserError(f"{name}={size}: a whole number of images, or a share between 0 and 1, is needed")


def number(size: float, total: int) -> int:
    """The number of images of a split whose size is a number or a share of `total`."""
    return size if isinstance(size, int) else round(size * total)


class FolderDataModule(ImageDataModule):
    """Image files of any size in a folder, resized to `size` x `size` pixels, grey or in colour.

    The subfolders are the classes, and their sorted order gives the labels. Images that lie in the folder itself have
    no labels. If the subfolders are train, and perhaps val and test, they are the splits, with the classes in each. A
    split without a subfolder is drawn from the training images. The draw depends on `split_seed` and the names of the
    files alone.

    The images are decoded once: see `cache.decoded`. Their name in records is `dataset` and a digest of the files and
    of the image shape, so that metrics of other files do not compare.

    Raises UserError as ImageDataModule and `cache.decoded` do, for a folder without images, for images beside class
    folders or splits, and for a split without an image.
    """

    resizes = True
    folders: ClassVar = {split: split for split in SPLITS}  # the subfolder of each split
    inverted, labelled = False, True  # whether images are dark on white, and whether subfolders are classes

    def __init__(
        self,
        root: str | None = None,  # the folder of the images
        dataset: str = "folder",  # the first part of the name in records
        size: int = 32,  # height and width, in pixels
        channels: int = 3,  # 1: grey | 3: colour
        image_shape: Sequence[int] | None = None,  # None: (channels, size, size)
        val_size: float = 0.1,  # the number of validation images, or their share of all images
        test_size: float = 0.1,  # the number of test images, or their share of all images
        split_seed: int = 0,
        binarization: str = "none",
        **settings: Any,  # of ImageDataModule
    ) -> None:
        if not root:
            raise UserError("the folder of the images is needed: data.root=FOLDER")
        shape = [channels, size, size] if image_shape is None else image_shape
        super().__init__(root, dataset, shape, val_size=0, binarization=binarization, **settings)
        checks.widths(3, image_shape=shape)
        if self.image_shape[0] not in (1, 3):
            raise UserError(f"image_shape={list(shape)}: an image file has 1 channel (grey) or 3 (colour)")
        checks.whole(0, split_seed=split_seed)
        check_sizes(val_size=val_size, test_size=test_size)
        self.shares, self.split_seed = (val_size, test_size), split_seed
        self.classes: list[str] = []  # their names, in the order of the labels
        self._has_splits = False  # whether the subfolders are the splits

    def read(self) -> DataSet:
        """Find, split and decode the files."""
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root}: there is no such folder")
        parts = self._parts()
        files = [file for part in parts.values() for file in part]
        name = DIGEST.sub("", self.dataset)
        name += f"-{cache.digest([file[:2] for file in files], self.image_shape)[:8]}"
        self.check_used(name)  # before anything is decoded
        labels = self._labels(files) if self.labelled else None
        whole: Part = cache.decoded(self.root, files, self.image_shape, self.inverted), labels
        ends = np.cumsum([0, *map(len, parts.values())]).tolist()
        cuts = {split: cut(whole, slice(*ends[i : i + 2])) for i, split in enumerate(parts)}
        return DataSet(name, cuts["train"], cuts["test"], cuts["val"])

    def _parts(self) -> dict[str, list[File]]:
        """The files of each split, in the order of their draw. Raises UserError for a split without images."""
        files = sorted(cache.find(self.root), key=self._place)
        parts: dict[str, list[File]] = {"train": files}
        tops, own = {file.name.split("/")[0] for file in files}, {*self.folders.values()}
        self._has_splits = self.folders["train"] in tops and tops <= own
        if self.folders["train"] in tops and len(tops & own) > 1 and not self._has_splits:
            found, other = ", ".join(sorted(tops & own)), min(tops - own)
            raise UserError(
                f"data.root={self.root} has the folders {found}, and other images, such as {other}: move them away if "
                "these folders are the splits, or rename the folders if they are classes"
            )
        if self._has_splits:
            parts = {
                split: [file for file in files if file.name.startswith(f"{folder}/")]
                for split, folder in self.folders.items()
            }
        total = sum(map(len, parts.values()))
        val, test = (number(share, total) for share in self.shares)
        for split, count in (("test", test), ("val", val)):
            if not parts.get(split):
                parts[split], parts["train"] = parts["train"][:count], parts["train"][count:]
        if self.shares[0] == 0:
            parts["val"] = []
        self.val_size = len(parts["val"])
        if not parts["train"] or not parts["test"]:
            counts = ", ".join(f"{split} {len(parts[split]):,}" for split in SPLITS)
            raise UserError(
                f"data.root={self.root} has {total:,} images ({', '.join(SUFFIXES)}), which give {counts}: a run "
                "trains on some and tests on others; data.test_size and data.val_size set how many"
            )
        return {split: parts[split] for split in SPLITS}

    def _place(self, file: File) -> bytes:
        """A pseudo-random key of a file, by which the files are sorted."""
        return hashlib.sha256(f"{self.split_seed} {file.name}".encode(errors="surrogateescape")).digest()

    def _labels(self, files: Sequence[File]) -> Tensor | None:
        """The labels (N,) by the folders, or None for files that are in no folder. Raises UserError for a mixture."""
        paths = [file.name.split("/")[self._has_splits :] for file in files]
        loose = ["/".join(path) for path in paths if len(path) == 1]
        self.classes = sorted({path[0] for path in paths if len(path) > 1})
        if not self.classes:
            return None
        if loose:
            raise UserError(
                f"data.root={self.root} has {len(loose):,} images, such as {min(loose)}, beside the class folders "
                f"{', '.join(self.classes[:3])}{', ...' * (len(self.classes) > 3)}: put all images into class folders, "
                "or none"
            )
        number = {name: label for label, name in enumerate(self.classes)}
        return torch.tensor([number[path[0]] for path in paths])


class ArraysDataModule(ImageDataModule):
    """Images in the arrays of an NPZ file, such as numpy.savez writes.

    The arrays are train_images and test_images, and perhaps val_images. They hold uint8 of shape (N, H, W),
    (N, H, W, 3) or (N, C, H, W). train_labels, test_labels and val_labels, whole numbers (N,), may be left out. Without
    val_images, the last training images validate.

    Raises UserError as ImageDataModule does, for a file that is not such an NPZ file, and for other arrays.
    """

    def __init__(
        self,
        root: str = ".",  # the folder that `path` is relative to
        path: str | None = None,  # the NPZ file
        dataset: str = "arrays",  # the name in records
        image_shape: Sequence[int] = (1, 28, 28),
        val_size: float = 0.1,  # the number of training images that validate, or their share
        binarization: str = "none",
        **settings: Any,  # of ImageDataModule
    ) -> None:
        if not path:
            raise UserError("the file of the arrays is needed: data.path=FILE.npz")
        super().__init__(root, dataset, image_shape, val_size=0, binarization=binarization, **settings)
        check_sizes(val_size=val_size)
        self.path, self.share = self.root / Path(path).expanduser(), val_size

    def read(self) -> DataSet:
        """The arrays of the file. Their name in records is `dataset` and a digest of the file."""
        if not self.path.is_file():
            raise UserError(f"data.path={self.path}: there is no such file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                total = sum(part.file_size for part in archive.infolist())
            if total > MOST:
                raise UserError(f"{self.path} unpacks to {total:,} bytes, and {MOST:,} are the most: use data=folder")
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
        except UserError:
            raise
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(
                f"{self.path} is not an NPZ file of plain arrays, as numpy.savez writes: {error}"
            ) from error
        with self.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        name = f"{DIGEST.sub('', self.dataset)}-{digest[:8]}"
        self.check_used(name)
        known = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
        if unknown := sorted(arrays.keys() - {*known}):
            raise UserError(f"{self.path} has an array {unknown[0]}, but the names are {', '.join(known)}")
        parts = {split: self._part(arrays, split) for split in SPLITS if f"{split}_images" in arrays}
        if missing := {"train", "test"} - parts.keys():
            raise UserError(f"{self.path} has no array {max(missing)}_images")
        if "val" in parts:
            parts["val"] = parts["val"] if self.share else cut(parts["val"], slice(0))
        self.val_size = len(parts["val"][0]) if "val" in parts else number(self.share, len(parts["train"][0]))
        return DataSet(name, parts["train"], parts["test"], parts.get("val"))

    def _part(self, arrays: dict[str, np.ndarray], split: str) -> Part:
        """Images (N, C, H, W) and their labels, if there are any. Raises UserError for other arrays."""
        images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
        place, shape = f"{split}_images of {self.path}", self.image_shape
        if images.dtype != np.uint8:
            raise UserError(f"{place} holds {images.dtype}, but grey levels from 0 to 255, uint8, are needed")
        if images.ndim == 3:
            images = images[:, None]
        elif images.ndim == 4 and images.shape[1:] == (*shape[1:], shape[0]) != shape:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        if images.shape[1:] != shape or not len(images):
            found = f"the shape {images.shape}, but data.image_shape={list(shape)}"
            raise UserError(f"{place} has {found} needs (N, {', '.join(map(str, shape))}): set data.image_shape")
        if labels is None:
            return torch.from_numpy(images), None
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise UserError(f"{split}_labels of {self.path}: {len(images):,} whole numbers are needed")
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
