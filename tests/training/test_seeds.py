"""Mean curves over seeds have exact values, at the steps that all runs share."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator
from torch.utils.tensorboard import SummaryWriter

from vaelab.training.seeds import add_mean_curves, read_curves


def test_mean_curves_of_three_runs(tmp_path: Path) -> None:
    for run, values in {"a": [1.0, 2.0, 9.0], "b": [2.0, 4.0], "c": [3.0, 9.0, 0.0]}.items():
        with SummaryWriter(str(tmp_path / run)) as board:
            for step, value in enumerate(values):
                board.add_scalar("val/loss", value, 10 * step)
            board.add_scalar(f"only/{run}", 0.0, 0)
    add_mean_curves(tmp_path / "seeds", [tmp_path / run for run in "abc"])
    curves = {name: read_curves(tmp_path / "seeds" / name) for name in ("mean", "mean+sd", "mean-sd")}
    assert curves["mean"] == {"val/loss": {0: 2.0, 10: 5.0}}  # the third step is not of all runs, nor is only/a
    sd = 13**0.5  # of 2, 4, 9: (9 + 1 + 16) / 2
    assert {name: round(curve["val/loss"][0], 5) for name, curve in curves.items()} == {
        "mean": 2.0, "mean+sd": 3.0, "mean-sd": 1.0,
    }  # fmt: skip
    assert abs(curves["mean+sd"]["val/loss"][10] - (5 + sd)) < 1e-5
    assert abs(curves["mean-sd"]["val/loss"][10] - (5 - sd)) < 1e-5


def test_a_resumed_run_replaces_its_later_steps_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after step 40, its checkpoint is that of step 15, and it then logs other steps."""
    for first, steps in enumerate(([0, 10, 20, 30, 40], [16, 26, 36])):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{first}", purge_step=16 if first else None) as board:
            for step in steps:
                board.add_scalar("val/loss", step + first, step)
    monkeypatch.setattr(event_accumulator.logger, "warning", pytest.fail)
    assert read_curves(tmp_path) == {"val/loss": {0: 0.0, 10: 10.0, 16: 17.0, 26: 27.0, 36: 37.0}}
