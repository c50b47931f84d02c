"""callbacks=metrics adds curves of evaluation metrics, and does not change the training."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics, refused
from hydra.utils import instantiate

from train import train
from vaelab import load_run
from vaelab.evaluation.latent import latent_statistics
from vaelab.evaluation.likelihood import importance_weighted
from vaelab.evaluation.representation import representation
from vaelab.training import EvaluationMetrics

SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=3", "callbacks.pictures.count=0"]
METRICS = ["callbacks.metrics.num_images=60", "callbacks.metrics.num_samples=5"]
NAMES = ("active_units", "mutual_information", "knn_accuracy", "iw_bound")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name.removeprefix("val_subset/") for name in rows[0] if name.startswith("val_subset/")]
    return {name: [(int(row["step"]), float(value)) for row in rows if (value := row[f"val_subset/{name}"])]
            for name in names}  # fmt: skip


@pytest.mark.parametrize("average", [[], ["ema"]])
def test_the_metrics_are_those_of_the_validated_weights(config: Compose, tmp_path: Path, average: list[str]) -> None:
    """best.ckpt has the weights of the last validation, because it is the best one."""
    options = f"callbacks=[{','.join(['metrics', *average])}]"
    cfg = config(*SMALL, options, *METRICS, "optimizer.lr=0.01")
    train(cfg, tmp_path)
    assert metrics(tmp_path)["weights"]["step"] == 6
    model, data = load_run(tmp_path), instantiate(cfg.data, _convert_="all")
    data.setup()
    (x, y), (train_x, train_y) = data.images("val", 60), data.images("train", 60)
    torch.distributions.Distribution.set_default_validate_args(False)
    statistics, train_codes = latent_statistics(model, x), model.encode(train_x).detach()
    expected = {name: statistics.metrics[name] for name in ("active_units", "mutual_information")}
    expected["knn_accuracy"] = representation(train_codes, train_y, statistics.codes, y)["knn_accuracy"]
    expected["iw_bound"] = importance_weighted(model, x, None, 5).log_likelihood.mean().item()
    found = curves(tmp_path)
    assert {name: points[-1] for name, points in found.items()} == {
        name: (6, pytest.approx(value, rel=1e-5)) for name, value in expected.items()
    }
    assert all([step for step, _ in points] == [3, 6] for points in found.values())
    assert metrics(tmp_path)["val_subset"]["iw_bound"] == pytest.approx(expected["iw_bound"], rel=1e-5)
    assert found["mutual_information"][-1][1] <= math.log(60)


def test_training_does_not_change(config: Compose, tmp_path: Path) -> None:
    for name, options in (("plain", []), ("watched", ["callbacks=metrics", *METRICS])):
        (tmp_path / name).mkdir()
        train(config(*SMALL, *options), tmp_path / name)
    assert equal(*(checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "watched")))
    assert metrics(tmp_path / "plain")["test"] == metrics(tmp_path / "watched")["test"]


def test_each_second_epoch(config: Compose, tmp_path: Path) -> None:
    rare = ["callbacks=metrics", *METRICS, "callbacks.metrics.every_n_epochs=2", "trainer.max_epochs=4"]
    train(config(*SMALL, *rare), tmp_path)
    assert [step for step, _ in curves(tmp_path)["iw_bound"]] == [6, 12]


def test_a_model_without_densities_has_the_other_metrics(config: Compose, tmp_path: Path) -> None:
    train(config("experiment=autoencoder", *SMALL, "callbacks=metrics", *METRICS, "trainer.max_epochs=1"), tmp_path)
    assert {*curves(tmp_path)} == {"knn_accuracy"}


def test_settings_are_checked(config: Compose, tmp_path: Path) -> None:
    for setting in ({"every_n_epochs": 0}, {"num_images": 1}, {"num_samples": 0}):
        (name,) = setting
        assert f"{name}=" in refused(partial(EvaluationMetrics, **setting))
    assert "this run has none" in refused(train, config("callbacks=metrics", "data.val_size=0"), tmp_path)
