"""Atomic writing of files, and safe reading of files from untrusted sources."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

from vaelab.errors import UserError


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
    """A path, relative to the working directory if it lies inside, otherwise absolute."""
    here = Path.cwd()
    path = path.absolute()
    return str(path.relative_to(here) if here in path.parents else path)


def write_plain(path: Path, content: Any) -> None:
    """Write tensors in plain containers atomically, for `read_plain`."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_plain(path: Path) -> Any:
    """Read tensors in plain containers, onto the CPU. Raises UserError for other content, and runs no code of it."""
    import torch

    with path.open("rb") as file:
        try:
            if zipfile.ZipFile(file).testzip():  # torch itself does not compare checksums
                raise zipfile.BadZipFile("a checksum differs")
            file.seek(0)
            return torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # of any type; torch's own message tells how to run the code in the file
            raise UserError(f"{path} holds more than plain data, or is damaged: use another file") from error
