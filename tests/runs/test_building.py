"""The length of a run follows from its config."""

from pathlib import Path

import pytest
from conftest import Compose, metrics

from train import train


@pytest.mark.parametrize(("settings", "steps"), [([], 20), (["trainer.accumulate_grad_batches=3"], 16)])
def test_a_run_is_as_many_whole_epochs_as_hold_its_steps(
    config: Compose, tmp_path: Path, settings: list[str], steps: int
) -> None:
    length = ["trainer.max_epochs=null", "trainer.limit_train_batches=null", "steps=14", *settings]
    train(config(*length), tmp_path)  # ten batches per epoch, and Lightning also takes a step after the last one
    assert metrics(tmp_path)["steps"] == steps
