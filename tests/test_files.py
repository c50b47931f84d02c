from pathlib import Path

import pytest
import torch

from vaelab.files import write_atomically, write_plain


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
