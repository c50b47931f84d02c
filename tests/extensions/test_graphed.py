"""Steps in windows and steps that replay a CUDA graph give the same run as single steps."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics, stop_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import runs
from vaelab.extensions import graphed
from vaelab.training import Interrupted, Progress, VAEModule

FAST = ["trainer=gpu_fast", "trainer.accelerator=cpu"]
SETTINGS = [
    "data.batch_size=30",
    "trainer.limit_train_batches=null",
    "trainer.log_every_n_steps=6",
]  # 17 steps an epoch
EVERYTHING = [
    "scheduler=cosine", "objective/beta=linear", "objective.beta.steps=20", "optimizer=adamw", "model.num_classes=10",
]  # fmt: skip
STEPWISE = ["scheduler=iwae", "scheduler.interval=step", "scheduler.scheduler.milestones=[1,3,7]"]
SAME = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "MNISTDataModule")


def run(config: Compose, folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir()
    train(config(*SETTINGS, *overrides), folder)
    return checkpoint(folder)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("test/", "epoch")) and "second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for part in SAME:
        assert equal(ours[part], theirs[part]), part
    assert equal(ours["vaelab"]["ranks"][0]["cpu"], theirs["vaelab"]["ranks"][0]["cpu"])


@pytest.mark.parametrize(
    "overrides",
    [
        EVERYTHING,
        ["optimizer=sgd", "scheduler=iwae", "objective=iwae", "objective.num_samples=3"],
        ["trainer.limit_train_batches=8", "data.binarization=none", "objective=factor"],
        ["scheduler=plateau", "scheduler.scheduler.patience=0", "+scheduler.scheduler.threshold=1.0"],
        ["trainer.max_steps=23"],
        [*STEPWISE, "+scheduler.frequency=3"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=64-true", "model/likelihood=bernoulli_at_mean"],
        ["experiment=semi_supervised", "model.posterior.width=8", "model.decoder.hidden=[8]"],
        ["experiment=fsq_vae", "model.encoder.channels=[4,4]", "model.decoder.channels=[4,4]"],
    ],
    ids=["everything", "iwae", "cut", "plateau", "max_steps", "frequency", "bf16", "float64", "labels", "fsq"],
)
def test_windows_equal_single_steps(config: Compose, tmp_path: Path, overrides: list[str]) -> None:
    theirs = run(config, tmp_path / "theirs", *overrides)
    ours = run(config, tmp_path / "ours", *overrides, *FAST)
    assert_same(ours, theirs)
    assert curves(tmp_path / "ours") == curves(tmp_path / "theirs")
    assert metrics(tmp_path / "ours")["test"] == metrics(tmp_path / "theirs")["test"]


@pytest.mark.parametrize("step", [5, 8, 16, 21])
def test_stopped_and_resumed_equals_uninterrupted(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """After a signal, the run stops at the end of the window, and resuming equals an uninterrupted run."""
    whole = run(config, tmp_path / "whole", *EVERYTHING, *FAST)
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            run(config, parts, *EVERYTHING, *FAST)
    assert checkpoint(parts)["global_step"] == {5: 6, 8: 12, 16: 17, 21: 23}[step]
    cfg = runs.saved_config(parts)
    cfg.resume = str(parts)
    train(cfg, parts)
    assert_same(checkpoint(parts), whole)
    points, expected = curves(parts), curves(tmp_path / "whole")
    for name, curve in expected.items():
        assert points[name] == [pytest.approx(point, rel=1e-6) for point in curve], name


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.accumulate_grad_batches=2", "trainer=gpu_fast does not go with trainer.accumulate_grad_batches=2"),
        ("trainer.gradient_clip_val=1", "trainer=gpu_fast does not go with trainer.gradient_clip_val=1"),
        ("trainer.val_check_interval=0.5", "trainer=gpu_fast does not go with trainer.val_check_interval=0.5"),
        ("trainer.limit_train_batches=0.5", "trainer=gpu_fast does not go with trainer.limit_train_batches=0.5"),
        ("+trainer.overfit_batches=2", "trainer=gpu_fast does not go with trainer.overfit_batches=2"),
        ("callbacks=ema", "trainer=gpu_fast does not go with the callback EMAWeightAveraging"),
        (
            "+trainer.reload_dataloaders_every_n_epochs=1",
            "trainer=gpu_fast does not go with trainer.reload_dataloaders",
        ),
        (
            "+callbacks.finder._target_=lightning.pytorch.callbacks.LearningRateFinder",
            "trainer=gpu_fast does not go with the callback LearningRateFinder",
        ),
    ],
)
def test_what_needs_single_steps_is_refused(config: Compose, tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer=gpu_fast does not go") as error:
        run(config, tmp_path / "run", *FAST, override)
    assert str(error.value).startswith(sentence)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("hook", ["on_before_zero_grad", "on_before_optimizer_step", "on_after_backward"])
def test_a_hook_of_the_module_is_called_in_every_step(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(VAEModule, hook, lambda *_: calls.append(1), raising=False)
    run(config, tmp_path / "run", *FAST)
    assert len(calls) == 34


def test_a_callback_that_follows_gradients_is_refused(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "on_after_backward", lambda *_: None)
    with pytest.raises(ValueError, match="does not go with the callback Progress: choose trainer=gpu"):
        run(config, tmp_path / "run", *FAST)


def test_what_lightning_alone_would_call_is_refused(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VAEModule, "optimizer_step", lambda *_, **__: None, raising=False)
    with pytest.raises(ValueError, match="does not go with optimizer_step of GraphedModule"):
        run(config, tmp_path / "run", *FAST)


def test_windows_of_another_size_are_refused_when_resuming(config: Compose, tmp_path: Path) -> None:
    run(config, tmp_path / "run", *FAST)
    cfg = runs.saved_config(tmp_path / "run", ["trainer.max_epochs=3", "trainer.log_every_n_steps=2"])
    cfg.resume = str(tmp_path / "run")
    with pytest.raises(ValueError, match=r"cannot change the size of windows: set trainer.log_every_n_steps=6"):
        train(cfg, tmp_path / "run")


# Replayed steps, with a stand-in for the graph --------------------------------------------------------------------


class Graph:
    """A stand-in for torch.cuda.CUDAGraph: `replay` computes a step and checks that tensors did not move."""

    module: Any

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generator = generator

    def replay(self) -> None:
        module = self.module
        groups = module.trainer.optimizers[0].param_groups
        assert self.generator is module.trainer.train_dataloader.loader.noise
        assert self.places == self.lie_at()
        settings = [dict(group) for group in groups]
        for group, rate in zip(groups, module._rates, strict=True):
            group["lr"] = rate.item()
        module._optimize(module._index, 0)
        for group, before in zip(groups, settings, strict=True):
            group |= before

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that a graph reads and writes."""
        module, sums = self.module, self.module.metrics.sums["train"]
        moments = [v for state in module.trainer.optimizers[0].state.values() for v in state.values()]
        own = [module.step, *module.parameters(), *module.buffers(), sums._sums, sums._row, sums._step]
        return [*own, *filter(torch.is_tensor, moments)]

    def lie_at(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors()]

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Restore all that the step changed, because a real capture computes nothing."""
        rates = [group["lr"] for group in self.module.trainer.optimizers[0].param_groups]
        assert all(isinstance(rate, torch.Tensor) for rate in rates), "a number would be frozen into the graph"
        kept = [tensor.detach().clone() for tensor in self.tensors()]
        rng, noise = torch.get_rng_state(), self.generator.get_state()
        self.places = self.lie_at()
        yield
        for tensor, before in zip(self.tensors(), kept, strict=True):
            tensor.detach().copy_(before)
        torch.set_rng_state(rng)
        self.generator.set_state(noise)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace CUDA graphs by the stand-in, so steps are replayed on the CPU."""
    original = graphed.GraphedModule.setup

    def setup(self: Any, stage: str) -> None:
        original(self, stage)
        Graph.module = self

    monkeypatch.setattr(graphed.GraphedModule, "setup", setup)
    monkeypatch.setattr(graphed, "CAPTURES", ("cpu",))
    monkeypatch.setattr(graphed, "_side_stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph.capture)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    "overrides", [EVERYTHING, ["scheduler=iwae", "objective=factor"]], ids=["everything", "groups"]
)
def test_replayed_steps_equal_single_steps(config: Compose, tmp_path: Path, overrides: list[str]) -> None:
    """They agree to the rounding of learning rates, which a graph stores in float32. The rest computes in float64.

    In float32, Adam turns the rounding of gradients near zero into steps of any size, which differ between processors.
    """
    theirs = run(config, tmp_path / "theirs", *overrides, "trainer.precision=64-true")
    ours = run(config, tmp_path / "ours", *overrides, *FAST, "trainer.precision=64-true")
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=1e-6, atol=1e-6)
    for part in ("lr_schedulers", "MNISTDataModule"):
        assert equal(ours[part], theirs[part])
    assert equal(ours["vaelab"]["ranks"][0]["cpu"], theirs["vaelab"]["ranks"][0]["cpu"])
    groups = [checkpoint["optimizer_states"][0]["param_groups"] for checkpoint in (ours, theirs)]
    assert groups[0] == groups[1]
    points, expected = curves(tmp_path / "ours"), curves(tmp_path / "theirs")
    assert points.keys() == expected.keys()
    for name in expected:
        assert [step for step, _ in points[name]] == [step for step, _ in expected[name]]
        values, due = ([value for _, value in curve[name]] for curve in (points, expected))
        assert values == pytest.approx(due, rel=1e-4, abs=1e-3), name


@pytest.mark.usefixtures("graphs")
def test_an_edited_step_is_captured(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss of zero, neither the steps before the capture nor the replayed steps change a weight."""
    original = VAEModule.training_step
    monkeypatch.setattr(VAEModule, "training_step", lambda self, *args: 0 * original(self, *args))
    last = run(config, tmp_path / "run", *FAST, "trainer.max_epochs=1")["state_dict"]
    monkeypatch.setattr(VAEModule, "training_step", original)
    first = run(config, tmp_path / "other", "optimizer.lr=1e-30", "trainer.max_epochs=1")["state_dict"]
    assert equal(last, first)


@pytest.mark.usefixtures("graphs")
def test_a_step_that_cannot_be_captured_is_named(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def refuse(_: Any) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand much more")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(
        ValueError, match=r"^a step of VAE with ELBO cannot be captured as a CUDA graph, use trainer=gpu"
    ):
        run(config, tmp_path / "ours", *FAST)
