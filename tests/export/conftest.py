"""Fixtures of runs to export."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, compose_config
from hydra.core.global_hydra import GlobalHydra

from export import export
from train import train
from vaelab import cli

SMALL = ("model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=3")


@pytest.fixture(scope="module")
def small_run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(compose_config(data_root, *SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2"), folder)
    return folder


@pytest.fixture
def run(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., tuple[Any, str]]:
    """Runs `python export.py` with arguments: returns the exit code or message, and the printed text."""

    def call(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
        GlobalHydra.instance().clear()
        code = None
        try:
            cli.main(export, ROOT / "configs", "export")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out + err

    return call
