"""Sweeps whose members are trained together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose

from vaelab.extensions import sweep

SMALL = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent_dim=3", "callbacks.pictures.count=0"]


@pytest.fixture
def sweeps(config: Compose, tmp_path: Path) -> Callable[..., Any]:
    """Train members with shared overrides and one of their own each; return their outcomes and folders."""

    def sweeps(shared: list[str], own: list[str]) -> tuple[list[Any], list[Path]]:
        folders = [tmp_path / f"member_{i}" for i in range(len(own))]
        for folder in folders:
            folder.mkdir()
        return sweep.train([config(*SMALL, *shared, *each.split()) for each in own], folders), folders

    return sweeps
