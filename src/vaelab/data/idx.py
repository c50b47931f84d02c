"""Read IDX files, the format of MNIST, as they are or within gzip and zip archives.

An IDX file holds two zero bytes, the type of its values, the number of axes, the size of each axis and the values, all
big-endian. Its name tells type and axes: "idx3-ubyte" holds unsigned bytes on three axes, "idx2-int" integers of 32
bits on two.
"""

import gzip
import hashlib
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.errors import UserError

TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
CODES = {"ubyte": 8, "int": 12}
MOST = 2**33  # bytes; a file that announces more is refused
CHUNK = 2**24  # bytes that are unpacked at once
MEND = "move it away to download it again, or replace it with a correct copy"


def read_idx(path: Path | zipfile.Path, md5: str | None = None) -> Tensor:
    """The values of an IDX file, as uint8 or int64. Its content says whether it is a gzip archive, not its name.

    The unpacked content is compared with `md5`. Not more is unpacked than the header announces. Raises UserError, which
    names the file, for a file that cannot be read or is not what its name says.
    """
    try:
        with path.open("rb") as packed:
            return _read(path.name, packed, md5)
    except _CorruptError as fault:
        raise UserError(f"{path} is {fault}; {MEND}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is corrupt: its archive is damaged ({error}); {MEND}") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): put a readable file in its place"
        ) from error


class _CorruptError(Exception):
    """What a file is instead of a sound one."""


def _read(name: str, packed: Any, md5: str | None) -> Tensor:
    """The values in an open file. Raises _CorruptError, and the errors of a damaged archive."""
    layout: Any = re.search(r"idx(\d)-(\w+)", name)
    axes, code = int(layout[1]), CODES[layout[2]]
    file = gzip.GzipFile(fileobj=packed) if packed.peek(2)[:2] == b"\x1f\x8b" else packed
    head = file.read(4 + 4 * axes)
    if fault := _fault(head, bytes((0, 0, code, axes))):
        raise _CorruptError(fault)
    sizes = tuple(np.frombuffer(head[4:], dtype=">u4").tolist())
    size = math.prod(sizes) * np.dtype(TYPES[code]).itemsize
    total = len(head) + size
    if size == 0 or total > MOST:
        why = "so it holds nothing" if size == 0 else f"which need {total:,} bytes, and {MOST:,} are the most"
        raise _CorruptError(f"of no use: its sizes are {sizes}, {why}")
    values, digest = bytearray(), hashlib.md5(head, usedforsecurity=False)
    while chunk := file.read(min(CHUNK, size + 1 - len(values))):  # one more byte shows that the file goes on
        values += chunk
        digest.update(chunk)
    if len(values) != size:
        found = f"more than {total:,}" if len(values) > size else f"{len(head) + len(values):,}"
        raise _CorruptError(f"corrupt: {found} bytes, but an IDX file with sizes {sizes} has {total:,}")
    if md5 and digest.hexdigest() != md5:
        raise _CorruptError(f"corrupt: its {total:,} bytes have md5 {digest.hexdigest()} instead of {md5}")
    if code == CODES["ubyte"]:
        return torch.frombuffer(values, dtype=torch.uint8).view(sizes)
    return torch.from_numpy(np.frombuffer(values, dtype=">i4").astype(np.int64)).view(sizes)


def _fault(head: bytes, needed: bytes) -> str:
    """What a file with this header is, or an empty string if it begins with the needed four bytes."""
    if not head:
        return "empty"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "a web page, which a network may give in place of a file"
    if head[:4] != needed:
        kind = f"{TYPES[needed[2]]} values on {needed[3]} ax{'es' if needed[3] > 1 else 'is'}"
        found = (
            f" ({TYPES[head[2]]}, {head[3]})" if head[:2] == needed[:2] and len(head) > 3 and head[2] in TYPES else ""
        )
        return f"no IDX file of {kind}: it begins with {head[:4].hex(' ')}{found} instead of {needed.hex(' ')}"
    return "" if len(head) == 4 + 4 * needed[3] else f"corrupt: it ends in its header, after {len(head)} bytes"
