"""Models trained together: each is the run that it would be by itself, on the same batches and noise."""

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
from vaelab.extensions import sweep
from vaelab.training import Interrupted, NonFiniteLossError

SMALL = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent_dim=3", "callbacks.pictures.count=0"]


@pytest.fixture
def sweeps(config: Compose, tmp_path: Path) -> Callable[..., Any]:
    """Train members that share some overrides and have one each; returns their outcomes and folders."""

    def sweeps(shared: list[str], own: list[str]) -> tuple[list[Any], list[Path]]:
        folders = [tmp_path / f"member_{i}" for i in range(len(own))]
        for folder in folders:
            folder.mkdir()
        return sweep.train([config(*SMALL, *shared, *each.split()) for each in own], folders), folders

    return sweeps


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/")) and "second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def alike(member: Path, alone: Path) -> None:
    """The weights, metrics and curves of two runs agree."""
    weights, wanted = (torch.load(folder / "weights.pt", weights_only=True) for folder in (member, alone))
    assert weights.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], rtol=0, atol=2e-5)
    points, expected = curves(member), curves(alone)
    assert points.keys() == expected.keys()
    for tag in expected:
        assert [step for step, _ in points[tag]] == [step for step, _ in expected[tag]]
        got, due = ([value for _, value in curve[tag]] for curve in (points, expected))
        assert got == pytest.approx(due, rel=1e-5, abs=1e-6), tag
    ours, theirs = metrics(member), metrics(alone)
    assert ours.keys() == theirs.keys()
    for split in ("train", "val", "test"):
        due = {name: value for name, value in theirs[split].items() if name != "images_per_second"}
        assert {name: ours[split][name] for name in due} == pytest.approx(due, rel=1e-5, abs=1e-6)


RATES = ["optimizer.lr=1e-2", "optimizer.lr=3e-4"]
BETAS = ["objective.beta=0.5", "objective.beta=4"]
SCHEDULE = [
    "objective/beta=linear",
    "objective.beta.steps=5",
    "scheduler=cosine",
    "optimizer=sgd",
    "optimizer.lr=1e-2",
    "trainer.gradient_clip_val=1",
]
PLATEAU = ["scheduler=plateau", "scheduler.scheduler.patience=0", "trainer.accumulate_grad_batches=2", "seed=3"]
TEMPERATURE = ["model/posterior=categorical", "model/prior=uniform_categorical", "model.latent_dim=20"]
ENDS = [f"objective.beta.end={end} scheduler.scheduler.min_ratio={ratio}" for end, ratio in ((1, 0), (3, 0.5))]


@pytest.mark.parametrize(
    ("shared", "own"),
    [
        ([], RATES),
        (["model/prior=vampprior", "model.prior.num_components=5"], BETAS),
        (SCHEDULE, ENDS),
        ([*PLATEAU, "model/prior=standard_normal"], ["model.prior.scale=1", "model.prior.scale=2"]),
        (["model.encoder.norm=batch", "objective=mmd"], ["objective.weight=10", "objective.weight=100"]),
        (["objective=adversarial"], ["objective.lr=1e-4", "objective.lr=1e-2"]),
        ([], ["objective.free_bits=0.1", "objective.free_bits=1"]),
        (TEMPERATURE, ["model.posterior.temperature=0.3", "model.posterior.temperature=1"]),
    ],
    ids=["rates", "beta", "schedules", "plateau", "buffers", "discriminators", "free_bits", "temperature"],
)
def test_a_member_is_the_run_with_its_values(
    config: Compose, tmp_path: Path, sweeps: Callable, shared: list[str], own: list[str]
) -> None:
    outcomes, folders = sweeps(shared, own)
    assert outcomes[0] != pytest.approx(outcomes[1], rel=2e-5)
    for i, each in enumerate(own):
        (tmp_path / f"alone_{i}").mkdir()
        figure = train(config(*SMALL, *shared, *each.split()), tmp_path / f"alone_{i}")
        assert outcomes[i] == pytest.approx(figure, rel=1e-5)
        alike(folders[i], tmp_path / f"alone_{i}")


def test_a_seed_chooses_the_first_weights_alone(config: Compose, tmp_path: Path, sweeps: Callable) -> None:
    """At a rate of zero they stay, and the first run's seed made batches and noise."""
    outcomes, folders = sweeps(["optimizer.lr=0"], ["seed=1", "seed=2", "seed=2 optimizer.lr=1e-3"])
    states = []
    for seed in (1, 2):
        folder = tmp_path / f"alone_{seed}"
        folder.mkdir()
        assert train(config(*SMALL, "optimizer.lr=0", f"seed={seed}"), folder) == pytest.approx(outcomes[seed - 1])
        states.append(torch.load(folder / "weights.pt", weights_only=True))
    for folder, state in zip(folders, states, strict=False):
        weights = torch.load(folder / "weights.pt", weights_only=True)
        assert all(torch.equal(weights[name], state[name]) for name in state)
    assert metrics(folders[0])["train"]["loss"] == pytest.approx(metrics(tmp_path / "alone_1")["train"]["loss"])
    assert metrics(folders[1])["train"]["loss"] != pytest.approx(metrics(tmp_path / "alone_2")["train"]["loss"])
    assert "seed: 1" in (folders[1] / "config.yaml").read_text().split("data:")[1].split("model:")[0]


def test_a_member_whose_loss_is_not_finite_leaves_the_others_alone(
    config: Compose, tmp_path: Path, sweeps: Callable
) -> None:
    outcomes, folders = sweeps([], ["optimizer.lr=1e-3", "optimizer.lr=1e30", "optimizer.lr=2e-3"])
    assert isinstance(outcomes[1], NonFiniteLossError)
    assert "the loss is not a finite number at step 2" in str(outcomes[1])
    assert not (folders[1] / "metrics.json").exists()
    said = "member_1: the loss is not a finite number at step 2"
    assert all(said in (folder / "train.log").read_text() for folder in folders)
    (tmp_path / "alone").mkdir()
    train(config(*SMALL, "optimizer.lr=2e-3"), tmp_path / "alone")
    alike(folders[2], tmp_path / "alone")


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
        assert (folder / "weights.pt").stat().st_size < 2e5  # its own, and no other's
    assert "stopped at step 4 for good" in (tmp_path / "member_1" / "train.log").read_text()


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (["data.batch_size=10", "data.batch_size=20"], "data.batch_size is 10 and 20, and all runs share their data"),
        (["trainer.max_epochs=1", "trainer.max_epochs=3"], "trainer.max_epochs is 1 and 3, and all runs share"),
        (["objective.kl=sample", "objective.kl=analytic"], "objective.kl is sample and analytic, and runs that train"),
        (["optimizer=sgd", "optimizer=adam"], "optimizer._target_ is torch.optim.SGD and torch.optim.Adam, and runs"),
        (["model.latent_dim=2", "model.latent_dim=4"], "posterior.linear.weight is (4, 16) and (8, 16), which makes"),
        (["objective.num_samples=1", "objective.num_samples=2"], "the loss would not be that of a run by itself"),
        (2 * ["objective.sticking_the_landing=true"], "gradient of model.encoder.layers.1.weight would not be that of"),
        (2 * ["objective=dreg objective.num_samples=2"], "or a gradient that is taken inside the step, does not reach"),
        (2 * ["model/posterior=hyperspherical model/prior=uniform_sphere"], "PowerSpherical.rsample cannot be"),
        (2 * ["callbacks=early_stopping"], "callbacks.early_stopping follows one run, not several"),
        (2 * ["callbacks=ema"], "callbacks.ema follows one run, not several"),
        (2 * ["trainer.devices=2"], "trains in one process, and trainer.devices=2"),
        (2 * ["trainer.precision=16-mixed"], "members would feel each other's overflow"),
        (2 * ["trainer=gpu_fast"], "has a training step of its own: module is for single runs"),
        (2 * ["module.compile=true"], "has a training step of its own: module is for single runs"),
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
    assert "not a finite number at step 2" in str(code)  # as of any sweep in which a run failed
    assert printed.count("done ") == 2
    (folder,) = (command.folder / "logs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "3", "multirun.yaml"]
    for i in (0, 1):
        run = folder / str(i)
        assert {"config.yaml", "run.json", "metrics.json", "weights.pt", "pictures", "train.log"} <= {
            path.name for path in run.iterdir()
        }
        assert f"objective.beta={i + 1}" in json.loads((run / "run.json").read_text())["starts"][0]["overrides"]
        assert (run / "pictures" / "manifold.png").stat().st_size > 5000
        assert math.isfinite(metrics(run)["test"]["elbo"])
        assert {"train/loss", "val/elbo"} <= set(curves(run))
        assert b"best/val_loss" in b"".join(path.read_bytes() for path in run.glob("events.*"))
        assert load_run(run).sample(2).mean.shape == (2, 1, 28, 28)
    assert load_run(folder / "0").training is False
    again, _ = command(f"resume={folder / '0'}", small=False)
    assert "cannot be resumed: it has no checkpoints/last.ckpt" in str(again)


def test_refusals_of_the_command_leave_no_run_behind(command: Command) -> None:
    code, _ = command("-m", "hydra/launcher=together", "model.latent_dim=2,3")
    assert str(code).startswith("error: hydra/launcher=together: model.posterior.linear.weight is ")
    assert str(code).endswith("; without hydra/launcher=together each run trains by itself")
    (folder,) = (command.folder / "logs").iterdir()
    assert [path.name for path in folder.iterdir()] == ["multirun.yaml"]
