"""Curves are read as they were written, and a band is the mean and the standard deviation over seeds."""

import math
import struct
from pathlib import Path

import pytest
from conftest import refused
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from vaelab.reports.curves import Band, band, metrics, read_curves


def test_the_table_of_lightning_is_read(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    for step in (9, 19):
        logger.log_metrics({"train/loss": 200.0 - step, "train/lr": 0.1}, step)
    logger.log_metrics({"val/loss": 150.25, "epoch": 0}, 19)
    logger.log_metrics({"test/loss": 150.5}, 20)
    logger.save()
    assert (tmp_path / "metrics.csv").is_file()
    with SummaryWriter(str(tmp_path)) as board:  # the table comes first
        board.add_scalar("val/rate", 3.0, 1)
    curves = {"train/loss": {9: 191.0, 19: 181.0}, "train/lr": {9: 0.1, 19: 0.1}, "val/loss": {19: 150.25}}
    assert read_curves(tmp_path) == curves


def test_event_files_are_read(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path), filename_suffix=".1") as board:
        for step, value in enumerate((4.0, math.nan, math.inf, 2.5)):
            board.add_scalar("val/elbo", value, step)
        board.add_scalar("test/elbo", 1.0, 4)
        board.add_scalar("train/a name that no run writes", 1.0, 4)
    with SummaryWriter(str(tmp_path), filename_suffix=".2") as board:  # a resumed run
        board.add_scalar("val/elbo", 2.0, 3)
        board.add_scalar("val/elbo", 1.5, 4)
    assert read_curves(tmp_path) == {"val/elbo": {0: 4.0, 3: 2.0, 4: 1.5}}


def test_the_curves_of_a_run_are_those_of_tensorboard(finished: Path, events: EventAccumulator) -> None:
    curves = read_curves(finished)
    assert {"train/loss", "val/loss", "val/elbo", "train/lr"} <= curves.keys()
    for name, curve in curves.items():
        assert curve == pytest.approx({event.step: event.value for event in events.Scalars(name)})


def test_a_run_without_files_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    ["train/loss,step\n1.5,one\n", "train/loss,step\nlow,1\n", "train/loss\n1.5\n", "train/loss,step\n1.5\n"],
)
def test_a_table_with_mistakes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    assert f"{tmp_path}/metrics.csv is not a table of metrics by step: " in refused(read_curves, tmp_path)


def test_a_damaged_event_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(struct.pack("<QI", 10**12, 0))
    assert "is damaged: a record has 1,000,000,000,000 bytes" in refused(read_curves, tmp_path)


def test_a_band_is_mean_and_standard_deviation_at_common_steps() -> None:
    assert band([{0: 1.0, 1: 2.0, 5: 9.0}, {1: 6.0, 0: 3.0, 4: 0.0}]) == Band(
        [0, 1], [2.0, 4.0], [pytest.approx(2**0.5), pytest.approx(8**0.5)]
    )
    assert band([{2: 7.0, 1: 8.0}]) == Band([1, 2], [8.0, 7.0], [0.0, 0.0])
    assert band([{1: 2.0}, {2: 2.0}]) == band([{1: 2.0}, {}]) == Band([], [], [])


def test_metrics_have_an_order_and_no_learning_rate() -> None:
    one = {key: {0: 1.0} for key in ("train/lr", "train/loss", "train/rate", "val/rate", "val/loss", "val/mmd")}
    assert metrics([one, {"val/bound": {0: 1.0}}]) == ["loss", "bound", "rate", "mmd"]
    assert metrics([{"train/loss": {0: 1.0}, "train/images_per_second": {0: 1.0}}]) == ["loss"]  # nothing was validated
