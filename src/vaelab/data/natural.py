"""Data sets that torchvision knows and that are not in MNIST's format: CIFAR-10, SVHN and Omniglot.

Files are read from torchvision's places below `root`. Missing archives are downloaded. No file that exists is changed.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock

from vaelab import checks
from vaelab.data import files
from vaelab.data.folder import FolderDataModule
from vaelab.data.idx import MEND
from vaelab.data.module import DataSet, ImageDataModule, Part
from vaelab.errors import UserError


def is_sound(path: Path, md5: str) -> bool:
    """Whether a file exists and has this checksum."""
    return path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5


def provide(dataset: str, folder: Path, mirror: str, archives: Mapping[str, str]) -> None:
    """Download the archives that are not in the folder. `archives` has the md5 of each.

    Raises UserError if this fails, and for an archive that is not what its checksum says.
    """
    absent = {name: md5 for name, md5 in archives.items() if not files.exists(folder / name)}
    if absent and (why := files.fetch(folder, (mirror,), absent)):
        wanted = ", ".join(f"{name} (md5 {md5})" for name, md5 in absent.items())
        raise UserError(
            f"{dataset} is not on this machine yet, and it cannot be downloaded now ({why}): connect to a network for "
            f"the first run, or put into {folder.absolute()}: {wanted}"
        )
    for name, md5 in archives.items():
        if not is_sound(folder / name, md5):
            raise UserError(f"{folder / name} is damaged: it does not have the md5 {md5}; {MEND}")


def unpack(archive: Path, name: str) -> None:
    """Unpack the folder `name` of an archive beside it. The folder gets its place when it is complete.

    Of several processes, one unpacks it, and the others wait.
    """
    made, place = archive.with_name(".unpacked"), archive.with_name(name)
    lock = archive.with_name(".unpacked.lock")
    with FileLock(lock):
        if files.exists(place):
            return
        shutil.rmtree(made, ignore_errors=True)
        if archive.suffix == ".zip":
            shutil.unpack_archive(archive, made)
        else:
            shutil.unpack_archive(archive, made, filter="data")
        (made / name).rename(place)
        shutil.rmtree(made)
        lock.unlink()  # a process that waits for it finds the folder in its place


class CIFAR10DataModule(ImageDataModule):
    """60,000 photographs of 10 classes, 32 x 32 in colour: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.

    The files are in `root`/cifar-10-batches-py, or in cifar-10-python.tar.gz, which is unpacked there.

    Raises UserError as ImageDataModule and `provide` do, and for a damaged file.
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "CIFAR10",
        image_shape: Any = (3, 32, 32),
        binarization: str = "none",
        **settings: Any,  # of ImageDataModule
    ) -> None:
        checks.one_of(("CIFAR10",), dataset=dataset)
        super().__init__(root, dataset, image_shape, binarization=binarization, **settings)

    def read(self) -> DataSet:
        """The five training batches and the test batch."""
        import torchvision

        source: Any = torchvision.datasets.CIFAR10
        folder = self.root / source.base_folder
        if not files.exists(folder):
            mirror = source.url.removesuffix(source.filename)
            provide(self.dataset, self.root, mirror, {source.filename: source.tgz_md5})
            unpack(self.root / source.filename, source.base_folder)
        for name, md5 in [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]:
            if not is_sound(folder / name, md5):
                raise UserError(f"{folder / name} is missing or damaged: it needs the md5 {md5}; {MEND}")

        def part(train: bool) -> Part:
            batch = source(str(self.root), train=train)
            pixels = np.ascontiguousarray(batch.data.transpose(0, 3, 1, 2))
            return torch.from_numpy(pixels), torch.tensor(batch.targets)

        return DataSet(self.dataset, part(train=True), part(train=False))


class SVHNDataModule(ImageDataModule):
    """99,289 house numbers, cut to digits, 32 x 32 in colour: Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers.

    The files train_32x32.mat and test_32x32.mat are in `root`.

    Raises UserError as ImageDataModule and `provide` do.
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "SVHN",
        image_shape: Any = (3, 32, 32),
        binarization: str = "none",
        **settings: Any,  # of ImageDataModule
    ) -> None:
        checks.one_of(("SVHN",), dataset=dataset)
        super().__init__(root, dataset, image_shape, binarization=binarization, **settings)

    def read(self) -> DataSet:
        """The training images, without the extra ones, and the test images."""
        import torchvision

        source: Any = torchvision.datasets.SVHN
        lists = [source.split_list[split] for split in ("train", "test")]
        mirror = lists[0][0].removesuffix(lists[0][1])
        provide(self.dataset, self.root, mirror, {name: md5 for _, name, md5 in lists})

        def part(split: str) -> Part:
            digits = source(str(self.root), split)
            return torch.from_numpy(np.ascontiguousarray(digits.data)), torch.from_numpy(digits.labels)

        return DataSet(self.dataset, part("train"), part("test"))


class OmniglotDataModule(FolderDataModule):
    """32,460 handwritten characters of 50 alphabets: Lake et al. 2015, https://doi.org/10.1126/science.aab3050.

    The files are in `root`/omniglot-py, unpacked or in torchvision's zip archives. The 30 background alphabets train
    and validate, and the other 20 test. The images of 105 x 105 pixels are resized, and ink is white. There are no
    labels, because no test character is among the training characters.

    Raises UserError as FolderDataModule and `provide` do.
    """

    folders: ClassVar = {"train": "images_background", "test": "images_evaluation"}
    inverted, labelled = True, False

    def __init__(
        self,
        root: str = "data",
        dataset: str = "Omniglot",
        size: int = 28,
        channels: int = 1,
        **settings: Any,  # of FolderDataModule
    ) -> None:
        super().__init__(str(Path(root) / "omniglot-py"), dataset, size, channels, **settings)

    def read(self) -> DataSet:
        """Unpack the archives if this was not done before, and read the images."""
        import torchvision

        source: Any = torchvision.datasets.Omniglot
        for name, md5 in source.zips_md5.items():
            if not files.exists(self.root / name):
                provide("Omniglot", self.root, f"{source.download_url_prefix}/", {f"{name}.zip": md5})
                unpack(self.root / f"{name}.zip", name)
        return super().read()
