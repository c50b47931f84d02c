"""Image files, decoded once: all their pixels in one file, which is mapped into memory."""

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
    same names, sizes and times of files only maps the file of the cache. Another list of files below the same root
    takes its place. With `invert`, a grey level g becomes 255 - g. Raises UserError, which names the images that cannot
    be decoded, and for a disk that is too full.
    """
    place = folder() / digest(str(root.resolve()), list(image_shape), invert)
    path = place / f"{digest(list(files))}.npy"
    if not path.is_file():
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):  # other processes wait for the one that decodes
            if not path.is_file():
                _write(path, root, files, image_shape, invert)
                for old in place.glob("*.npy"):
                    if old != path:
                        old.unlink()
    return torch.from_numpy(
        np.load(path, mmap_mode="c")
    )  # torch needs memory that could be written to: "c" keeps the file


def _write(path: Path, root: Path, files: Sequence[File], image_shape: Sequence[int], invert: bool) -> None:
    """Decode all files into a new file, which gets its name at the end. Raises UserError as `decoded` does."""
    needed = len(files) * int(np.prod(image_shape))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path.parent} has {free / 1e9:.3g} GB left, but the decoded images take {needed / 1e9:.3g} GB: free some "
            "space, or set the environment variable VAELAB_CACHE to a folder on another disk"
        )
    new = path.with_name(".new.npy")
    pixels = np.lib.format.open_memmap(new, mode="w+", dtype=np.uint8, shape=(len(files), *image_shape))
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
    pixels.flush()
    if faults:
        new.unlink()
        more = f" (and {len(faults) - 1:,} more images cannot be used)" if len(faults) > 1 else ""
        raise UserError(min(faults) + more)
    new.replace(path)
    log.info("decoded  %s images of %s, once, into %s", f"{len(files):,}", root, path.parent)
