"""module.compile compiles the training step's terms under any trainer, and changes numbers by rounding only."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, checkpoint, equal, refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab.training import VAEModule

SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=2", "callbacks.pictures.count=0"]
WINDOWS = ["trainer=gpu_fast", "trainer.accelerator=cpu"]


def run(config: Compose, folder: Path, *overrides: str) -> dict[str, list[tuple[int, float]]]:
    """Train and return the curves."""
    folder.mkdir()
    train(config(*SMALL, *overrides, "trainer.limit_train_batches=null"), folder)
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("value", ["1", "two", "[]", "1e-3"])
def test_compile_is_true_or_false(config: Compose, tmp_path: Path, value: str) -> None:
    message = refused(train, config(*SMALL, f"module.compile={value}"), tmp_path)
    assert re.match(r"module.compile=.*: true or false is needed", message)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.11 raises it
@pytest.mark.parametrize("trainer", [[], WINDOWS], ids=["default", "windows"])
def test_compiled_curves_agree(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: list[str]
) -> None:
    eager, original = [], VAEModule.terms

    def terms(self: VAEModule, *args: Any) -> dict[str, torch.Tensor]:
        eager.append(self.training and self._scores is None)
        return original(self, *args)

    expected = run(config, tmp_path / "eager", *trainer)
    monkeypatch.setattr(VAEModule, "terms", terms)
    curves = run(config, tmp_path / "compiled", *trainer, "module.compile=true")
    assert eager
    assert not any(eager)
    assert curves.keys() == expected.keys()
    for name, points in expected.items():
        assert curves[name] == [pytest.approx(point, rel=1e-5) for point in points], name
    assert "compiling" in (tmp_path / "compiled/train.log").read_text()
    assert checkpoint(tmp_path / "compiled")["state_dict"].keys() == checkpoint(tmp_path / "eager")["state_dict"].keys()


def test_without_a_compiler_it_trains_all_the_same(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler\nof many lines")

        return call

    expected = run(config, tmp_path / "eager")
    monkeypatch.setattr(torch, "compile", broken)
    assert run(config, tmp_path / "broken", "module.compile=true") == expected
    assert equal(checkpoint(tmp_path / "broken")["state_dict"], checkpoint(tmp_path / "eager")["state_dict"])
    said = (tmp_path / "broken/train.log").read_text()
    assert "not compiled, which only makes training slower: no C++ compiler\n" in said


def test_a_fault_of_the_objective_keeps_its_traceback(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback of a compiled run names the function that fails."""
    from vaelab.objectives import ELBO

    original = ELBO.terms

    def terms(self: ELBO, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> Any:
        if len(x) > 2:  # the rehearsal before the training uses two images
            raise KeyError("my own mistake")
        return original(self, trace, x, step)

    monkeypatch.setattr(ELBO, "terms", terms)
    with pytest.raises(KeyError, match="my own mistake") as error:
        run(config, tmp_path / "run", "module.compile=true")
    assert "terms" in [entry.name for entry in error.traceback]
