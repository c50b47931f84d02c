"""Writing whole files or none."""

import tempfile
from pathlib import Path


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
