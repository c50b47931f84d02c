"""Each model of a joint training equals the run that trains it alone on the same batches and noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab.training import NonFiniteLossError, VAEModule

SMALL = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent_dim=3", "callbacks.pictures.count=0"]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/")) and "second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def alike(member: Path, alone: Path) -> None:
    """Check that the weights, metrics and curves of two runs agree."""
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
        metric = train(config(*SMALL, *shared, *each.split()), tmp_path / f"alone_{i}")
        assert outcomes[i] == pytest.approx(metric, rel=1e-5)
        alike(folders[i], tmp_path / f"alone_{i}")


def test_a_seed_chooses_the_first_weights_alone(config: Compose, tmp_path: Path, sweeps: Callable) -> None:
    """Each seed gives its own first weights, but the first member's seed gives batches and noise to all."""
    outcomes, folders = sweeps(["optimizer.lr=1e-30"], ["seed=1", "seed=2", "seed=2 optimizer.lr=1e-3"])
    states = []
    for seed in (1, 2):
        folder = tmp_path / f"alone_{seed}"
        folder.mkdir()
        assert train(config(*SMALL, "optimizer.lr=1e-30", f"seed={seed}"), folder) == pytest.approx(outcomes[seed - 1])
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


def test_an_edited_training_step_rules_the_members_too(
    config: Compose, tmp_path: Path, sweeps: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = VAEModule.training_step
    monkeypatch.setattr(VAEModule, "training_step", lambda self, *args: 0 * original(self, *args))
    _, folders = sweeps([], ["optimizer.lr=1e-2", "optimizer.lr=1e-3"])
    alone = tmp_path / "alone"
    alone.mkdir()
    train(config(*SMALL, "optimizer.lr=1e-2"), alone)
    alike(folders[0], alone)
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])  # no step changed them
