"""Callbacks of published protocols change what they name, and a resumed run keeps its weights."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics, refused
from torch import nn

from train import train
from vaelab import runs
from vaelab.training import DelayedEarlyStopping, InitialWeights

WEIGHTS = "+callbacks.initial_weights._target_=vaelab.training.InitialWeights"


def drawn(distribution: str, layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    InitialWeights(distribution).setup(None, SimpleNamespace(model=nn.Sequential(layer)), "fit")
    return layer


def test_glorot_s_weights() -> None:
    """The variance of a uniform density on +-a is a^2 / 3."""
    layer = drawn("glorot", nn.Linear(400, 200))
    bound = (6 / 600) ** 0.5
    assert 0.999 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.var().item() == pytest.approx(2 / 600, rel=0.02)  # 80,000 draws
    assert not layer.bias.any()


def test_he_s_weights() -> None:
    layer = nn.Linear(400, 200)
    bias = layer.bias.clone()
    drawn("he", layer)
    assert layer.weight.var().item() == pytest.approx(2 / 400, rel=0.02)
    assert layer.weight.abs().max() > 3.5 * (2 / 400) ** 0.5  # it is normal, not uniform
    assert torch.equal(layer.bias, bias)
    kernel = drawn("he", nn.Conv2d(16, 32, 5)).weight
    assert kernel.var().item() == pytest.approx(2 / (16 * 25), rel=0.05)


def test_another_distribution_is_refused() -> None:
    assert "distribution=orthogonal" in refused(partial(InitialWeights, "orthogonal"))


def test_a_resumed_run_keeps_its_weights(config: Compose, tmp_path: Path) -> None:
    for name, epochs in (("whole", 2), ("parts", 1)):
        (tmp_path / name).mkdir()
        train(config(WEIGHTS, f"trainer.max_epochs={epochs}", "callbacks.pictures.count=0"), tmp_path / name)
    cfg = runs.saved_config(tmp_path / "parts", ["trainer.max_epochs=2"])
    cfg.resume = str(tmp_path / "parts")
    train(cfg, tmp_path / "parts")
    assert equal(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "parts")["state_dict"])
    (tmp_path / "other").mkdir()
    train(config("trainer.max_epochs=2", "callbacks.pictures.count=0"), tmp_path / "other")
    assert not equal(checkpoint(tmp_path / "whole")["state_dict"], checkpoint(tmp_path / "other")["state_dict"])


@pytest.mark.parametrize("first_epoch", [0, 4])
def test_early_stopping_waits_for_the_warm_up(config: Compose, tmp_path: Path, first_epoch: int) -> None:
    """A threshold that each run meets ends it after the first validation that counts."""
    stopping = {
        "_target_": "vaelab.training.DelayedEarlyStopping", "first_epoch": first_epoch, "monitor": "auto",
        "stopping_threshold": "1e9",
    }  # fmt: skip
    overrides = [f"+callbacks.early_stopping.{key}={value}" for key, value in stopping.items()]
    train(config(*overrides, "trainer.max_epochs=9", "callbacks.pictures.count=0"), tmp_path)
    assert metrics(tmp_path)["epochs"] == first_epoch + 1


def test_a_negative_first_epoch_is_refused() -> None:
    assert "first_epoch=-1" in refused(partial(DelayedEarlyStopping, -1, monitor="val/loss"))
