"""An edit of VAEModule.training_step takes effect under every trainer."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, checkpoint, metrics
from lightning.pytorch.callbacks import Callback

from train import train
from vaelab.training import VAEModule

SMALL = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent_dim=2", "callbacks.pictures.count=0"]
WINDOWS = ["trainer=gpu_fast", "trainer.accelerator=cpu"]
TRAINERS = {
    "default": [],
    "debug": ["trainer=debug"],
    "windows": WINDOWS,
    "mixed_precision": ["trainer=mixed_precision"],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
}
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward",
         "on_before_optimizer_step", "on_before_zero_grad")  # fmt: skip


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_edited_training_step_rules_every_step(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """With a loss of zero the weights do not change, and the edited step sees every batch."""
    count, first = [], {}
    original = VAEModule.training_step

    def training_step(self: VAEModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if not count:
            first.update({name: weight.clone() for name, weight in self.state_dict().items()})
        count.append(batch[0].shape)
        return 0 * original(self, batch, batch_idx)

    monkeypatch.setattr(VAEModule, "training_step", training_step)
    settings = ["trainer.limit_train_batches=null", "trainer.log_every_n_steps=4"]  # ten batches an epoch
    train(config(*SMALL, *TRAINERS[trainer], *settings), tmp_path)
    assert count == 20 * [(50, 1, 28, 28)]
    last = checkpoint(tmp_path)["state_dict"]
    assert all(torch.equal(last[name], weight) for name, weight in first.items())


@pytest.mark.parametrize("trainer", ["default", "windows"])
def test_an_edit_changes_the_gradient(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """If the loss is three times as large, one step of plain gradient descent is three times as long."""
    moved = []
    settings = [*SMALL, *TRAINERS[trainer], "optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"]
    original = VAEModule.training_step
    for factor in (1, 3):
        folder = tmp_path / str(factor)
        folder.mkdir()
        monkeypatch.setattr(VAEModule, "training_step", lambda self, *args, f=factor: f * original(self, *args))
        train(config(*settings, "optimizer.lr=1e-5", "trainer.max_steps=1"), folder)
        moved.append(checkpoint(folder)["state_dict"]["model.decoder.layers.2.bias"])
    start = moved[0] - (moved[1] - moved[0]) / 2
    torch.testing.assert_close(moved[1] - start, 3 * (moved[0] - start), rtol=1e-3, atol=1e-7)
    assert (moved[1] - moved[0]).abs().max() > 1e-5


class Watcher(Callback):
    """Counts the calls of each Lightning hook around a batch and an optimiser step."""

    calls: dict[str, int] = {}  # noqa: RUF012


for _hook in HOOKS:
    setattr(Watcher, _hook, lambda self, *_, hook=_hook: self.calls.update({hook: self.calls.get(hook, 0) + 1}))


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> type[Watcher]:
    module = ModuleType("my_callbacks")
    module.Watcher = Watcher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_callbacks", module)
    monkeypatch.setattr(Watcher, "calls", {})
    return Watcher


def test_a_callback_sees_every_batch_and_optimiser_step(config: Compose, tmp_path: Path, watcher: Any) -> None:
    mine = ["+callbacks.mine._target_=my_callbacks.Watcher", "trainer.limit_train_batches=null"]
    train(config(*SMALL, *mine), tmp_path)
    assert watcher.calls == dict.fromkeys(HOOKS, 20)


@pytest.mark.parametrize("hook", [*HOOKS[2:], "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"])
def test_a_hook_of_the_module_is_called_in_every_step(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    calls, original = [], getattr(VAEModule, hook)
    monkeypatch.setattr(VAEModule, hook, lambda *args, **kw: (calls.append(1), original(*args, **kw))[1], raising=False)
    train(config(*SMALL, "trainer.limit_train_batches=null"), tmp_path)
    assert len(calls) == 20


def test_the_graphed_trainer_says_who_sees_windows(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watcher: Any
) -> None:
    for hook in HOOKS[2:]:
        monkeypatch.delattr(Watcher, hook)
    mine = ["+callbacks.mine._target_=my_callbacks.Watcher", "trainer.limit_train_batches=null"]
    train(config(*SMALL, *WINDOWS, *mine, "trainer.log_every_n_steps=4"), tmp_path)
    said = (tmp_path / "train.log").read_text()
    assert "callbacks see one batch for every 4 steps: Watcher\n" in said
    assert watcher.calls == {"on_train_batch_start": 6, "on_train_batch_end": 6}  # windows of 4, 4 and 2 steps


def test_a_metric_of_ones_own_is_logged_as_lightning_documents(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    original = VAEModule.training_step

    def training_step(self: VAEModule, *args: Any) -> torch.Tensor:
        loss = original(self, *args)
        self.log("mine/epoch", loss, on_step=False, on_epoch=True)
        self.log("mine/step", loss)
        return loss

    monkeypatch.setattr(VAEModule, "training_step", training_step)
    train(config(*SMALL, "trainer.limit_train_batches=null"), tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Scalars("mine/step")) == 10
    means = [event.value for event in events.Scalars("mine/epoch")]
    assert means[-1] == pytest.approx(metrics(tmp_path)["train"]["loss"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # raised by Lightning's own use of torch
def test_a_plain_trainer_returns_the_metrics(config: Compose, tmp_path: Path) -> None:
    """Lightning's fit, validate and test work from Python, without train.py."""
    from hydra.utils import instantiate

    from vaelab import runs

    cfg = config(*SMALL)
    data, module = instantiate(cfg.data, _convert_="all"), runs.build(cfg)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False, log_every_n_steps=5,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    (validated,) = trainer.validate(module, data, verbose=False)
    (tested,) = trainer.test(module, data, verbose=False)
    for split, returned in (("val", validated), ("test", tested)):
        assert set(returned) == {f"{split}/{term}" for term in ("loss", "elbo", "rate", "distortion")}
        assert returned[f"{split}/loss"] == pytest.approx(returned[f"{split}/rate"] + returned[f"{split}/distortion"])
    assert trainer.callback_metrics["test/elbo"] == pytest.approx(-tested["test/loss"])
