"""A run writes its curves, hyperparameters and layout to TensorBoard."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Command, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vaelab import load_run, runs
from vaelab.training.tensorboard import trial_name

TERMS = ("loss", "elbo", "rate", "distortion")


def test_curves_are_in_tensorboard_at_optimiser_steps(finished: Path, events: EventAccumulator) -> None:
    tags = set(events.Tags()["scalars"])
    assert {f"{group}{term}" for group in ("train/", "val/", "weights/val_", "weights/test_") for term in TERMS} <= tags
    assert {"train/images_per_second", "train/lr"} <= tags
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10, 15, 20]
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert events.Scalars("weights/test_elbo")[-1].value == pytest.approx(metrics(finished)["test"]["elbo"], rel=1e-6)


def test_training_curve_is_the_mean_over_images_since_the_last_point(finished: Path, events: EventAccumulator) -> None:
    last_epoch = [event.value for event in events.Scalars("train/loss") if 15 < event.step <= 20]
    assert len(last_epoch) == 3
    weighted = sum(value * steps for value, steps in zip(last_epoch, (1, 2, 2), strict=True)) / 5
    assert metrics(finished)["train"]["loss"] == pytest.approx(weighted, rel=1e-6)


def test_curves_are_the_first_groups_and_final_metrics_the_last(events: EventAccumulator) -> None:
    """TensorBoard sorts groups by name, and opens the first two."""
    groups = {tag.split("/")[0] for kind in ("scalars", "images") for tag in events.Tags()[kind]}
    assert sorted(groups) == ["train", "val", "views", "weights"]


def test_hyperparameters_and_layout_are_in_tensorboard(finished: Path, events: EventAccumulator) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData.FromString(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    chosen = dict(data.session_start_info.hparams)
    assert chosen.pop("data.used").string_value == "MNIST"
    sizes = {name: value.number_value for name, value in chosen.items()}
    assert sizes.pop("parameters") == sum(weight.numel() for weight in load_run(finished).parameters())
    assert sizes == {"model.latent_dim": 2, "data.batch_size": 100, "trainer.max_epochs": 4, "train_images": 500}
    assert data.session_start_info.group_name == trial_name(finished)
    experiment = HParamsPluginData.FromString(events.summary_metadata["_hparams_/experiment"].plugin_data.content)
    tags = {info.name.tag for info in experiment.experiment.metric_infos}
    assert {"weights/test_elbo", "weights/val_loss"} <= tags <= set(events.Tags()["scalars"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert metrics(finished)["test"]["loss"] > 0


def test_hyperparameters_are_what_the_user_typed(command: Command) -> None:
    """Also those of a run that goes on, and not those that say nothing about the result."""
    run = command.folder / "run"
    typed = ["objective/beta=linear", "objective.beta.steps=2", "model.encoder.hidden=[8]", "seed=3", "logger=none"]
    short = ["callbacks.pictures.count=0", "name=mine"]
    assert command(f"hydra.run.dir={run}", *typed, *short, "trainer.max_epochs=1")[0] is None
    assert command(f"resume={run}", "trainer.max_epochs=2", "optimizer.lr=0.01", small=False)[0] is None
    cfg = runs.read_config(run)
    data = SimpleNamespace(splits={"train": (range(7), None)})
    found = runs.hyperparameters(run, cfg, SimpleNamespace(model=load_run(run)), data)
    assert found.pop("parameters") > 0
    assert found == {
        "data.used": "MNIST", "model.latent_dim": 20, "data.batch_size": 128, "trainer.max_epochs": 2,
        "train_images": 7, "data.md5": "null", "data.val_size": 100, "trainer.limit_train_batches": 3,
        "objective/beta": "linear", "objective.beta.steps": 2, "model.encoder.hidden": "[8]", "seed": 3,
        "callbacks.pictures.count": 0, "callbacks.pictures.num_reconstructions": 8,
        "callbacks.pictures.num_samples": 16, "optimizer.lr": 0.01,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("2026-01-02_03-04-05_vae_1a2b3c4d", r"vae_1a2b3c4d"),
        ("0_seed-1", r"0_seed-1_[0-9a-f]{4}"),
        ("1_" + "a" * 90, "1_a{14}_[0-9a-f]{4}"),
    ],
)
def test_trial_names_are_short_and_differ(tmp_path: Path, name: str, short: str) -> None:
    assert re.fullmatch(short, trial_name(tmp_path / "one" / name))
    assert (trial_name(tmp_path / "one" / name) == trial_name(tmp_path / "two" / name)) == name.startswith("2026")
