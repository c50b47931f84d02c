"""Missing packages are named before an export starts, and a full disk leaves no export that loads."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from vaelab import export as exports
from vaelab import load_run
from vaelab.export import files


def test_missing_packages_are_named_first(run: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnxs" in name else find(name))
    code, _ = command(f"run={run}")
    assert code == "error: an export needs packages that are not installed (onnxscript): run pip install -e '.[export]'"
    assert not (run / "export").exists()


def test_a_full_disk_leaves_nothing_that_loads(run: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "graphs", lambda _: GRAPHS)
    assert command(f"run={run}")[0] is None
    assert load_run(run / "export").latent_dim == 3
    write = files.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == "README.md":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    assert "export/README.md cannot be read or written: No space left on device" in command(f"run={run}")[0]
    with pytest.raises(ValueError, match="export is not a run: it has no config"):
        load_run(run / "export")


GRAPHS = {"decoder.onnx": exports.Graph(b"graph", ["code"], ["image"], 2e-7)}
