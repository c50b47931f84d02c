"""The released classifier names digits of all kinds of pixels, and a new one learns, is saved and is found again."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import refused

from vaelab.data import BinarizedMNISTDataModule
from vaelab.evaluation import classifier

Digits = tuple[torch.Tensor, torch.Tensor]


def bars(count: int) -> Digits:
    """Images of 12 x 12 pixels with a grey bar, which lies (class 0) or stands (class 1)."""
    generator = torch.Generator().manual_seed(count)
    images = torch.zeros(count, 1, 12, 12, dtype=torch.uint8)
    for i, place in enumerate(torch.randint(3, 8, (count,), generator=generator)):
        images[i, 0, place : place + 2] = 230
    labels = torch.arange(count) % 2
    return torch.where(labels.view(-1, 1, 1, 1) == 1, images.mT, images), labels


def test_the_released_weights_and_their_record(digits: Digits) -> None:
    model, record = classifier.load(classifier.DIGITS)
    content = classifier.DIGITS.read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(content) < 400_000
    assert record["images"] == {"train": 60_000, "test": 10_000}
    assert record["accuracy"]["grey levels"] >= 0.993
    assert record["accuracy"]["binary draws"] >= 0.99
    assert model.name == f"MNIST {record['sha256'][:12]}"
    images, labels = (part[:1000] for part in digits)
    found = classifier.accuracy(model, images, labels)
    assert list(found) == ["grey levels", "binary draws", "threshold"] == list(record["accuracy"])
    assert min(found.values()) > 0.98
    assert model.features(images[:3].float() / 255).shape == (3, 64)


def test_the_released_weights_name_the_published_binary_digits() -> None:
    images, labels = BinarizedMNISTDataModule().read().test
    assert labels is not None
    found = classifier.accuracy(classifier.load(classifier.DIGITS)[0], images[:1000], labels[:1000])
    assert found["grey levels"] == found["binary draws"] == found["threshold"] > 0.98  # the pixels are binary already


def test_a_classifier_learns_and_the_seed_decides() -> None:
    images, labels = bars(400)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    seen: list[int] = []
    model = classifier.fit(images, labels, epochs=6, progress=seen.append, batch_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(seen) == 6 * 384  # whole batches only
    assert not model.training
    assert min(classifier.accuracy(model, *bars(200)).values()) > 0.95
    torch.rand(3)
    first, again, other = (
        classifier.fit(images[:64], labels[:64], 1, seed, batch_size=32).state_dict()["linear.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_images_move_a_little_and_half_of_them_are_binary() -> None:
    torch.manual_seed(0)
    square = torch.zeros(400, 1, 28, 28)
    square[..., 10:18, 10:18] = 0.5
    found = classifier.augmented(square)
    assert 0 <= found.min() < found.max() <= 1
    binary = ((found == 0) | (found == 1)).flatten(1).all(1).float().mean()
    assert binary == pytest.approx(classifier.DRAWN, abs=0.08)
    grey = found[~((found == 0) | (found == 1)).flatten(1).all(1)]
    columns = torch.arange(28.0)
    centres = (grey.sum((1, 2)) * columns).sum(1) / grey.sum((1, 2, 3))
    assert 0.5 < centres.std() < 2.5  # the most is 0.15 * 14 = 2.1 pixels
    assert centres.sub(13.5).abs().max() < 3
    white = classifier.augmented(torch.ones(9, 3, 8, 10))  # the border goes on outside
    torch.testing.assert_close(white, torch.ones_like(white))


def test_a_classifier_is_saved_with_its_record(tmp_path: Path) -> None:
    model, path = classifier.Classifier(3, 5, 4).eval(), tmp_path / "new" / "c.safetensors"
    classifier.save(model, path, {"dataset": "D", "epochs": 3})
    again, record = classifier.load(path)
    x = torch.rand(2, 3, 9, 9)
    assert torch.equal(again(x), model(x))
    assert again.name == f"D {record['sha256'][:12]}"
    assert json.loads(path.with_suffix(".json").read_text()) == record
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    assert "is damaged or missing: delete both, and classify.py trains it again" in refused(classifier.load, path)
    path.write_bytes(whole)
    for text in ("{", "{}", "3"):
        path.with_suffix(".json").write_text(text)
        assert "is damaged or missing" in refused(classifier.load, path)
    path.with_suffix(".json").write_text(json.dumps({"sha256": record["sha256"]}))  # it names no data set
    assert "is damaged or missing" in refused(classifier.load, path)
    path.with_suffix(".json").unlink()
    assert "or the record beside it is damaged or missing: delete both" in refused(classifier.load, path)


def test_the_file_of_a_classifier_depends_on_the_images_and_labels() -> None:
    images, labels = bars(6)

    def place(name: str, images: torch.Tensor, labels: torch.Tensor | None) -> Path:
        read = (name, (images, labels), (images, labels), None)
        data = SimpleNamespace(name=name, image_shape=tuple(images.shape[1:]), read=lambda: read)
        return classifier.place(data, Path("cache"))

    first = place("bars", images, labels)
    assert first == place("bars", images.clone(), labels)
    assert first.parent == Path("cache", "classifiers")
    assert first.name.startswith("bars-")
    other = images.clone()
    other[3, 0, 0, 0] += 1
    paths = {first, place("bars", other, labels), place("bars", images, 1 - labels), place("b", images, labels)}
    assert len({path.name for path in paths}) == 4
    assert place("MNIST", torch.zeros(2, 1, 28, 28), None) == classifier.DIGITS
    assert place("MNIST", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels[:2]) != classifier.DIGITS


def test_what_images_lack_for_a_classifier() -> None:
    images, labels = bars(6)

    def lacking(shape: tuple[int, ...], *labels: torch.Tensor | None) -> str | None:
        splits = {split: (images, each) for split, each in zip(("train", "test"), labels, strict=True)}
        return classifier.lacking(SimpleNamespace(splits=splits, image_shape=shape))

    assert lacking((1, 8, 12), labels, labels) is None
    assert lacking((1, 12, 12), labels, None) == "the images have no labels"
    assert lacking((3, 12, 7), labels, labels) == "the images have 12 x 7 pixels, fewer than 8 x 8"
