"""A run writes its curves, hyperparameters and layout to TensorBoard."""

from pathlib import Path

import pytest
from conftest import metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TERMS = ("loss", "elbo", "rate", "distortion")


def test_curves_are_in_tensorboard_at_optimiser_steps(finished: Path, events: EventAccumulator) -> None:
    tags = set(events.Tags()["scalars"])
    assert {f"{split}/{term}" for split in ("train", "val", "test") for term in TERMS} <= tags
    assert {"train/images_per_second", "train/lr"} <= tags
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10, 15, 20]
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert events.Scalars("test/elbo")[-1].value == pytest.approx(metrics(finished)["test"]["elbo"], rel=1e-6)


def test_training_curve_is_the_mean_over_images_since_the_last_point(finished: Path, events: EventAccumulator) -> None:
    last_epoch = [event.value for event in events.Scalars("train/loss") if 15 < event.step <= 20]
    assert len(last_epoch) == 3
    weighted = sum(value * steps for value, steps in zip(last_epoch, (1, 2, 2), strict=True)) / 5
    assert metrics(finished)["train"]["loss"] == pytest.approx(weighted, rel=1e-6)


def test_hyperparameters_and_layout_are_in_tensorboard(finished: Path, events: EventAccumulator) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData.FromString(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    chosen = data.session_start_info.hparams
    assert chosen["data.used"].string_value == "MNIST"
    assert chosen["model.latent_dim"].number_value == 2
    assert chosen["model.likelihood"].string_value == "Bernoulli"
    assert chosen["optimizer.lr"].number_value == 1e-3
    assert not any("root" in name for name in chosen)
    experiment = HParamsPluginData.FromString(events.summary_metadata["_hparams_/experiment"].plugin_data.content)
    assert {"test/elbo", "best/val_loss"} <= {info.name.tag for info in experiment.experiment.metric_infos}
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert metrics(finished)["test"]["loss"] > 0
