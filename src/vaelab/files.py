"""Atomic writing of files, and safe reading of files and folders of unknown origin.

A file that unpacks to more than its size, holds what no file of a run holds, or leads elsewhere raises UserError before
it takes time or memory.
"""

import io
import itertools
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from vaelab.errors import UserError
from vaelab.text import HIDDEN, plain

MOST_VALUES, MOST_LEVELS = 200_000, 64  # in a file; a checkpoint of a thousand weights has about 5,000 values
MOST_PIXELS = 2 * 10**8  # in a picture, or in all frames of an animation


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a new file and rename it to `path`. A full disk or a crash keeps the old file. An OSError names `path`.

    What a killed process leaves has a fixed name, so that the next write replaces it.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # otherwise a loss of power can leave the new name with no content
        except OSError:
            new.unlink(missing_ok=True)
            raise
        new.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def shown(path: Path) -> str:
    """A path in one line of text, relative to the working directory if it lies inside, otherwise absolute."""
    here = Path.cwd()
    path = path.absolute()
    return plain(path.relative_to(here) if here in path.parents else path)


def write_plain(path: Path, content: Any) -> None:
    """Write tensors in plain containers atomically, for `read_plain`."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_plain(path: Path) -> Any:
    """Read dense tensors in plain containers, onto the CPU. Raises UserError for other content, and runs no code of it.

    Torch reads a copy, because it compares no checksums and unpacks what it finds.
    """
    import torch

    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy := io.BytesIO(), "w") as stored:
                parts = archive.infolist()
                packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
                if packed or sum(part.file_size for part in parts) > path.stat().st_size:
                    raise zipfile.BadZipFile("it unpacks to more than its size")
                for part in parts:
                    stored.writestr(part.filename, archive.read(part))
            copy.seek(0)
            content = torch.load(copy, weights_only=True, map_location="cpu")
        except Exception as error:  # of any type; torch's own message tells how to run the code in the file
            raise UserError(f"{path} holds more than plain data, or is damaged: use another file") from error
    for value in check_values(content, path):
        if isinstance(value, torch.Tensor) and not _is_dense(value):
            raise UserError(f"{path} holds a tensor that is sparse, quantised, without data or larger than its data")
    return content


def _is_dense(tensor: Any) -> bool:
    """Whether each value of a tensor has its own place in memory. Otherwise a small file can fill the memory."""
    import torch

    usual = tensor.layout == torch.strided and tensor.device.type == "cpu"
    usual = usual and not (tensor.is_quantized or tensor.is_nested)
    return usual and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_values(content: Any, path: Path) -> list[Any]:
    """All values in nested containers. Raises UserError for very many of them, deep nesting or hidden characters.

    A container that occurs several times counts each time, because it takes its memory each time when it is copied.
    """
    level, found = [content], [content]
    for _ in range(MOST_LEVELS):
        inner = (
            itertools.chain(value, value.values()) if isinstance(value, dict) else value
            for value in level
            if isinstance(value, dict | list | tuple | set)
        )
        level = list(itertools.islice(itertools.chain.from_iterable(inner), MOST_VALUES + 1))
        found += level
        if not level or len(found) > MOST_VALUES:
            break
    if level:
        raise UserError(f"{path} has more than {MOST_VALUES:,} values or {MOST_LEVELS} levels, as no file of a run has")
    if hidden := [value for value in found if isinstance(value, str) and HIDDEN.search(value)]:
        raise UserError(f"{path} has hidden characters in a text, which no run writes: {hidden[0][:200]}")
    return found


def read_text(path: Path, most: int) -> str:
    """Read a text in UTF-8. Raises UserError for a file of more than `most` bytes, which it does not read."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: it is not a text in UTF-8: {error}") from error


def read_bytes(path: Path, most: int) -> bytes:
    """Read a file. Raises UserError for a file of more than `most` bytes, before it is read."""
    check_size(path, most)
    return path.read_bytes()


def check_size(path: Path, most: int) -> None:
    """Raise UserError for a file of more than `most` bytes."""
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{path} has {size:,} bytes, but such a file of this run has at most {most:,}: it is not read")


def png_size(content: bytes, name: object) -> tuple[int, int]:
    """The width and the height of a PNG, from its header. Raises UserError for other content and for a giant one."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 24:
        raise UserError(f"{name} is not a PNG picture")
    width, height = struct.unpack(">II", content[16:24])
    if not 0 < width * height <= MOST_PIXELS:
        raise UserError(f"{name} has {width:,} x {height:,} pixels, but a picture has at most {MOST_PIXELS:,}")
    return width, height


def check_links(folder: Path) -> None:
    """Raise UserError for a link that leads out of a folder of unknown origin, and for a pipe, socket or device in it.

    Without them, nothing in the folder leads a reader or a writer to another place, or keeps it waiting for ever. Links
    within the folder are fine, and so is a link to the folder itself.
    """
    root = os.path.realpath(folder)
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                place, name = os.path.realpath(entry.path), folder / os.path.relpath(entry.path, root)
                if entry.is_symlink() and not Path(place).is_relative_to(root):
                    raise UserError(f"{name} is a link that leads out of the folder, to {place}: remove this link")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                    raise UserError(f"{name} is neither a file nor a folder: remove it")
