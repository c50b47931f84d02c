"""Every run writes metrics.csv, whatever its loggers are, and each logger gets the curves, pictures and settings."""

import csv
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Compose, metrics, refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import load_run, runs
from vaelab.training.loggers import MetricsFile, add_picture

SMALL = [
    "model.encoder.hidden=[8]",
    "model.decoder.hidden=[8]",
    "callbacks.pictures.count=1",
    "data.eval_batch_size=50",
]
SPEED = "train/images_per_second"


def rows(folder: Path, without: tuple[str, ...] = (SPEED,)) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in row if name not in without} for row in csv.DictReader(file)]


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[name])) for row in rows(folder) if row[name]]


def resumed(folder: Path, *overrides: str, trust: str = "") -> Any:
    cfg = runs.saved_config(folder, overrides, trust)
    cfg.resume = str(folder)
    return cfg


# The file -------------------------------------------------------------------------------------------------------------


def test_a_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"a": 0.1}, 5)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n5,0.1\n"
    logger.log_metrics({"a": float("nan")}, 6)
    logger.log_metrics({"b, c": 2, "a": np.float32(0.5)}, 7)
    assert (tmp_path / "metrics.csv").read_text() == 'step,a,"b, c"\n5,0.1,\n6,nan,\n7,0.5,2.0\n'


def test_a_resumed_run_drops_later_rows_and_a_broken_one(tmp_path: Path) -> None:
    """Nothing is dropped before the first new row is there."""
    text = "step,a\n5,0.1\n10,0.2\n15,0.3\n20,0.4\n1"
    (tmp_path / "metrics.csv").write_text(text)
    logger = MetricsFile(tmp_path, purge_step=11)
    assert (tmp_path / "metrics.csv").read_text() == text
    logger.log_metrics({"a": 3}, 15)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n5,0.1\n10,0.2\n15,3.0\n"
    logger.log_metrics({"b": 4}, 20)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n5,0.1,\n10,0.2,\n15,3.0,\n20,,4.0\n"


@pytest.mark.parametrize("text", ["a\n1\n", "step,a\n1\n", "step,a\nx,1\n", "\n", "step\0,a\n1,2\n"])
def test_a_file_of_another_kind_is_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    logger = MetricsFile(tmp_path, purge_step=1)
    assert "metrics.csv is not what a run writes" in refused(logger.log_metrics, {"a": 1.0}, 1)
    assert (tmp_path / "metrics.csv").read_text() == text


def test_a_folder_without_the_file_begins_one(tmp_path: Path) -> None:
    MetricsFile(tmp_path, purge_step=3).log_metrics({"a": 1.0}, 3)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n3,1.0\n"


# Runs -----------------------------------------------------------------------------------------------------------------


def test_metrics_csv_has_the_points_of_tensorboard(finished: Path, events: EventAccumulator) -> None:
    for name in ("train/loss", "train/lr", "val/elbo"):
        expected = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(name)]
        assert points(finished, name) == expected
    assert points(finished, "test/elbo") == [(20, metrics(finished)["test"]["elbo"])]


def test_a_resumed_run_has_the_rows_of_one_that_never_stopped(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of its second epoch, after a point that is taken again."""
    settings = [*SMALL, "trainer.max_epochs=3", "trainer.limit_train_batches=5", "logger=none"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    train(config(*settings), tmp_path / "whole")
    with monkeypatch.context() as patch:
        original = MetricsFile.log_metrics

        def log_metrics(self: MetricsFile, metrics: Any, step: int | None = None) -> None:
            original(self, metrics, step)
            if step == 8:
                raise RuntimeError("killed")

        patch.setattr(MetricsFile, "log_metrics", log_metrics)
        with pytest.raises(RuntimeError, match="killed"):
            train(config(*settings), tmp_path / "parts")
    assert rows(tmp_path / "parts")[-1]["step"] == "8"
    train(resumed(tmp_path / "parts"), tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert [step for step, _ in points(tmp_path / "whole", "train/loss")] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert not list(tmp_path.glob("*/events*"))
    assert (tmp_path / "whole" / "pictures" / "samples.png").is_file()


def test_several_loggers_at_once(config: Compose, tmp_path: Path) -> None:
    train(config(*SMALL, "logger=[tensorboard,csv]", "trainer.max_epochs=1"), tmp_path)
    own = [row for row in rows(tmp_path) if row["train/loss"]]
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        assert [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]] == [
            row["train/loss"] for row in own
        ]
    assert "latent_dim: 20" in (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text()
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    train(resumed(tmp_path, "trainer.max_epochs=2"), tmp_path)
    assert (tmp_path / "csv" / "version_1" / "metrics.csv").is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_wandb_offline(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, the same one resumed with its id, and another one in this process, which does not go on with the first."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    offline = ["logger=wandb", "logger.wandb.offline=true"]
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    train(config(*SMALL, *offline, "trainer.max_epochs=1"), folder)
    (first,) = tmp_path.glob("wandb/offline-run-*")
    own = runs.read_config(folder).logger.wandb.version
    assert first.name.endswith(own)
    assert len(list((first / "files" / "media" / "images" / "views").glob("samples_*.png"))) == 2
    assert "trust=[lightning.pytorch.loggers]" in refused(resumed, folder)
    assert "trust=[lightning.pytorch.loggers]" in (folder / "train.log").read_text()
    train(resumed(folder, "trainer.max_epochs=2", trust="lightning.pytorch.loggers"), folder)
    assert {path.name[-8:] for path in tmp_path.glob("wandb/offline-run-*")} == {own}
    train(config(*SMALL, *offline, "trainer.max_epochs=1"), other)
    assert runs.read_config(other).logger.wandb.version != own
    assert load_run(folder).latent_dim == 20
    assert [step for step, _ in points(folder, "train/loss")] == [2, 3, 4, 6]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_in_a_database(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    train(config(*SMALL, "logger=mlflow", "trainer.max_epochs=1"), folder)
    assert "trust=[lightning.pytorch.loggers]" in refused(resumed, folder)
    train(resumed(folder, "trainer.max_epochs=2", trust="lightning.pytorch.loggers"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("select name, status from runs").fetchall() == [("run", "FINISHED")]
        params = dict(database.execute("select key, value from params").fetchall())
        found = database.execute("select step, value from metrics where key = 'val/loss' order by step").fetchall()
    database.close()
    assert params["model/latent_dim"] == "20"
    assert found == points(folder, "val/loss")
    assert len(found) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = sys.modules[f"lightning.pytorch.loggers.{name}"]
    monkeypatch.setattr(module, f"_{name.upper()}_AVAILABLE", "")
    sentence = refused(train, config(f"logger={name}"), tmp_path)
    assert f"logger.{name} needs a package that is not installed: pip install -e '.[loggers]'" in sentence
    assert not (tmp_path / "config.yaml").exists()


def test_an_unknown_logger_gets_no_pictures() -> None:
    add_picture(object(), "samples", np.zeros((2, 2), np.uint8), 1)


def test_each_option_has_its_test_in_this_file() -> None:
    options = {path.stem for path in (ROOT / "configs" / "logger").glob("*.yaml")}
    assert options == {"tensorboard", "csv", "wandb", "mlflow", "none"}


def test_a_resumed_run_whose_file_is_missing_keeps_all_its_rows(tmp_path: Path) -> None:
    """Another column rewrites the file, which must not drop the rows that this run has written."""
    table = MetricsFile(tmp_path, purge_step=11)
    table.log_metrics({"train/loss": 3.0}, 15)
    table.log_metrics({"train/loss": 2.0}, 20)
    table.log_metrics({"val/loss": 2.5}, 20)
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss,val/loss\n15,3.0,\n20,2.0,\n20,,2.5\n"
