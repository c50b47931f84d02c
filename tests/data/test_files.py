"""Damaged and missing files of a data set are named or downloaded from a mirror."""

import gzip
import http.server
import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from conftest import ready, write_idx

from vaelab.data import files
from vaelab.errors import UserError


def test_a_truncated_file_is_named_and_kept(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    size = path.stat().st_size
    with pytest.raises(ValueError, match=f"{path} is corrupt: {size:,} bytes, but an IDX file .* has {size + 100:,}"):
        ready(tmp_path)
    assert path.stat().st_size == size


def test_a_corrupt_file_is_named_by_its_checksum(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    labels = np.zeros(200)
    good = write_idx(path, labels)
    labels[7] = 1
    bad = write_idx(path, labels)
    with pytest.raises(ValueError, match=f"{path} is corrupt: its 208 bytes have md5 {bad} instead of {good}; move it"):
        ready(tmp_path, md5={path.name: good})
    assert path.exists()


def test_a_file_without_checksum_is_compared_with_its_archive(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    ready(tmp_path)
    write_idx(path, np.zeros(200))
    with pytest.raises(ValueError, match=f"{path} is corrupt: it differs from what {path.name}.gz beside it holds"):
        ready(tmp_path)


def test_images_and_labels_must_agree(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.zeros(599))
    with pytest.raises(ValueError, match="600 train images, but 599 labels"):
        ready(tmp_path)


def test_last_resort_can_be_forbidden(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ready(tmp_path, allow_subset=False, md5={"train-images-idx3-ubyte": "6bbc9ace"})
    message = str(error.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "no mirror answers: http://127.0.0.1:9/" in message
    assert "train-images-idx3-ubyte (md5 6bbc9ace)" in message
    assert "t10k-labels-idx1-ubyte.gz (md5 ec29112dd5afa0611ce80d1b7f02629c)" in message
    assert "data.allow_subset=true" in message


@pytest.mark.parametrize("dataset", ["FashionMNIST", "Unheard"])
def test_other_data_sets_have_no_last_resort(tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(
        UserError, match=f"{dataset} is not available .*: put these files into .*: train-images-idx3-ubyte"
    ):
        ready(tmp_path, dataset=dataset)


@pytest.fixture
def mirror(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local mirror of the small data set, entered in torchvision with its checksums."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name in files.FILES:
        archive = gzip.compress((data_root / "MNIST/raw" / name).read_bytes())
        (folder / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", files.hashlib.md5(archive).hexdigest()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    yield url
    server.shutdown()
    server.server_close()


def test_missing_files_are_downloaded_from_a_mirror_that_answers(mirror: str, tmp_path: Path) -> None:
    assert files.reachable(tuple(torchvision.datasets.MNIST.mirrors), f"{files.FILES[0]}.gz") == (mirror,)
    data = ready(tmp_path)
    assert data.name == "MNIST"
    assert list(data.protocol["images"].values()) == [500, 100, 200]


def test_archives_that_lie_there_are_unpacked_without_a_network(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mirror
    shutil.copytree(tmp_path / "mirror", tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert ready(tmp_path).name == "MNIST"


def test_a_mirror_with_wrong_content_is_refused(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert mirror
    wrong = [(name, "0" * 32) for name, _ in torchvision.datasets.MNIST.resources]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", wrong)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UserError, match="MNIST is not available"):
        ready(tmp_path, allow_subset=False)


def test_a_network_that_swallows_packets_costs_seconds_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PROBE_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mirrors = tuple(f"http://127.0.0.1:{silent.getsockname()[1]}/{k}/" for k in range(3))
        start = time.monotonic()
        assert files.reachable(mirrors, "file") == ()
        assert 0.4 < time.monotonic() - start < 1.5
        start = time.monotonic()
        assert files.reachable(mirrors, "file") == ()
        assert time.monotonic() - start < 0.1
