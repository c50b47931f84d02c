"""The published binary draw of MNIST has the checksums of the original files, and its protocol has a name."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command

from vaelab import runs
from vaelab.data import BinarizedMNISTDataModule, binarized
from vaelab.errors import UserError

DIGITS = {  # images of the digits 0 to 9
    "train": [4946, 5642, 4924, 5091, 4865, 4515, 4929, 5219, 4888, 4981],
    "val": [977, 1100, 1034, 1040, 977, 906, 989, 1046, 963, 968],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


def ready(root: Path, **settings: object) -> BinarizedMNISTDataModule:
    data = BinarizedMNISTDataModule(str(root), **settings)
    data.setup()
    return data


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> BinarizedMNISTDataModule:
    return ready(tmp_path_factory.mktemp("nowhere"))


def as_text(images: torch.Tensor) -> bytes:
    """Images (N, 1, 28, 28) of 0 and 255 as the original files have them: "0 1 ... 0" in each line."""
    rows = images.flatten(1).numpy() // 255 + ord("0")
    text = np.stack([rows, np.full_like(rows, ord(" "))], axis=2)
    text[:, -1, 1] = ord("\n")
    return text.tobytes()


def test_the_images_are_those_of_the_original_files(published: BinarizedMNISTDataModule) -> None:
    train, val, test = (images for images, _ in published.splits.values())
    in_the_file = test[binarized.test_order().argsort()]
    sums = [hashlib.sha256(as_text(images)).hexdigest() for images in (train, val, in_the_file)]
    assert sums == [
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    ]


def test_labels_are_counted_and_fit_the_images(published: BinarizedMNISTDataModule, digits: tuple) -> None:
    assert {name: labels.bincount().tolist() for name, (_, labels) in published.splits.items()} == DIGITS
    means = torch.stack([digits[0][digits[1] == k].float().mean(0).flatten() for k in range(10)])  # of grey images
    images, labels = published.splits["test"]
    nearest = torch.cdist(images.flatten(1).float(), means).argmin(1)
    assert (nearest == labels).float().mean() > 0.75  # chance is 0.1


def test_the_first_test_images_are_of_all_digits(published: BinarizedMNISTDataModule) -> None:
    """The labels of the file are sorted, so that its first images are all zeros."""
    _, labels = published.splits["test"]
    assert labels[binarized.test_order().argsort()].equal(labels.sort().values)
    for count in (100, 1000):
        found, whole = labels[:count].bincount(minlength=10) / count, labels.bincount() / len(labels)
        assert (found - whole).abs().max() < 4 * (0.1 * 0.9 / count) ** 0.5


def test_the_protocol(published: BinarizedMNISTDataModule) -> None:
    assert published.protocol == {
        "dataset": "BinarizedMNIST",
        "images": {"train": 50_000, "val": 10_000, "test": 10_000},
        "binarization": dict.fromkeys(("train", "val", "test"), "published static"),
    }
    assert published.description.startswith("BinarizedMNIST (50,000 / 10,000 / 10,000 images")
    assert published.description.endswith("binarization published static")
    (first, _), (second, _) = (next(iter(published.val_dataloader())) for _ in range(2))
    assert torch.equal(first, second)
    assert first.unique().tolist() == [0, 1]


def test_sizes(published: BinarizedMNISTDataModule, tmp_path: Path) -> None:
    fewer = ready(tmp_path, train_size=70, val_size=0)
    assert list(fewer.protocol["images"].values()) == [70, 0, 10_000]
    assert torch.equal(fewer.splits["train"][0], published.splits["train"][0][:70])
    with pytest.raises(UserError, match=r"data.train_size=50001, but BinarizedMNIST has 50,000 training images"):
        ready(tmp_path, train_size=50_001)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"val_size": 5000}, r"^val_size=5000: .* has its own validation images: set 10000, or 0 to leave"),
        (
            {"binarization": "dynamic"},
            r"^binarization=dynamic: BinarizedMNIST holds binary pixels, so .* is published;",
        ),
        ({"dataset": "MNIST"}, r"^dataset=MNIST: choose one of BinarizedMNIST$"),
    ],
)
def test_settings_that_the_published_file_excludes(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BinarizedMNISTDataModule(**settings)


def test_original_files_are_read(
    published: BinarizedMNISTDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "BinarizedMNIST").mkdir()
    path = tmp_path / "BinarizedMNIST" / "binarized_mnist_test.amat"
    text = as_text(published.splits["test"][0][binarized.test_order().argsort()])
    path.write_bytes(text)
    read: list[Path] = []
    original = binarized.read_text
    monkeypatch.setattr(binarized, "read_text", lambda *args: [read.append(args[0]), original(*args)][1])
    same = ready(tmp_path)
    assert read == [path]
    for split, (images, labels) in published.splits.items():
        assert torch.equal(same.splits[split][0], images)
        assert torch.equal(same.splits[split][1], labels)
    path.write_bytes(text[:-1])
    with pytest.raises(UserError, match=rf"^{path} has 15,679,999 bytes instead of 15,680,000: replace it"):
        ready(tmp_path)
    path.write_bytes(b"1" + text[1:])
    with pytest.raises(UserError, match=rf"^{path} has SHA-256 [0-9a-f]{{64}} instead of e6687bfea3f8\w+: replace it"):
        ready(tmp_path)


def test_a_run_records_it_and_opens_again(command: Command) -> None:
    run = command.folder / "run"
    short = ["trainer.max_steps=2", "data.train_size=300", f"hydra.run.dir={run}", "trainer.accelerator=cpu"]
    assert command("data=binarized_mnist", f"data.root={command.folder}", *short, small=False)[0] is None
    recorded = json.loads((run / "metrics.json").read_text())["protocol"]
    assert recorded["images"] == {"train": 300, "val": 10_000, "test": 10_000}
    assert recorded["binarization"]["test"] == "published static"
    opened = runs.open_run(str(run), str(command.folder / "elsewhere"))
    assert opened.data.protocol == recorded
    assert opened.cfg.data.used == "BinarizedMNIST"
