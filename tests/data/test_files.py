"""Files of a data set are found, named if they are missing, downloaded from a mirror, and never replaced."""

import functools
import gzip
import hashlib
import http.server
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import ready, refused, write_idx

from vaelab.data import EMNISTDataModule, MNISTDataModule, QMNISTDataModule, files
from vaelab.errors import UserError


def test_a_file_without_checksum_is_compared_with_its_archive(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    ready(tmp_path)
    write_idx(path, np.zeros(200))
    with pytest.raises(ValueError, match=f"{path} is corrupt: it differs from what {path.name}.gz beside it holds"):
        ready(tmp_path)


def test_last_resort_can_be_forbidden(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ready(tmp_path, allow_subset=False, md5={"train-images-idx3-ubyte": "6bbc9ace" * 4})
    message = str(error.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "no mirror answers: http://127.0.0.1:9/" in message
    assert f"train-images-idx3-ubyte (md5 {'6bbc9ace' * 4})" in message
    assert "t10k-labels-idx1-ubyte.gz (md5 ec29112dd5afa0611ce80d1b7f02629c)" in message
    assert "or take 5,000 digits (data=mnist_5k) or one binary draw of all digits (data=binarized_mnist)" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dataset", ["FashionMNIST", "Unheard", "CIFAR10"])
def test_other_data_sets_have_no_last_resort(tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(
        UserError, match=f"{dataset} is not available .*: put these files into .*: train-images-idx3-ubyte"
    ):
        ready(tmp_path, dataset=dataset)


def test_some_of_the_files_are_not_replaced_by_other_data(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        UserError, match=r"put these files into \S+/MNIST/raw,[^:]*: t10k-labels-idx1-ubyte.gz \(md5 \w+\)$"
    ):
        ready(tmp_path)


def test_files_beside_their_folder_are_mentioned(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "MNIST/raw", tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=f"; files of these names are in {tmp_path} itself.: put these files into"):
        ready(tmp_path)


@pytest.mark.parametrize("form", ["{}", "{}.gz", "../{}", "../{}.gz", "gzip/{}.gz", "dot", "dot.gz"])
def test_files_are_found_where_people_put_them(data_root: Path, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "MNIST/raw"
    for path in (data_root / "MNIST/raw").iterdir():
        place = form.replace("dot", path.name.replace("-idx", ".idx")).format(path.name)
        target = (folder / place).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(path.read_bytes(), 1) if form.endswith("gz") else path.read_bytes())
        if form == "dot":
            (folder / path.name).mkdir()  # as in an archive of Kaggle
    data = ready(tmp_path)
    assert data.name == "MNIST"
    assert all(torch.equal(*pair) for pair in zip(data.splits["test"], ready(data_root).splits["test"], strict=True))


def test_a_folder_or_a_broken_link_in_the_place_of_a_file(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.unlink()
    path.mkdir()
    assert refused(ready, tmp_path) == f"{path} cannot be read (Is a directory): put a readable file in its place"
    path.rmdir()
    path.symlink_to("nowhere")
    assert (
        refused(ready, tmp_path)
        == f"{path} cannot be read (No such file or directory): put a readable file in its place"
    )


def test_addresses_of_other_data_sets() -> None:
    """The names and the checksums of the archives are torchvision's own."""
    assert files.remote("EMNIST") == (
        ("https://biometrics.nist.gov/cs_links/EMNIST/",),
        {"gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e"},
    )
    mirrors, archives = files.remote("QMNIST")
    assert mirrors == ("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",)
    assert list(archives) == [f"{name}.gz" for name in QMNISTDataModule.names]
    assert archives["qmnist-test-labels-idx2-int.gz"] == "5b5b05890a5e13444e108efe57b788aa"
    mirrors, archives = files.remote("KMNIST")
    assert mirrors == ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",)
    assert archives["t10k-labels-idx1-ubyte.gz"] == "7320c461ea6c1c855c0b718fb2a4b134"
    assert files.remote("CIFAR10") == ((), {})


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address where a local server offers its files."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirror(data_root: Path, serve: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A local mirror of the small data set, entered in torchvision with its checksums."""
    folder, url = serve
    resources = []
    for name in MNISTDataModule.names:
        archive = gzip.compress((data_root / "MNIST/raw" / name).read_bytes())
        (folder / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return url


def test_missing_files_are_downloaded_from_a_mirror_that_answers(mirror: str, tmp_path: Path) -> None:
    assert files.reachable(tuple(torchvision.datasets.MNIST.mirrors), "train-images-idx3-ubyte.gz") == (mirror,)
    data = ready(tmp_path)
    assert data.name == "MNIST"
    assert list(data.protocol["images"].values()) == [500, 100, 200]


def test_archives_that_lie_there_are_kept(mirror: str, data_root: Path, tmp_path: Path) -> None:
    """Sound archives of another origin need no network, and a damaged one is named. Neither is replaced."""
    assert mirror
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for path in (data_root / "MNIST/raw").iterdir():
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1, mtime=5))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    md5 = {
        name: hashlib.md5((data_root / "MNIST/raw" / name).read_bytes()).hexdigest() for name in MNISTDataModule.names
    }
    assert ready(tmp_path, md5=md5).name == "MNIST"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(before[path][:-9])
    assert refused(ready, tmp_path).startswith(f"{path} is corrupt: its archive is damaged")
    assert path.read_bytes() == before[path][:-9]
    other = gzip.compress((data_root / "MNIST/raw/train-labels-idx1-ubyte").read_bytes().replace(b"\7", b"\1"))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(other)
    path.write_bytes(before[path])
    assert "bytes have md5" in refused(lambda: ready(tmp_path, md5=md5))


def test_only_missing_files_are_downloaded(mirror: str, data_root: Path, tmp_path: Path) -> None:
    assert mirror
    folder = tmp_path / "MNIST/raw"
    shutil.copytree(data_root / "MNIST/raw", folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert ready(tmp_path).name == "MNIST"
    new = {path.name for path in folder.iterdir()} - {path.name for path in before}
    assert new == {"t10k-labels-idx1-ubyte.gz", ".lock"}
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("content", ["<html>Sign in</html>", None])
def test_a_mirror_with_wrong_content_is_refused(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A network that asks for a password gives web pages; another mirror gives an archive with another checksum."""
    if content:
        for path in (tmp_path / "mirror").iterdir():
            path.write_text(content)
    else:
        wrong = [(name, "0" * 32) for name, _ in torchvision.datasets.MNIST.resources]
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", wrong)
    message = refused(lambda: ready(tmp_path, allow_subset=False))
    assert f"({mirror}train-images-idx3-ubyte.gz: File not found or corrupted.)" in message
    assert {path.name for path in (tmp_path / "MNIST/raw").iterdir()} <= {".lock"}
    assert ready(tmp_path).name == "MNIST-5k"


def test_other_archives_are_downloaded(
    serve: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMNIST has one archive at one address, and QMNIST an address for each archive."""
    folder, url = serve
    images, labels = np.zeros((5, 28, 28)), np.arange(1, 41).reshape(5, 8) % 6
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for part in ("train", "test"):
            for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels[:, 0])):
                name = f"emnist-letters-{part}-{kind}"
                write_idx(tmp_path / name, array)
                archive.writestr(f"gzip/{name}.gz", gzip.compress((tmp_path / name).read_bytes()))
    monkeypatch.setattr(torchvision.datasets.EMNIST, "url", f"{url}gzip.zip")
    monkeypatch.setattr(torchvision.datasets.EMNIST, "md5", md5_of(folder / "gzip.zip"))
    data = EMNISTDataModule(str(tmp_path), "EMNIST-letters", num_classes=26, val_size=1)
    data.setup()
    assert data.splits["test"][1].tolist() == [0, 2, 4, 0, 2]
    assert {path.name for path in (tmp_path / "EMNIST/raw").iterdir()} == {"gzip.zip", ".lock"}

    resources: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name, array in zip(QMNISTDataModule.names, (images, labels, images, labels), strict=True):
        write_idx(tmp_path / name, array)
        (folder / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        resources[name.split("-")[1]].append((f"{url}{name}.gz", md5_of(folder / f"{name}.gz")))
    monkeypatch.setattr(torchvision.datasets.QMNIST, "resources", resources)
    data = QMNISTDataModule(str(tmp_path), val_size=1)
    data.setup()
    assert data.splits["test"][1].tolist() == [1, 3, 5, 1, 3]


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_an_archive_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of gzip.zip is read there; an archive without it is named, and a download does not replace it."""
    folder = tmp_path / "EMNIST/raw"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        archive.writestr("gzip/emnist-digits-test-labels-idx1-ubyte.gz", gzip.compress(b"content"))
    packed = files.find(folder, "emnist-digits-test-labels-idx1-ubyte")
    assert packed is not None
    assert gzip.decompress(packed.read_bytes()) == b"content"
    assert files.find(folder, "emnist-digits-test-images-idx3-ubyte") is None
    monkeypatch.setattr(files, "reachable", functools.cache(lambda mirrors, _: mirrors))
    with pytest.raises(
        UserError, match=r"\(an archive lacks files\): .*test-images-idx3-ubyte .*, or all in gzip.zip \(md5 58c8"
    ):
        EMNISTDataModule(str(tmp_path), "EMNIST-digits", num_classes=10).prepare_data()
    (folder / "gzip.zip").write_text("<html>")
    assert refused(files.find, folder, "x").startswith(f"{folder / 'gzip.zip'} is corrupt: it is not a zip archive;")


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
