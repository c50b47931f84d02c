"""The published static binarisation of MNIST, which comes with this package."""

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaelab import checks
from vaelab.data.module import PUBLISHED, DataSet, ImageDataModule
from vaelab.errors import UserError

NAME = "BinarizedMNIST"
VALIDATION = 10_000  # images of the published validation set
TESTED = 10_000
PIXELS = 784
SHA256 = {  # of the original text files
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}


class BinarizedMNISTDataModule(ImageDataModule):
    """One published binary draw of MNIST in its own splits: 50,000 training, 10,000 validation and 10,000 test images.

    The test images of the files are sorted by digit. Here `test_order` mixes them, so that the first ones, with which
    some metrics are measured, are of all digits. The other images keep the order of the files.

    Source: Salakhutdinov and Murray 2008, https://doi.org/10.1145/1390156.1390266, and Larochelle and Murray 2011,
    https://proceedings.mlr.press/v15/larochelle11a.html. The original files are binarized_mnist_train.amat, _valid.amat
    and _test.amat. If one is in `root`/BinarizedMNIST, it is compared with its SHA-256 and read. Otherwise the package
    has the same images. Labels were not published: they are those of the grey images that fit the binary ones (see the
    file NOTICE).

    Raises UserError as ImageDataModule does, for another binarization than "published", for a val_size other than 10000
    and 0 (which leaves the validation images out), and for a text file that differs from the original.
    """

    binarizations = (PUBLISHED,)

    def __init__(
        self,
        root: str = "data",
        dataset: str = NAME,
        val_size: int = VALIDATION,
        binarization: str = PUBLISHED,
        **settings: Any,  # of ImageDataModule
    ) -> None:
        if binarization != PUBLISHED:
            why = f"{NAME} holds binary pixels, so its binarization is {PUBLISHED}; data=mnist has grey levels"
            raise UserError(f"binarization={binarization}: {why}")
        checks.one_of((NAME,), dataset=dataset)
        if val_size not in (VALIDATION, 0):
            why = f"{NAME} has its own validation images: set {VALIDATION}, or 0 to leave them out"
            raise UserError(f"val_size={val_size}: {why}")
        super().__init__(root, dataset, val_size=val_size, binarization=binarization, **settings)

    def read(self) -> DataSet:
        """The text files where they exist, otherwise the images of the package."""
        with (resources.files("vaelab.data") / "binarized_mnist.npz").open("rb") as file, np.load(file) as packed:
            arrays = dict(packed)
        parts = {}
        for split in SHA256:
            path = self.root / NAME / f"binarized_mnist_{split}.amat"
            labels = torch.from_numpy(arrays[f"{split}_label"]).long()
            pixels = read_text(path, split, len(labels)) if path.exists() else np.unpackbits(arrays[split], axis=1)
            parts[split] = torch.from_numpy(pixels * np.uint8(255)).view(-1, 1, 28, 28), labels
        parts["test"] = parts["test"][0][test_order()], parts["test"][1][test_order()]
        images, labels = parts["valid"]
        return DataSet(NAME, parts["train"], parts["test"], (images[: self.val_size], labels[: self.val_size]))


def test_order() -> torch.Tensor:
    """The rows of the test file (10000,) in the order in which they are served, which is drawn once for all."""
    return torch.randperm(TESTED, generator=torch.Generator().manual_seed(0))


def read_text(path: Path, split: str, count: int) -> np.ndarray:
    """The pixels (count, 784), 0 and 1, of an original text file, which has one image "0 1 ... 0" in each line.

    Raises UserError for a file that differs from the original.
    """
    size = count * 2 * PIXELS
    with path.open("rb") as file:
        text = file.read(size + 1)
    found = hashlib.sha256(text).hexdigest()
    if found != SHA256[split]:
        wrong = f"SHA-256 {found}" if len(text) == size else f"{path.stat().st_size:,} bytes"
        wanted = SHA256[split] if len(text) == size else f"{size:,}"
        mend = "replace it with the original file, or move it away, and the run takes the images of the package"
        raise UserError(f"{path} has {wrong} instead of {wanted}: {mend}")
    return np.frombuffer(text, dtype=np.uint8).reshape(count, 2 * PIXELS)[:, ::2] - ord("0")
