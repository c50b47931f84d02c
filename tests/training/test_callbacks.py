"""The pictures callback writes its images and does not change the training."""

import itertools
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, Compose, checkpoint, equal, refused
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab.training import Pictures, callbacks


def test_pictures_are_in_tensorboard_and_on_disk(finished: Path, events: EventAccumulator) -> None:
    names = {"reconstructions", "samples", "manifold", "codes"}
    assert set(events.Tags()["images"]) == {f"views/{name}" for name in names}
    assert [event.step for event in events.Images("views/samples")] == [0, 10, 20]
    for name in names:
        with Image.open(finished / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
            assert picture.mode == "RGB"
            assert len(picture.convert("L").getcolors()) > 20


def test_a_run_without_a_bar_speaks_each_minute(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock of this test advances by half a minute whenever it is read."""
    clock = itertools.count(0, 30)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: float(next(clock)))
    train(config("trainer.max_epochs=1", "trainer.limit_train_batches=9", "callbacks.pictures.count=0"), tmp_path)
    lines = [record.getMessage() for record in caplog.records if "goes on" in record.getMessage()]
    assert sum(line.startswith("epoch 1, step ") and "training goes on" in line for line in lines) >= 3
    assert any("train/loss" in line for line in lines)
    assert any(line.startswith("epoch 1, ") and "test goes on" in line for line in lines)  # not epoch 2


def test_numbers_of_pictures_are_checked() -> None:
    for setting in ({"count": -1}, {"num_reconstructions": 0}, {"num_samples": 0}):
        (name,) = setting
        assert f"{name}=" in refused(partial(Pictures, **setting))
    assert Pictures(count=0).count == 0


def test_pictures_do_not_change_the_training(config: Compose, tmp_path: Path) -> None:
    for name, count in (("few", 0), ("many", 100)):
        (tmp_path / name).mkdir()
        train(config(f"callbacks.pictures.count={count}"), tmp_path / name)
    assert equal(checkpoint(tmp_path / "few")["state_dict"], checkpoint(tmp_path / "many")["state_dict"])


def test_pictures_of_each_time_are_kept(config: Compose, tmp_path: Path) -> None:
    """Four epochs and two pictures beside the first; a run that goes on does not change what is there."""
    changes = ("trainer.limit_train_batches=3", "callbacks.pictures.count=2", "callbacks.pictures.keep=true")
    train(config("trainer.max_epochs=4", *changes), tmp_path)
    pictures = tmp_path / "pictures"
    kept = {path.parent.name: path.read_bytes() for path in sorted(pictures.glob("epoch_*/samples.png"))}
    assert list(kept) == ["epoch_000", "epoch_002", "epoch_004"]
    assert len({*kept.values()}) == 3
    assert kept["epoch_004"] == (pictures / "samples.png").read_bytes()
    assert {path.name for path in (pictures / "epoch_000").iterdir()} == {path.name for path in pictures.glob("*.png")}
    (pictures / "epoch_004" / "samples.png").write_bytes(b"as it was")
    longer = config("trainer.max_epochs=6", *changes)
    longer.resume = str(tmp_path)
    train(longer, tmp_path)
    assert (pictures / "epoch_004" / "samples.png").read_bytes() == b"as it was"
    assert (pictures / "epoch_006" / "samples.png").exists()


def test_the_tutorial_keeps_its_pictures_each_ten_epochs() -> None:
    settings = OmegaConf.load(ROOT / "configs" / "experiment" / "tutorial.yaml")
    assert settings.trainer.max_epochs / settings.callbacks.pictures.count == 10
    assert settings.callbacks.pictures.keep
