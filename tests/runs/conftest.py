"""Fixtures of runs and exports from an untrusted source."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import compose_config
from omegaconf import OmegaConf
from safetensors.torch import save_file

from train import train

SMALL = ("model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=3", "callbacks.pictures=null")
MARKER = "payload_ran"


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in its own folder, and check that no payload created its file there."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARKER).exists()


@pytest.fixture(scope="module")
def small_run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(compose_config(data_root, *SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2"), folder)
    return folder


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    """An export folder with a config and weights only."""
    folder = tmp_path / "export"
    folder.mkdir()
    save_file(torch.load(run / "weights.pt"), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))))
    return folder
