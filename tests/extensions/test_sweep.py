"""The command that trains a sweep together writes whole runs, and refuses what it cannot train."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Compose
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import load_run
from vaelab.errors import UserError
from vaelab.training import Interrupted, NonFiniteLossError, VAEModule

SMALL = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent_dim=3", "callbacks.pictures.count=0"]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/")) and "second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


RATES = ["optimizer.lr=1e-2", "optimizer.lr=3e-4"]


def test_when_no_member_is_left_training_ends(sweeps: Callable) -> None:
    outcomes, folders = sweeps([], ["optimizer.lr=1e30", "optimizer.lr=1e31"])
    assert all(isinstance(outcome, NonFiniteLossError) for outcome in outcomes)
    assert not list(folders[0].glob("weights.pt"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_leaves_the_best_weights_so_far(
    config: Compose, sweeps: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def on_train_batch_start(_: Callback, trainer: Any, *__: Any) -> None:
        if trainer.global_step == 4:  # in the second epoch
            raise stop

    monkeypatch.setattr("vaelab.training.Progress.on_train_batch_start", on_train_batch_start)
    with pytest.raises(Interrupted):
        sweeps([], RATES)
    for i in range(2):
        folder = tmp_path / f"member_{i}"
        (tmp_path / f"alone_{i}").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr("vaelab.training.Progress.on_train_batch_start", Callback.on_train_batch_start)
            train(config(*SMALL, RATES[i], "trainer.max_epochs=1"), tmp_path / f"alone_{i}")
        alone = load_run(tmp_path / f"alone_{i}").state_dict()
        for name, weight in load_run(folder).state_dict().items():
            torch.testing.assert_close(weight, alone[name], rtol=0, atol=2e-5)
        assert (folder / "weights.pt").stat().st_size < 2e5  # the file holds only the weights of this member
    assert "stopped at step 4 and cannot be resumed" in (tmp_path / "member_1" / "train.log").read_text()


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (["data.batch_size=10", "data.batch_size=20"], "batch_size is 10 and 20, but all runs must share their data"),
        (["trainer.max_epochs=1", "trainer.max_epochs=3"], "trainer.max_epochs is 1 and 3, but all runs must share"),
        (["objective.kl=sample", "objective.kl=analytic"], "objective.kl is sample and analytic, but such runs may"),
        (["optimizer=sgd", "optimizer=adam"], "optimizer._target_ is torch.optim.SGD and torch.optim.Adam, but such"),
        (["model.latent_dim=2", "model.latent_dim=4"], "weight has shapes (4, 16) and (8, 16), which must agree"),
        (["objective.num_samples=1", "objective.num_samples=2"], "the loss would differ from that of a single run"),
        (2 * ["objective.sticking_the_landing=true"], "gradient of model.encoder.layers.1.weight would differ from"),
        (2 * ["objective=dreg objective.num_samples=2"], "or a gradient inside the step, cannot be batched"),
        (2 * ["model/posterior=hyperspherical model/prior=uniform_sphere"], "PowerSpherical.rsample cannot be"),
        (2 * ["callbacks=early_stopping"], "callbacks.early_stopping works for a single run only"),
        (2 * ["callbacks=ema"], "callbacks.ema works for a single run only"),
        (2 * ["trainer.devices=2"], "trains in one process, but trainer.devices=2"),
        (2 * ["trainer.precision=16-mixed"], "so one overflow would affect all runs: choose bf16-mixed"),
        (2 * ["trainer=gpu_fast"], "has its own training step, so module must be the default"),
        (2 * ["module.compile=true"], "has its own training step, so module must be the default"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_batched_is_refused_first(sweeps: Callable, tmp_path: Path, own: list, sentence: str) -> None:
    with pytest.raises(ValueError, match="hydra/launcher=together") as error:
        sweeps([f"data.root={tmp_path / 'nowhere'}", "data.allow_subset=false"], own)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not [path for folder in tmp_path.glob("member_*") for path in folder.iterdir()]


def test_the_command_makes_a_whole_run_of_each(command: Command) -> None:
    settings = [
        *SMALL[:2],
        "model.latent_dim=2",
        "callbacks.pictures.count=1",
        "trainer.log_every_n_steps=1",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    code, printed = command("-m", "hydra/launcher=together", *settings, "optimizer.lr=1e-3,1e30", "objective.beta=1,2")
    assert "not a finite number at step 2" in str(code)  # the exit code of any sweep with a failed run
    assert printed.count("done ") == 2
    (folder,) = (command.folder / "logs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "3", "multirun.yaml", "sweep.md"]
    for i in (0, 1):
        run = folder / str(i)
        assert {"config.yaml", "run.json", "metrics.json", "weights.pt", "pictures", "train.log"} <= {
            path.name for path in run.iterdir()
        }
        assert f"objective.beta={i + 1}" in json.loads((run / "run.json").read_text())["starts"][0]["overrides"]
        assert (run / "pictures" / "manifold.png").stat().st_size > 5000
        assert math.isfinite(metrics(run)["test"]["elbo"])
        assert {"train/loss", "val/elbo"} <= set(curves(run))
        assert b"weights/val_loss" in b"".join(path.read_bytes() for path in run.glob("events.*"))
        assert load_run(run).sample(2).mean.shape == (2, 1, 28, 28)
    assert load_run(folder / "0").training is False
    again, _ = command(f"resume={folder / '0'}", small=False)
    assert "cannot be resumed: it has no checkpoints/last.ckpt" in str(again)


def test_refusals_of_the_command_leave_no_run_behind(command: Command) -> None:
    code, _ = command("-m", "hydra/launcher=together", "model.latent_dim=2,3")
    assert str(code).startswith("error: hydra/launcher=together: model.posterior.linear.weight has shapes ")
    assert str(code).endswith("; without hydra/launcher=together each run trains by itself")
    (folder,) = (command.folder / "logs").iterdir()
    assert [path.name for path in folder.iterdir()] == ["multirun.yaml"]


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "optimizer_step"])
def test_a_hook_that_members_do_not_get_is_refused(
    sweeps: Callable, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    monkeypatch.setattr(VAEModule, hook, lambda *_: None, raising=False)
    with pytest.raises(UserError, match=f"VAEModule.{hook} is not called for each of the runs; without"):
        sweeps([], ["seed=1", "seed=2"])
