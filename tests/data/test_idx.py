"""IDX files are read from archives of any origin, and each fault is one sentence that names the file."""

import gzip
import hashlib
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused

from vaelab.data.idx import read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 5, 4)).astype(np.uint8)
NAME = "train-images-idx3-ubyte"


def idx(array: np.ndarray, code: int = 8, kind: str = ">u1") -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.astype(kind).tobytes()


SOUND = idx(IMAGES)
MD5 = hashlib.md5(SOUND).hexdigest()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        (NAME, lambda content: content),
        (f"{NAME}.gz", lambda content: gzip.compress(content, 1, mtime=7)),  # another level and header than published
        (f"{NAME}.gz", lambda content: gzip.compress(content[:99]) + gzip.compress(content[99:])),  # two members
        (f"{NAME}.gz", lambda content: content),  # a browser has unpacked it
        (NAME, gzip.compress),
        ("train-images.idx3-ubyte", lambda content: content),
    ],
)
def test_the_content_decides_what_a_file_is(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(SOUND))
    assert torch.equal(read_idx(tmp_path / name, MD5), torch.from_numpy(IMAGES))


def test_a_file_in_a_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
        archive.writestr(f"gzip/{NAME}.gz", gzip.compress(SOUND))
    packed = zipfile.Path(tmp_path / "gzip.zip", f"gzip/{NAME}.gz")
    assert torch.equal(read_idx(packed, MD5), torch.from_numpy(IMAGES))


def test_integers(tmp_path: Path) -> None:
    numbers = np.array([[1, -2], [3, 2**31 - 1], [70_000, 6]])
    (tmp_path / "labels-idx2-int").write_bytes(idx(numbers, 12, ">i4"))
    assert read_idx(tmp_path / "labels-idx2-int").tolist() == numbers.tolist()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (SOUND[:3], "is no IDX file of uint8 values on 3 axes: it begins with 00 00 08 instead of 00 00 08 03"),
        (SOUND[:9], "is corrupt: it ends in its header, after 9 bytes"),
        (SOUND[:-1], r"is corrupt: 615 bytes, but an IDX file with sizes (30, 5, 4) has 616"),
        (SOUND + b"x", r"is corrupt: more than 616 bytes, but an IDX file with sizes (30, 5, 4) has 616"),
        (SOUND[:-1] + bytes([SOUND[-1] ^ 1]), f"is corrupt: its 616 bytes have md5 [0-9a-f]{{32}} instead of {MD5}"),
        (idx(IMAGES, 12, ">i4"), "it begins with 00 00 0c 03 (int32, 3) instead of 00 00 08 03"),
        (idx(IMAGES, 13, ">f4"), "it begins with 00 00 0d 03 (float32, 3) instead of 00 00 08 03"),
        (idx(IMAGES[0, 0]), "it begins with 00 00 08 01 (uint8, 1) instead of 00 00 08 03"),
        (b"PK\3\4" + SOUND[4:], "it begins with 50 4b 03 04 instead of 00 00 08 03"),
        (idx(IMAGES[:0]), r"is of no use: its sizes are (0, 5, 4), so it holds nothing"),
        (
            struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 28, 28),
            "which need 3,367,254,359,296 bytes, and 8,589,934,592",
        ),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_faulty_file(tmp_path: Path, content: bytes, fault: str, packed: bool) -> None:
    path = tmp_path / (f"{NAME}.gz" if packed else NAME)
    path.write_bytes(gzip.compress(content) if packed else content)
    message = refused(read_idx, path, MD5)
    assert message.startswith(f"{path} is ")
    assert re.search(fault if "md5" in fault else re.escape(fault), message)
    assert message.endswith("; move it away to download it again, or replace it with a correct copy")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda archive: archive[:-20], "Compressed file ended before the end-of-stream marker was reached"),
        (lambda archive: archive[:5], "Compressed file ended before the end-of-stream marker was reached"),
        (lambda archive: archive[:-8] + bytes(8), "CRC check failed"),
        (lambda archive: archive[:10] + b"\xff" * 9 + archive[19:], "Error -3"),
        (lambda archive: archive + b"more", "Not a gzipped file"),
    ],
)
def test_a_damaged_archive(tmp_path: Path, damage: Callable[[bytes], bytes], fault: str) -> None:
    path = tmp_path / f"{NAME}.gz"
    path.write_bytes(damage(gzip.compress(SOUND)))
    assert refused(read_idx, path).startswith(f"{path} is corrupt: its archive is damaged ({fault}")


def test_an_archive_that_goes_on_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.gz"
    with gzip.open(path, "wb", 1) as archive:
        archive.write(SOUND)
        for _ in range(200):
            archive.write(bytes(2**20))
    tracemalloc.start()
    message = refused(read_idx, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is corrupt: more than 616 bytes" in message
    assert peak < 2**20


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    path.mkdir()
    assert refused(read_idx, path) == f"{path} cannot be read (Is a directory): put a readable file in its place"

    def closed(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", closed)  # the superuser may read all files
    assert refused(read_idx, path) == f"{path} cannot be read (Permission denied): put a readable file in its place"
