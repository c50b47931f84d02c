"""Metrics are means per image over windows and epochs, and the first loss that is not finite is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Compose, checkpoint

from train import train
from vaelab.training import NonFiniteLossError, VAEModule
from vaelab.training.metrics import Metrics

ONE = SimpleNamespace(world_size=1)


def add(metrics: Metrics, step: int, loss: list[float], split: str = "train") -> None:
    values = torch.tensor(loss)
    metrics.add(split, {"loss": values, "rate": 2 * values}, torch.tensor(float(step)))


def test_means_are_per_image_over_window_and_epoch() -> None:
    """Each batch counts in proportion to its number of images."""
    metrics = Metrics()
    add(metrics, 0, [1.0, 2.0, 3.0])
    add(metrics, 1, [6.0])
    assert metrics.end_window() == ({"train/loss": 3.0, "train/rate": 6.0}, 4.0)
    assert metrics.end_window() == ({}, 0.0)
    add(metrics, 2, [9.0])
    assert metrics.end_window() == ({"train/loss": 9.0, "train/rate": 18.0}, 1.0)
    assert metrics.end_epoch("train", ONE) == {"train/loss": 21 / 5, "train/rate": 42 / 5}
    assert metrics.latest["train/loss"] == 21 / 5
    add(metrics, 3, [5.0])
    assert metrics.end_epoch("train", ONE) == {"train/loss": 5.0, "train/rate": 10.0}


def test_reading_for_a_checkpoint_ends_no_window() -> None:
    metrics = Metrics()
    add(metrics, 0, [1.0])
    metrics.sums["train"].read()
    add(metrics, 1, [3.0])
    assert metrics.end_window()[0]["train/loss"] == 2.0


def test_a_read_at_any_step_changes_no_mean() -> None:
    """Sums in float32 would round differently, so a resumed run would have other means than one without a stop."""
    losses, found = (100 + 10 * torch.randn(50, 128, generator=torch.Generator().manual_seed(0))).tolist(), set()
    for stop in (None, 7, 23, 49):
        metrics = Metrics()
        for step, loss in enumerate(losses):
            add(metrics, step, loss)
            if step == stop:
                metrics.sums["train"].read()
        found.add(metrics.epoch("train", ONE)["train/loss"])
    assert len(found) == 1


def test_splits_are_apart() -> None:
    metrics = Metrics()
    add(metrics, 0, [1.0])
    add(metrics, 0, [5.0], "val")
    assert metrics.end_epoch("val", ONE)["val/loss"] == 5.0
    assert metrics.end_window()[0]["train/loss"] == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_step_is_named_with_its_terms(bad: float) -> None:
    """Later steps, finite or not, do not change the message."""
    metrics = Metrics()
    for step, loss in enumerate(([1.0, 1.0], [2.0, 2.0], [4.0, bad], [float("nan"), 1.0], [5.0, 5.0]), 40):
        add(metrics, step, loss)
    with pytest.raises(NonFiniteLossError) as error:
        metrics.end_window()
    assert str(error.value).startswith(f"the loss is not a finite number at step 43 (loss {bad:g}, rate {bad:g})")


def test_a_first_step_that_is_bad_does_not_blame_the_learning_rate() -> None:
    metrics = Metrics()
    add(metrics, 0, [float("inf")])
    with pytest.raises(
        NonFiniteLossError, match=r"at step 1 .*; the weights are still those of the start, so a setting"
    ):
        metrics.end_window()


def test_opposite_infinities_do_not_cancel() -> None:
    metrics = Metrics()
    add(metrics, 0, [float("inf")])
    add(metrics, 1, [-float("inf")])
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(loss inf"):
        metrics.end_window()


def test_add_keeps_its_tensors_where_they_are() -> None:
    """A CUDA graph needs tensors that stay at the same address."""
    metrics = Metrics()
    add(metrics, 0, [1.0])
    sums = metrics.sums["train"]
    places = [tensor.data_ptr() for tensor in (sums._sums, sums._row, sums._step)]
    for step in range(3):
        add(metrics, step, [1.0])
        metrics.end_window()
        metrics.end_epoch("train", ONE)
    assert [tensor.data_ptr() for tensor in (sums._sums, sums._row, sums._step)] == places


def test_an_evaluation_in_inference_mode_is_followed_by_one_outside() -> None:
    metrics = Metrics()
    with torch.inference_mode():
        add(metrics, 0, [1.0], "val")
        metrics.end_epoch("val", ONE)
    with torch.no_grad():
        add(metrics, 0, [2.0], "val")
    assert metrics.end_epoch("val", ONE)["val/loss"] == 2.0


def test_a_bad_loss_stops_the_run_and_names_step_terms_and_checkpoint(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(self: VAEModule, *args: Any) -> dict[str, torch.Tensor]:
        if self.trainer.global_step == 4:
            with torch.no_grad():
                self.model.posterior.linear.bias.fill_(float("nan"))
        return original(self, *args)

    original = VAEModule.terms
    monkeypatch.setattr(VAEModule, "terms", spoil)
    with pytest.raises(ArithmeticError) as error:
        train(config("trainer.log_every_n_steps=50"), tmp_path)
    message = str(error.value)
    assert message.startswith("the loss is not a finite number at step 5 (loss nan, elbo nan, rate nan, distortion ")
    assert message.endswith("first try a smaller optimizer.lr")
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'last.ckpt'}" in caplog.text
    assert checkpoint(tmp_path)["global_step"] == 3
    assert all(value.isfinite().all() for value in checkpoint(tmp_path)["state_dict"].values())


def test_weights_that_are_no_numbers_are_never_saved(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: VAEModule, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.trainer.global_step == 5:
            with torch.no_grad():
                self.model.decoder.layers[0].weight[0, 0] = float("inf")

    original = VAEModule.optimizer_step
    monkeypatch.setattr(VAEModule, "optimizer_step", spoil)
    with pytest.raises(ArithmeticError, match=r"a weight is not a finite number after step 6"):
        train(config("data.val_size=0"), tmp_path)
    assert checkpoint(tmp_path)["global_step"] == 3
