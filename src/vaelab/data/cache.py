"""Image files, decoded once: all their pixels in one file, which is mapped into memory."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor
from tqdm import tqdm

from vaelab.data.images import SUFFIXES, decode
from vaelab.errors import UserError

log = logging.getLogger("vaelab.data")
CHUNK = 64  # images that a thread decodes at a time


class File(NamedTuple):
    """An image file below a root folder."""

    name: str  # its path below the root, with / between folders
    size: int  # bytes
    time: int  # of its last change, in nanoseconds


def find(root: Path) -> list[File]:
    """All image files below a folder, sorted by name. Links are followed, and hidden files and folders are not read."""

    def refuse(error: OSError) -> None:
        raise error

    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:  # a link back
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                state = path.stat()
                found.append(File(path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns))
    return sorted(found)


def digest(*content: object) -> str:
    """Sixteen hexadecimal digits of a SHA-256."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def folder() -> Path:
    """The folder of all caches: that of the environment variable VAELAB_CACHE, or vaelab in the user's cache folder."""
    return Path(os.environ.get("VAELAB_CACHE") or user_cache_path("vaelab")).expanduser()


def decoded(root: Path, files: Sequence[File], image_shape: Sequence[int], invert: bool = False) -> Tensor:
    """The pixels of the files in their order, (N, C, H, W) uint8, mapped into memory.

    The first call decodes them in parallel, with a progress bar, and writes them to the cache. A later call with the
    same names, sizes and times of files only maps the file of the cache. A call with the same files in another order
    copies the pixels into this order. The new order takes the place of the old one, and so does another list of files
    below the same root. A process that has mapped a file keeps it.

    With `invert`, a grey level g becomes 255 - g. Raises UserError, which names the images that cannot be decoded, and
    for a disk that is too full.
    """
    place = folder() / digest(str(root.resolve()), list(image_shape), invert)
    path = place / f"{digest(sorted(files))}-{digest(list(files))}.npy"
    with contextlib.suppress(FileNotFoundError):
        return _mapped(path)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):  # other processes wait for the one that decodes, and none removes its file
        if not path.is_file():
            _write(path, root, files, image_shape, invert)
            for old in place.glob("*.npy"):
                if old != path:
                    old.unlink()
        return _mapped(path)


def _mapped(path: Path) -> Tensor:
    """The pixels in a file. torch needs memory that could be written to: the mode "c" keeps the file as it is."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write(path: Path, root: Path, files: Sequence[File], image_shape: Sequence[int], invert: bool) -> None:
    """Write the pixels of all files into a new file, which gets its name at the end. Raises UserError like `decoded`.

    The file holds two arrays, one after the other: the pixels, and the place of each image among the sorted files.
    """
    needed = len(files) * int(np.prod(image_shape))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path.parent} has {free / 1e9:.3g} GB left, but the decoded images take {needed / 1e9:.3g} GB: free some "
            "space, or set the environment variable VAELAB_CACHE to a folder on another disk"
        )
    ranks = {file: rank for rank, file in enumerate(sorted(files))}
    order = np.array([ranks[file] for file in files])
    new = path.with_name(".new.npy")
    pixels = np.lib.format.open_memmap(new, mode="w+", dtype=np.uint8, shape=(len(files), *image_shape))
    same = path.name.partition("-")[0]  # the part of the name that does not depend on the order
    if earlier := next(path.parent.glob(f"{same}-*.npy"), None):
        _reorder(earlier, order, pixels)
    else:
        faults = _decode(root, files, image_shape, invert, pixels)
        if faults:
            new.unlink()
            more = f" (and {len(faults) - 1:,} more images cannot be used)" if len(faults) > 1 else ""
            raise UserError(min(faults) + more)
        log.info("decoded  %s images of %s, once, into %s", f"{len(files):,}", root, path.parent)
    pixels.flush()
    with new.open("ab") as file:
        np.save(file, order)
    new.replace(path)


def _reorder(earlier: Path, order: np.ndarray, pixels: np.ndarray) -> None:
    """Copy the pixels of a file of the cache in another order."""
    old = np.load(earlier, mmap_mode="r")
    with earlier.open("rb") as file:
        file.seek(old.offset + old.nbytes)
        rows = np.load(file).argsort()[order]
    for start in range(0, len(rows), CHUNK):
        pixels[start : start + CHUNK] = old[rows[start : start + CHUNK]]


def _decode(
    root: Path, files: Sequence[File], image_shape: Sequence[int], invert: bool, pixels: np.ndarray
) -> list[str]:
    """Decode all files into `pixels`, and return a sentence for each image that cannot be used."""
    faults: list[str] = []

    def decode_some(start: int) -> int:
        part = range(start, min(start + CHUNK, len(files)))
        for i in part:
            try:
                image = decode(root / files[i].name, image_shape, fit=True)
                pixels[i] = 255 - image if invert else image
            except UserError as error:
                faults.append(str(error))
        return len(part)

    with (
        ThreadPoolExecutor(joblib.cpu_count()) as pool,
        tqdm(total=len(files), desc="decoding images", unit="image", leave=False, disable=None) as bar,
    ):
        for count in pool.map(decode_some, range(0, len(files), CHUNK)):
            bar.update(count)
    return faults
