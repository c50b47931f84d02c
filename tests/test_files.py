"""Files are written whole, and files and folders of unknown origin are read safely."""

import copy
import io
import os
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused

from vaelab import files
from vaelab.files import check_links, check_values, png_size, read_plain, shown, write_atomically, write_plain


class Full:
    """A file on a full disk, which writes half of the content and then fails."""

    def __init__(self, file: object) -> None:
        self.file = file

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> "Full":
        self.file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"new content")
    assert (tmp_path / "file").read_bytes() == b"new content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    write_plain(path, {"weight": torch.ones(3)})
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: Full(original(self, mode)))
    with pytest.raises(OSError, match="No space left on device") as error:
        write_plain(path, {"weight": torch.zeros(3)})
    monkeypatch.setattr(Path, "open", original)
    assert error.value.filename == str(path)
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.ones(3))
    assert [path.name for path in path.parent.iterdir()] == ["last.ckpt"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".file.new").write_bytes(b"half of a file")
    write_atomically(tmp_path / "file", b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"whole"}


# Plain data ----------------------------------------------------------------------------------------------------------

STATE = {"weight": torch.arange(6.0).view(2, 3), "steps": [torch.tensor(3), {"a": (1, "b", None)}]}


def test_plain_data_come_back(tmp_path: Path) -> None:
    write_plain(tmp_path / "file", STATE)
    content = read_plain(tmp_path / "file")
    assert torch.equal(content["weight"], STATE["weight"])
    assert content["steps"][1] == STATE["steps"][1]


TENSORS = {
    "larger than its data": lambda: torch.zeros(1).expand(10**12),
    "overlapping": lambda: torch.zeros(10).as_strided((8, 8), (0, 1)),
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,)),
    "without data": lambda: torch.zeros(10**12, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore:.*(prototype|deprecated|[Ss]parse)")
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("wrap", [lambda tensor: {"a": tensor}, lambda tensor: [{"b": [({"c": tensor},)]}]])
def test_a_tensor_that_is_not_dense(tmp_path: Path, name: str, wrap: Callable) -> None:
    torch.save(wrap(TENSORS[name]()), tmp_path / "file")
    assert "holds" in refused(read_plain, tmp_path / "file")


def test_a_view_and_a_shared_weight_are_dense(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save([whole, whole.T, whole[1:], whole[:0], torch.tensor(1.0)], tmp_path / "file")
    assert torch.equal(read_plain(tmp_path / "file")[1], whole.T)


def nested(levels: int) -> list:
    content: list = []
    for _ in range(levels):
        content = [content]
    return content


def laughs(levels: int) -> list:
    """A list that would have 10^levels values if it were written out."""
    content: list = [1]
    for _ in range(levels):
        content = [content] * 10
    return content


def circle() -> list:
    content: list = []
    content.append(content)
    return content


@pytest.mark.parametrize("content", [nested(80), laughs(40), circle(), [0] * 300_000, dict.fromkeys(range(300_000), 0)])
def test_more_values_than_any_file_of_a_run(tmp_path: Path, content: Any) -> None:
    assert "as no file of a run has" in refused(check_values, content, tmp_path)
    write_plain(tmp_path / "file", {"more": content})
    assert "as no file of a run has" in refused(read_plain, tmp_path / "file")


def test_values_are_counted_and_hidden_characters_found(tmp_path: Path) -> None:
    assert len(check_values({"a": [1, (2, {"b": "c"})]}, tmp_path)) == 9
    assert check_values(laughs(3), tmp_path)
    for text in ("\x1b[31m", "a\nb", "\u202e", "\ud800"):
        for content in (text, [text], {text: 1}, {"a": ({"b": text},)}):
            assert "has hidden characters in a text" in refused(check_values, content, tmp_path)


# Bombs ---------------------------------------------------------------------------------------------------------------


def bounded(action: Callable[..., Any], *arguments: Any) -> str:
    """The sentence of a refusal that takes at most 300 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentence = refused(action, *arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    return sentence


def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """Torch would unpack a part that is compressed."""
    torch.save({"weight": torch.zeros(10)}, tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file") as small:
        parts = [(part.filename, small.read(part)) for part in small.infolist()]
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        for name, content in parts:
            if not name.endswith("/data/0"):
                bomb.writestr(name, content)
        with bomb.open(next(name for name, _ in parts if name.endswith("/data/0")), "w", force_zip64=True) as part:
            for _ in range(400):
                part.write(bytes(2**20))
    assert (tmp_path / "bomb").stat().st_size < 3_000_000
    assert "is damaged" in bounded(read_plain, tmp_path / "bomb")


def test_an_archive_whose_parts_are_the_same_bytes(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file", "a") as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        archive.writestr("more", b"")
        archive.filelist.extend(copy.copy(largest) for _ in range(1000))
    assert "is damaged" in bounded(read_plain, tmp_path / "file")


def test_a_file_that_is_larger_than_it_may_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read_text(tmp_path / "file", 5) == "12345"
    assert "has 5 bytes, but such a file of this run has at most 4" in refused(files.read_text, tmp_path / "file", 4)
    os.truncate(tmp_path / "file", 10**11)  # on the disk, it takes no place
    assert "has 100,000,000,000 bytes" in bounded(files.read_bytes, tmp_path / "file", 10**7)


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(5)


def test_the_size_of_a_picture_comes_from_its_header() -> None:
    from PIL import Image

    content = io.BytesIO()
    Image.new("L", (7, 5)).save(content, "PNG")
    assert png_size(content.getvalue(), "x.png") == png_size(png(7, 5), "x.png") == (7, 5)
    for size in ((60_000, 60_000), (2**31, 2**31), (0, 5)):
        assert "pixels, but a picture has at most" in refused(png_size, png(*size), "x.png")
    for other in (b"", b"<svg>", png(7, 5)[:20], b"GIF89a" + bytes(50)):
        assert refused(png_size, other, "x.png") == "x.png is not a PNG picture"


# Links ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "train.log").write_text("a line\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("a", "../outside"),
        ("a", "../outside/secret"),
        ("a", "/etc/passwd"),
        ("a", "../run2"),
        ("a", "../nothing"),
        ("checkpoints/a", "../../outside/secret"),
        (".lock", "../outside/secret"),
        ("a", "checkpoints/../../outside"),
    ],
)
def test_a_link_that_leads_out_of_the_folder(run: Path, name: str, target: str) -> None:
    (run / name).symlink_to(target)
    assert refused(check_links, run).startswith(f"{run / name} is a link that leads out of the folder, to /")


def test_a_link_behind_a_link(run: Path) -> None:
    (run / "b").symlink_to("a/secret")
    (run / "a").symlink_to("../outside")
    assert "leads out of the folder" in refused(check_links, run)


def test_links_within_the_folder_and_to_it(run: Path) -> None:
    (run / "latest").symlink_to("checkpoints")
    (run / "checkpoints" / "log").symlink_to("../train.log")
    (run / "absolute").symlink_to(run / "train.log")
    (run / "circle").symlink_to("circle")
    (run / "top").symlink_to(".")
    check_links(run)
    (run.parent / "alias").symlink_to("run")
    check_links(run.parent / "alias")


def test_a_pipe_would_keep_its_reader_waiting(run: Path) -> None:
    os.mkfifo(run / "checkpoints" / "pipe")
    assert refused(check_links, run) == f"{run}/checkpoints/pipe is neither a file nor a folder: remove it"


def test_a_path_is_shown_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "logs" / "a\nb\x1b") == r"logs/a\nb\x1b"
    assert shown(Path("logs")) == "logs"
    assert shown(tmp_path.parent) == str(tmp_path.parent)
