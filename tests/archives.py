"""Small files in the formats of CIFAR-10, SVHN and Omniglot. Their checksums replace those of torchvision."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def colours(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of six batches of four images, in torchvision's format. Batch i has the label i."""
    source: Any = torchvision.datasets.CIFAR10
    sums = {}
    with tarfile.open(root / source.filename, "w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]):
            batch = {"data": colours(4, i).reshape(4, -1), "labels": [i] * 4, "label_names": list("abcdefghij")}
            content = pickle.dumps(batch)
            entry = tarfile.TarInfo(f"{source.base_folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(source, "tgz_md5", md5(root / source.filename))
    monkeypatch.setattr(source, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(source, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums["batches.meta"]})


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two MAT files, in which the digit 0 has the label 10."""
    lists: dict[str, Any] = {}
    for seed, (split, count) in enumerate({"train": 20, "test": 6}.items()):
        name, labels = f"{split}_32x32.mat", np.arange(count)[:, None] % 10 + 1
        scipy.io.savemat(root / name, {"X": colours(count, seed).transpose(2, 3, 1, 0), "y": labels.astype(np.uint8)})
        lists[split] = [torchvision.datasets.SVHN.split_list[split][0], name, md5(root / name)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)


def omniglot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two archives of 105 x 105 images. Each image is white, with a black square of its own width in the middle."""
    (root / "omniglot-py").mkdir()
    sums = {}
    for name, widths in {"images_background": range(10, 30), "images_evaluation": range(40, 46)}.items():
        path = root / "omniglot-py" / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for width in widths:
                image, content = Image.new("1", (105, 105), 1), io.BytesIO()
                image.paste(0, (52 - width, 52 - width, 53 + width, 53 + width))
                image.save(content, "PNG")
                archive.writestr(f"{name}/Alphabet/character01/{width}.png", content.getvalue())
        sums[name] = md5(path)
    monkeypatch.setattr(torchvision.datasets.Omniglot, "zips_md5", sums)


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "CIFAR10": cifar10,
    "SVHN": svhn,
    "Omniglot": omniglot,
}
