"""Writing whole files or none, and reading files that anyone may have written."""

import io
import tempfile
from pathlib import Path
from typing import Any

from vaelab.errors import UserError


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside `path`, then rename: a full disk or a crash leaves what stood there. An OSError names `path`."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            new = Path(file.name)
            try:
                file.write(content)
                file.flush()
            except OSError:
                new.unlink()
                raise
        new.chmod(0o644)
        new.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_plain(path: Path, content: Any) -> None:
    """What `read_plain` reads: tensors in plain containers, whole or not at all."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_plain(path: Path) -> Any:
    """What torch.save wrote: tensors, on the CPU, in plain containers. ValueError for all else, which is not run."""
    import torch

    with path.open("rb") as file:
        try:
            return torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever the reader stumbles over; torch's own text tells how to run the file
            raise UserError(f"{path} holds more than plain data, or is damaged: none of it was run") from error
