"""Sums on the device: means per image, windows, and the first batch that is not a finite number."""

from types import SimpleNamespace

import pytest
import torch

from vaelab.training import NonFiniteLossError
from vaelab.training.metrics import Metrics

ONE = SimpleNamespace(world_size=1)


def add(metrics: Metrics, step: int, loss: list[float], split: str = "train") -> None:
    values = torch.tensor(loss)
    metrics.add(split, {"loss": values, "rate": 2 * values}, torch.tensor(float(step)))


def test_means_are_per_image_over_window_and_epoch() -> None:
    """Batches of different sizes weigh by their images."""
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


def test_splits_are_apart() -> None:
    metrics = Metrics()
    add(metrics, 0, [1.0])
    add(metrics, 0, [5.0], "val")
    assert metrics.end_epoch("val", ONE)["val/loss"] == 5.0
    assert metrics.end_window()[0]["train/loss"] == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_step_is_named_with_its_terms(bad: float) -> None:
    """Whatever follows it, finite or not."""
    metrics = Metrics()
    for step, loss in enumerate(([1.0, 1.0], [2.0, 2.0], [4.0, bad], [float("nan"), 1.0], [5.0, 5.0]), 40):
        add(metrics, step, loss)
    with pytest.raises(NonFiniteLossError) as error:
        metrics.end_window()
    assert str(error.value).startswith(f"the loss is not a finite number at step 43 (loss {bad:g}, rate {bad:g})")


def test_opposite_infinities_do_not_cancel() -> None:
    metrics = Metrics()
    add(metrics, 0, [float("inf")])
    add(metrics, 1, [-float("inf")])
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(loss inf"):
        metrics.end_window()


def test_add_keeps_its_tensors_where_they_are() -> None:
    """As a CUDA graph needs it."""
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
