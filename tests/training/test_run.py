"""A whole run writes its results, and a resumed run equals an uninterrupted one."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics, stop_at
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import runs
from vaelab.training import Interrupted, tensorboard


def test_validation_has_the_training_s_objective_at_its_final_weight(config: Compose, tmp_path: Path) -> None:
    """Training uses the small beta of an early warm-up, but validation and test use its final value."""
    beta = ["objective/beta=linear", "objective.beta.steps=1000", "objective.beta.end=3"]
    train(config(*beta), tmp_path)
    content = metrics(tmp_path)
    for split in ("val", "test"):
        means = content[split]
        assert means["loss"] == pytest.approx(means["distortion"] + 3 * means["rate"])
        assert means["elbo"] == pytest.approx(-means["distortion"] - means["rate"])
    assert 0 < content["train"]["loss"] - content["train"]["distortion"] < 0.1 * content["train"]["rate"]


def test_same_seed_same_run_and_seed_zero_is_a_seed(config: Compose, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        train(config(f"seed={seed}"), tmp_path / name)
    a, b, c = (checkpoint(tmp_path / name)["state_dict"] for name in "abc")
    assert equal(a, b)
    assert not equal(a, c)


def test_the_last_resort_is_named_everywhere(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vaelab.data import files

    monkeypatch.setattr(files, "reachable", lambda *_: ())
    folder = tmp_path / "run"
    folder.mkdir()
    with caplog.at_level(logging.INFO, "vaelab"):
        train(config(f"data.root={tmp_path}"), folder)
    assert metrics(folder)["protocol"]["dataset"] == "MNIST-5k"
    assert runs.saved_config(folder).data.used == "MNIST-5k"
    assert caplog.messages[-1].startswith("done")
    assert "on MNIST-5k (4,000 / 500 / 500 images" in caplog.messages[-1]
    assert caplog.text.count("This is not the full MNIST") == 1
    chosen = EventAccumulator(str(folder)).Reload().summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"MNIST-5k" in chosen


def test_grey_level_bernoulli_is_said_to_compare_with_nothing(
    config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vaelab"):
        train(config("data.binarization=none"), tmp_path)
    assert caplog.text.count("A Bernoulli likelihood on grey levels is not a density") == 1


@pytest.mark.parametrize("extra", ["scheduler=plateau", "scheduler=cosine", "trainer.limit_val_batches=0"])
def test_nothing_needs_validation_images(config: Compose, tmp_path: Path, extra: str) -> None:
    size = "data.val_size=100" if "limit_val" in extra else "data.val_size=0"
    metric = train(config(size, extra), tmp_path)
    assert metric == metrics(tmp_path)["train"]["loss"]


def test_early_stopping_watches_what_picks_the_best_weights(config: Compose, tmp_path: Path) -> None:
    """The adversarial objective watches the distortion, because its loss does not rank the weights."""
    watched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EarlyStopping, "on_train_end", lambda self, *_: watched.append(self.monitor), raising=False)
        train(config("objective=adversarial", "callbacks=early_stopping"), tmp_path)
    assert watched == ["val/distortion"]


def test_early_stopping_needs_validation_images(config: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has monitor=auto, but trainer.limit_val_batches=0 leaves no validation"):
        train(config("callbacks=early_stopping", "trainer.limit_val_batches=0"), tmp_path)
    with pytest.raises(
        ValueError, match=r"callbacks.early_stopping has monitor=val/elbo, but data.val_size=0 leaves no"
    ):
        train(
            config("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/elbo", "data.val_size=0"), tmp_path
        )


PLATEAU = [
    "optimizer=adamw",
    "scheduler=plateau",
    "scheduler.scheduler.patience=0",
    "+scheduler.scheduler.threshold=1.0",
]


SWA = [
    "+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging",
    "+callbacks.swa.swa_lrs=0.01",
    "+callbacks.swa.swa_epoch_start=1",
]


ONE_CYCLE = [
    "scheduler=cosine",
    "scheduler.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
    "~scheduler.scheduler.min_ratio",
    "+scheduler.scheduler.max_lr=0.01",
]


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize(
    ("step", "overrides"),  # nine steps an epoch
    [
        (2, ["optimizer=adam"]),
        (8, ["optimizer=adam"]),  # the last step of an epoch
        (9, ["optimizer=adam"]),
        (13, ["optimizer=sgd", "scheduler=cosine"]),
        (8, PLATEAU),
        (11, PLATEAU),
        (7, ["objective/beta=linear", "objective.beta.steps=9", "trainer.limit_train_batches=7"]),
        (3, ["data.val_size=0", "trainer.accumulate_grad_batches=2"]),
        (12, ["optimizer=sgd", "optimizer.lr=0.01", "trainer.gradient_clip_val=1"]),
        (5, ["model.encoder.norm=batch", "model.decoder.norm=batch"]),
        (14, ["objective=adversarial", "callbacks=early_stopping"]),
        (10, ["trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=2", "scheduler=plateau"]),
        (7, ["trainer.precision=bf16-mixed", "model/posterior=flow"]),
        (2, ["trainer.val_check_interval=3"]),  # a validation follows this step
        (14, ["trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"]),
        (5, ["callbacks=ema", "callbacks.ema.decay=0.9", "model.encoder.norm=batch"]),
        (13, [*SWA, "scheduler=cosine"]),
        (10, SWA),
        (7, ["trainer.max_steps=15", "trainer.limit_train_batches=6"]),
        (4, ["trainer.limit_train_batches=0.5"]),
        (8, [*ONE_CYCLE, "+scheduler.scheduler.total_steps=27"]),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, overrides: list[str]
) -> None:
    settings = ["trainer.max_epochs=3", "trainer.limit_train_batches=null", "data.batch_size=60", *overrides]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    train(config(*settings), whole)
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted) as stop:
            train(config(*settings), parts)
    assert stop.value.code == 130
    assert checkpoint(parts)["global_step"] >= step
    assert not (parts / "metrics.json").exists()
    cfg = runs.saved_config(parts)
    cfg.resume = str(parts)
    train(cfg, parts)
    ours, theirs = checkpoint(parts), checkpoint(whole)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert equal(ours[part], theirs[part]), part
    kept = [torch.load(folder / "weights.pt", weights_only=True) for folder in (parts, whole)]
    assert equal(*map(dict, kept))
    assert equal(ours["vaelab"]["ranks"], theirs["vaelab"]["ranks"])
    for name, value in metrics(whole)["train"].items():
        assert "second" in name or metrics(parts)["train"][name] == pytest.approx(value, rel=1e-6)
    assert metrics(parts)["test"] == metrics(whole)["test"]
    points, expected = (EventAccumulator(str(folder)).Reload() for folder in (parts, whole))
    for tag in ("train/loss", "train/rate", "train/lr", "val/loss"):
        if tag in expected.Tags()["scalars"]:
            values = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in expected.Scalars(tag)]
            assert [(event.step, event.value) for event in points.Scalars(tag)] == values
    assert len(json.loads((parts / "run.json").read_text())["starts"]) == 2


def test_a_run_that_is_stopped_before_its_last_curves_is_not_complete(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise resuming would refuse it, and the row of the HParams tab would be missing for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "add_hyperparameters", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(config("trainer.max_epochs=1"), tmp_path)
    cfg = runs.saved_config(tmp_path)
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert metrics(tmp_path)["epochs"] == 1
    board = EventAccumulator(str(tmp_path)).Reload()
    assert "weights/val_loss" in board.Tags()["scalars"]


def test_resuming_with_more_epochs_equals_a_longer_run(config: Compose, tmp_path: Path) -> None:
    long, extended = tmp_path / "long", tmp_path / "extended"
    for folder, epochs in ((long, 4), (extended, 2)):
        folder.mkdir()
        train(config(f"trainer.max_epochs={epochs}"), folder)
    cfg = runs.saved_config(extended, ["trainer.max_epochs=4"])
    cfg.resume = str(extended)
    train(cfg, extended)
    assert equal(checkpoint(long)["state_dict"], checkpoint(extended)["state_dict"])
    assert metrics(long)["test"] == metrics(extended)["test"]
    curve = EventAccumulator(str(extended)).Reload().Scalars("val/loss")
    assert [event.step for event in curve] == [3, 6, 9, 12]


def test_overrides_of_the_optimiser_rule_when_resuming(config: Compose, tmp_path: Path) -> None:
    train(config(), tmp_path)
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3", "optimizer.lr=0.002"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.002


def test_a_schedule_keeps_its_learning_rate_when_resuming(config: Compose, tmp_path: Path) -> None:
    train(config("scheduler=cosine"), tmp_path)
    with pytest.raises(ValueError, match=r"optimizer.lr was 0.001 in .* cannot become 0.002: .* a scheduler sets it"):
        runs.saved_config(tmp_path, ["trainer.max_epochs=3", "optimizer.lr=0.002"])


def test_weights_of_another_model_are_refused_before_anything_is_written(config: Compose, tmp_path: Path) -> None:
    train(config(), tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("latent_dim: 20", "latent_dim: 3"))
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3"])
    cfg.resume = str(tmp_path)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match="holds the weights of another model than"):
        train(cfg, tmp_path)
    assert (tmp_path / "run.json").read_text() == before
