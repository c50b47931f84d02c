"""Steps that Lightning does not see make the same run."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import runs
from vaelab.training import Interrupted, fast
from vaelab.training.totals import Totals

LIGHTNING = ["trainer._target_=lightning.pytorch.Trainer"]
SETTINGS = [
    "data.batch_size=30",
    "trainer.limit_train_batches=null",
    "trainer.log_every_n_steps=6",
]  # 17 steps an epoch
EVERYTHING = [
    "scheduler=cosine", "objective/beta=linear", "objective.beta.steps=20", "trainer.gradient_clip_val=50",
    "optimizer=adamw", "model.num_classes=10",
]  # fmt: skip
SAME = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step", "MNISTDataModule")


def run(config: Compose, folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir()
    train(config(*SETTINGS, *overrides), folder)
    return checkpoint(folder)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_agree(folder: Path) -> None:
    """The curves of two runs, to the rounding of float32."""
    ours, theirs = curves(folder / "ours"), curves(folder / "theirs")
    assert ours.keys() == theirs.keys()
    for name, points in theirs.items():
        assert ours[name] == [pytest.approx(point, rel=1e-5) for point in points], name


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for part in SAME:
        if part != "callbacks":  # which name their folders
            assert equal(ours[part], theirs[part]), part
    assert equal(ours["vaelab"]["rng_state"], theirs["vaelab"]["rng_state"])
    assert repr(ours["loops"]) == repr(theirs["loops"])


@pytest.mark.parametrize(
    "overrides",
    [
        EVERYTHING,
        ["optimizer=sgd", "scheduler=iwae", "objective=iwae", "objective.num_samples=3"],
        ["trainer.limit_train_batches=8", "data.binarization=none", "objective=factor"],
        ["trainer.accumulate_grad_batches=2"],
        ["+trainer.max_steps=21"],
        ["trainer.precision=bf16-mixed"],
    ],
    ids=["everything", "iwae", "cut", "accumulated", "max_steps", "bf16"],
)
def test_equals_lightnings_steps(config: Compose, tmp_path: Path, overrides: list[str]) -> None:
    theirs = run(config, tmp_path / "theirs", *LIGHTNING, *overrides)
    ours = run(config, tmp_path / "ours", *overrides)
    assert_same(ours, theirs)
    assert curves(tmp_path / "ours") == curves(tmp_path / "theirs")
    assert metrics(tmp_path / "ours")["test"] == metrics(tmp_path / "theirs")["test"]


def test_most_steps_are_unseen(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes three steps to warm up, and those where a point of the curve is due or an epoch ends."""
    seen: list[int] = []
    original = fast._TrainingEpochLoop.advance
    monkeypatch.setattr(
        fast._TrainingEpochLoop, "advance", lambda loop, data: (original(loop, data), seen.append(loop.global_step))
    )
    run(config, tmp_path / "ours")
    assert seen == [1, 2, 3, 6, 12, 17, 18, 24, 30, 34]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["+callbacks.mine._target_=training_callbacks.Watcher"], "Watcher has on_after_backward"),
        (["trainer.accumulate_grad_batches=2"], "accumulated gradients"),
        (["+trainer.profiler=simple"], "a profiler"),
        (["+trainer.val_check_interval=5"], "validation within epochs"),
    ],
    ids=["callback", "accumulated", "profiler", "validation"],
)
def test_lightning_takes_steps_that_are_watched(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], why: str
) -> None:
    class Watcher(L.Callback):
        seen = 0

        def on_after_backward(self, *_: Any) -> None:
            Watcher.seen += 1

    module = ModuleType("training_callbacks")
    module.Watcher = Watcher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "training_callbacks", module)
    run(config, tmp_path / "ours", *overrides)
    (line,) = (line for line in (tmp_path / "ours/train.log").read_text().splitlines() if "one by one" in line)
    assert why in line
    if "Watcher" in why:
        assert Watcher.seen == 34


@pytest.mark.parametrize(("step", "resumed_by"), [(5, ""), (8, ""), (16, ""), (21, "lightning.pytorch.Trainer")])
def test_stopped_and_resumed_equals_uninterrupted(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, resumed_by: str
) -> None:
    """By a signal that comes in a step that nobody sees: the next is Lightning's, which saves and stops."""
    whole = run(config, tmp_path / "whole", *EVERYTHING)
    parts = tmp_path / "parts"
    original = fast._FastLoop._optimize

    def optimize(loop: Any, index: torch.Tensor) -> torch.Tensor:
        if loop.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(loop, index)

    with monkeypatch.context() as patch:
        patch.setattr(fast._FastLoop, "_optimize", optimize)
        with pytest.raises(Interrupted):
            run(config, parts, *EVERYTHING)
    assert checkpoint(parts)["global_step"] == step + 1
    cfg = runs.saved_config(parts)
    cfg.resume = str(parts)
    cfg.trainer._target_ = resumed_by or cfg.trainer._target_
    train(cfg, parts)
    assert_same(checkpoint(parts), whole)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.11's own
def test_compiled_curves_agree(config: Compose, tmp_path: Path) -> None:
    """To the rounding of float32, whatever torch fused."""
    settings = [
        "model.encoder.hidden=[8]",
        "model.decoder.hidden=[8]",
        "model.latent_dim=2",
        "callbacks.figures.count=0",
    ]
    run(config, tmp_path / "theirs", *LIGHTNING, *settings)
    run(config, tmp_path / "ours", "+trainer.compile=true", *settings)
    assert_agree(tmp_path)
    said = (tmp_path / "ours/train.log").read_text()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert ("compiled in" if compiler else "not compiled") in said


def test_without_a_compiler_it_trains_all_the_same(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler\nof many lines")

        return call

    theirs = run(config, tmp_path / "theirs", *LIGHTNING)
    monkeypatch.setattr(torch, "compile", broken)
    assert_same(run(config, tmp_path / "ours", "+trainer.compile=true"), theirs)
    said = (tmp_path / "ours/train.log").read_text()
    assert "not compiled, which is slower and no different: no C++ compiler\n" in said


# All of a graph but its capture ---------------------------------------------------------------------------------------


class Graph:
    """Stands for torch.cuda.CUDAGraph: `replay` computes what was recorded, with the tensors that were recorded."""

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generator = generator

    def replay(self) -> None:
        groups = self.loop.trainer.optimizers[0].param_groups
        assert self.generator is self.loop.trainer.train_dataloader.noise
        assert self.places == self.lie_at()
        settings = [dict(group) for group in groups]
        for group, rate in zip(groups, self.loop._rates, strict=True):
            group["lr"] = rate.item()
        self.loop._row.copy_(self.loop._optimize(self.loop._index))
        for group, before in zip(groups, settings, strict=True):
            group |= before

    def lie_at(self) -> list[int]:
        """Where a graph reads and writes."""
        module, optimizer = self.loop.trainer.lightning_module, self.loop.trainer.optimizers[0]
        moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return [tensor.data_ptr() for tensor in (module.step, *module.parameters(), *module.buffers(), *moments)]

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Record, and compute nothing: what the step changed is put back."""
        module, optimizer = self.loop.trainer.lightning_module, self.loop.trainer.optimizers[0]
        rates = [group["lr"] for group in optimizer.param_groups]
        assert all(isinstance(rate, torch.Tensor) for rate in rates), "a number would be frozen into the graph"
        moments = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [module.step, *module.state_dict().values(), *filter(torch.is_tensor, moments)]
        kept = [tensor.detach().clone() for tensor in tensors]
        rng, noise = torch.get_rng_state(), self.generator.get_state()
        self.places = self.lie_at()
        yield
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.detach().copy_(before)
        torch.set_rng_state(rng)
        self.generator.set_state(noise)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fast._FastLoop.__init__

    def init(loop: Any, *args: Any) -> None:
        original(loop, *args)
        Graph.loop = loop  # type: ignore[attr-defined]

    monkeypatch.setattr(fast._FastLoop, "__init__", init)
    monkeypatch.setattr(fast._FastLoop, "_captures", True)
    monkeypatch.setattr(fast, "_side_stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph.capture)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    "overrides", [EVERYTHING, ["scheduler=iwae", "objective=factor"]], ids=["everything", "groups"]
)
def test_replayed_steps_equal_lightnings(config: Compose, tmp_path: Path, overrides: list[str]) -> None:
    theirs = run(config, tmp_path / "theirs", *LIGHTNING, *overrides)
    ours = run(config, tmp_path / "ours", *overrides)
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=1e-5, atol=2e-5)  # rates are float32
    assert equal(ours["vaelab"]["rng_state"], theirs["vaelab"]["rng_state"])
    assert equal(ours["MNISTDataModule"], theirs["MNISTDataModule"])
    assert equal(ours["lr_schedulers"], theirs["lr_schedulers"])
    groups = [checkpoint["optimizer_states"][0]["param_groups"] for checkpoint in (ours, theirs)]
    assert groups[0] == groups[1]
    assert_agree(tmp_path)


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
        run(config, tmp_path / "ours")


def test_sums_are_read_in_windows_of_steps() -> None:
    """Once at the end or window by window: the same means, at the same steps."""
    values = torch.arange(1.0, 12.0)
    late, early, expected = Totals(), Totals(), []
    for i, value in enumerate(values):
        for totals in (late, early):
            totals.add({"loss": value * torch.ones(2 + i)}, i + 1)
        if (i + 1) % 4 == 0:
            expected += early.read()
    assert late.read(4) == [*expected, *early.read()]
    assert [step for step, _ in expected] == [4, 8]
    assert (late.sums, late.images) == (early.sums, early.images)
