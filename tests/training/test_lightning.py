"""Each flag and callback of Lightning has its documented effect, and a run keeps the weights that it validated."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import load_run, runs
from vaelab.training import Progress, VAEModule

SMALL = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent_dim=2", "callbacks.pictures.count=0"]
PLAIN_SGD = ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"]
WHOLE = "trainer.limit_train_batches=null"  # ten batches of 50 images
PICKED = ("rate", "distortion", "loss", "elbo")


class Recorder(Callback):
    """Keeps the weights at the start of each epoch and after each batch, and the images of each batch."""

    steps: list[dict[str, torch.Tensor]]
    starts: list[dict[str, torch.Tensor]]
    images: list[torch.Tensor]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        Recorder.starts, Recorder.steps, Recorder.images = [], [], []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        Recorder.starts.append(copied(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        Recorder.steps.append(copied(pl_module))
        Recorder.images.append(batch[0])


def copied(module: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> str:
    """An override that adds the Recorder."""
    module = ModuleType("recorder")
    module.Recorder = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recorder", module)
    return "+callbacks.recorder._target_=recorder.Recorder"


def curve(folder: Path, tag: str) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # raised by Lightning's own use of torch


def agree(cfg: Any, folder: Path, weights: str) -> None:
    """weights.pt, best.ckpt and metrics.json describe the same weights: a plain Trainer measures the same metrics."""
    content, best = metrics(folder), folder / "checkpoints" / "best.ckpt"
    assert content["weights"]["test"] == content["weights"]["val"] == weights
    assert content["best_checkpoint"] == (None if weights == "last" else "checkpoints/best.ckpt")
    kept = {f"model.{name}": weight for name, weight in load_run(folder).state_dict().items()}
    if weights != "last":
        saved = checkpoint(folder, "best")
        assert equal(kept, {name: saved["state_dict"][name] for name in kept})
        assert content["weights"]["step"] == saved["global_step"]
    else:
        assert not best.exists()
    torch.distributions.Distribution.set_default_validate_args(False)
    data, module = instantiate(cfg.data, _convert_="all"), runs.build(cfg)
    module.load_state_dict(kept, strict=False)
    limits = {f"limit_{split}_batches": 2 for split in ("val", "test")}
    plain = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder / "plain", **limits,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="no logger configured"):
        measured = {**plain.test(module, data, verbose=False)[0], **plain.validate(module, data, verbose=False)[0]}
    for split in ("val", "test"):
        expected = {f"{split}/{name}": content[split][name] for name in PICKED}
        assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-6)


# The weights that are kept --------------------------------------------------------------------------------------------


def test_the_best_epoch_s_weights_are_kept(config: Compose, tmp_path: Path) -> None:
    cfg = config(*SMALL, "trainer.max_epochs=4", "optimizer.lr=0.05")
    train(cfg, tmp_path)
    agree(cfg, tmp_path, "best")


def test_without_a_best_checkpoint_everything_says_last(config: Compose, tmp_path: Path) -> None:
    cfg = config(*SMALL, "callbacks.best_checkpoint=null")
    metric = train(cfg, tmp_path)
    agree(cfg, tmp_path, "last")
    assert metric == pytest.approx(metrics(tmp_path)["val"]["loss"])
    state = checkpoint(tmp_path)["state_dict"]
    assert equal(dict(load_run(tmp_path).state_dict()), {k.removeprefix("model."): v for k, v in state.items()})


@pytest.mark.parametrize("setting", ["trainer.max_steps=2", "trainer.check_val_every_n_epoch=3"])
def test_without_a_validated_epoch_the_last_weights_are_kept(
    config: Compose, tmp_path: Path, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(*SMALL, setting)
    with caplog.at_level(logging.INFO, "vaelab"):
        train(cfg, tmp_path)
    assert "the last weights are kept: no epoch was validated" in caplog.text
    agree(cfg, tmp_path, "last")
    assert metrics(tmp_path)["steps"] == (2 if "steps" in setting else 6)


def test_after_early_stopping_the_best_weights_are_kept(config: Compose, tmp_path: Path) -> None:
    patience = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9"]
    cfg = config(*SMALL, *patience, *PLAIN_SGD, "optimizer.lr=0.02")
    train(cfg, tmp_path)
    assert metrics(tmp_path)["epochs"] < 9
    agree(cfg, tmp_path, "best")
    best = checkpoint(tmp_path, "best")["global_step"]
    assert best == 3 * (metrics(tmp_path)["epochs"] - 1)


def test_an_exponential_average_is_what_is_validated_tested_and_kept(
    config: Compose, tmp_path: Path, recorded: str
) -> None:
    """best.ckpt holds the average over the steps, and last.ckpt also holds the weights without averaging."""
    cfg = config(*SMALL, "callbacks=ema", "callbacks.ema.decay=0.7", recorded, "trainer.max_epochs=3")
    train(cfg, tmp_path)
    averages, average = [], Recorder.steps[0]
    for i, weights in enumerate(Recorder.steps):
        average = weights if i == 0 else {name: 0.7 * average[name] + 0.3 * weights[name] for name in weights}
        averages.append(average)
    best = checkpoint(tmp_path, "best")
    torch.testing.assert_close(dict(best["state_dict"]), averages[best["global_step"] - 1])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(dict(best["state_dict"]), Recorder.steps[best["global_step"] - 1])
    assert equal(dict(checkpoint(tmp_path)["current_model_state"]), Recorder.steps[-1])
    agree(cfg, tmp_path, "best")


def test_a_stochastic_average_is_kept(config: Compose, tmp_path: Path, recorded: str) -> None:
    """Lightning averages the weights at the start of each epoch from swa_epoch_start on."""
    swa = ["callbacks=swa", "callbacks.swa.swa_lrs=0.01", "callbacks.swa.swa_epoch_start=2"]
    cfg = config(*SMALL, *swa, recorded, "trainer.max_epochs=4")
    train(cfg, tmp_path)
    starts = Recorder.starts[1:]
    average = {name: torch.stack([start[name] for start in starts]).mean(0) for name in starts[0]}
    torch.testing.assert_close(dict(checkpoint(tmp_path, "best")["state_dict"]), average)
    agree(cfg, tmp_path, "average")


def test_a_stochastic_average_resumes_bit_for_bit(config: Compose, tmp_path: Path) -> None:
    """The run is stopped among the epochs that are averaged."""
    for name, epochs in (("whole", 5), ("parts", 3)):
        (tmp_path / name).mkdir()
        swa = ["callbacks=swa", "callbacks.swa.swa_epoch_start=2", "callbacks.swa.annealing_epochs=2"]
        train(config(*SMALL, *swa, "callbacks.swa.swa_lrs=0.02", f"trainer.max_epochs={epochs}"), tmp_path / name)
    cfg = runs.saved_config(tmp_path / "parts", ["trainer.max_epochs=5"])
    cfg.resume = str(tmp_path / "parts")
    train(cfg, tmp_path / "parts")
    whole, parts = (checkpoint(tmp_path / name, "best") for name in ("whole", "parts"))
    assert equal(whole["state_dict"], parts["state_dict"])
    assert metrics(tmp_path / "whole")["test"] == metrics(tmp_path / "parts")["test"]


def test_a_run_that_ends_early_has_no_stochastic_average(
    config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(*SMALL, "callbacks=swa", "trainer.max_epochs=4", "trainer.max_steps=9")
    with caplog.at_level(logging.INFO, "vaelab"):
        train(cfg, tmp_path)
    assert "so StochasticWeightAveraging changes no weights" in caplog.text
    agree(cfg, tmp_path, "best")


def test_averages_without_validation_images_are_kept(config: Compose, tmp_path: Path, recorded: str) -> None:
    train(config(*SMALL, "callbacks=ema", "callbacks.ema.decay=0.5", recorded, "data.val_size=0"), tmp_path)
    state = {name.removeprefix("model."): w for name, w in checkpoint(tmp_path)["state_dict"].items()}
    assert equal(dict(load_run(tmp_path).state_dict()), state)
    assert not equal(state, {name.removeprefix("model."): w for name, w in Recorder.steps[-1].items()})
    assert metrics(tmp_path)["weights"]["test"] == "last"


def test_a_run_that_was_killed_while_it_was_tested_is_measured_by_resuming(config: Compose, tmp_path: Path) -> None:
    """No step is left to train, and the checkpoint holds the averaged weights and the training metrics."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        train(config(*SMALL, "callbacks=ema", "callbacks.ema.decay=0.5", "data.val_size=0"), tmp_path / name)
    for file in ("metrics.json", "weights.pt"):
        (tmp_path / "killed" / file).unlink()
    cfg = runs.saved_config(tmp_path / "killed")
    cfg.resume = str(tmp_path / "killed")
    metric = train(cfg, tmp_path / "killed")
    ours, theirs = (metrics(tmp_path / name) for name in ("killed", "whole"))
    assert metric == theirs["train"]["loss"]
    for split in ("train", "test"):
        assert {k: v for k, v in ours[split].items() if "second" not in k} == {
            k: v for k, v in theirs[split].items() if "second" not in k
        }
    assert equal(*(dict(load_run(tmp_path / name).state_dict()) for name in ("killed", "whole")))


@pytest.mark.parametrize("options", [["callbacks=ema"], ["callbacks=ema", "model/posterior=full_covariance"]])
def test_averaging_resumes_bit_for_bit(config: Compose, tmp_path: Path, options: list[str]) -> None:
    for name, epochs in (("whole", 4), ("parts", 2)):
        (tmp_path / name).mkdir()
        train(config(*SMALL, *options, f"trainer.max_epochs={epochs}"), tmp_path / name)
    cfg = runs.saved_config(tmp_path / "parts", ["trainer.max_epochs=4"])
    cfg.resume = str(tmp_path / "parts")
    train(cfg, tmp_path / "parts")
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert equal(checkpoint(tmp_path / "whole")[part], checkpoint(tmp_path / "parts")[part]), part
    assert metrics(tmp_path / "whole")["test"] == metrics(tmp_path / "parts")["test"]


# Flags of the Trainer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(config: Compose, tmp_path: Path, recorded: str, algorithm: str) -> None:
    clip = ["trainer.gradient_clip_val=0.01", f"+trainer.gradient_clip_algorithm={algorithm}"]
    train(config(*SMALL, *PLAIN_SGD, "optimizer.lr=1", *clip, recorded, "trainer.max_steps=1"), tmp_path)
    (after,), (before, *_) = Recorder.steps, Recorder.starts
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after])
    size = moved.norm() if algorithm == "norm" else moved.abs().max()
    assert size.item() == pytest.approx(0.01, rel=1e-3)


def test_accumulated_batches_are_one_larger_batch(config: Compose, tmp_path: Path) -> None:
    """Without noise, two accumulated batches of 50 images give the same weights as one batch of 100."""
    settings = [*SMALL, "experiment=autoencoder", WHOLE, "trainer.max_epochs=2", "callbacks.pictures.count=0"]
    for name, own in (("one", ["data.batch_size=100"]), ("two", ["trainer.accumulate_grad_batches=2"])):
        (tmp_path / name).mkdir()
        train(config(*settings, *own), tmp_path / name)
    first, second = (checkpoint(tmp_path / name) for name in ("one", "two"))
    assert first["global_step"] == second["global_step"] == 10
    for name, weight in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weight, rtol=0, atol=1e-5)
    assert curve(tmp_path / "one", "train/loss") == curve(tmp_path / "two", "train/loss") == [2, 4, 5, 6, 8, 10]


def test_accumulation_may_change_with_the_epoch(config: Compose, tmp_path: Path) -> None:
    """The first epoch takes five steps and the others take two, and the cosine schedule ends at zero."""
    schedule = [
        "+callbacks.accumulation._target_=lightning.pytorch.callbacks.GradientAccumulationScheduler",
        "+callbacks.accumulation.scheduling={0:2,1:5}", "scheduler=cosine", WHOLE,
    ]  # fmt: skip
    train(config(*SMALL, *schedule, "trainer.max_epochs=null", "steps=9"), tmp_path)
    assert metrics(tmp_path)["epochs"] == 3
    assert metrics(tmp_path)["steps"] == 5 + 2 + 2
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "steps", "epochs", "said"),
    [
        (["steps=20", "trainer.limit_train_batches=5"], 20, 4, "4 epochs of 5 batches"),
        (["steps=20", "trainer.limit_train_batches=0.5"], 20, 4, "4 epochs of 5 batches"),
        (["steps=20", "+trainer.overfit_batches=2"], 20, 10, "10 epochs of 2 batches"),
        (["steps=14", WHOLE, "trainer.accumulate_grad_batches=3"], 16, 4, "4 epochs of 10 batches"),
        (["trainer.max_steps=14", WHOLE], 14, 2, "14 steps, in epochs of 10 batches"),
        (["trainer.max_steps=4", WHOLE], 4, 1, "4 steps, in epochs of 10 batches"),
        (["trainer.max_steps=4", "trainer.max_epochs=1", WHOLE], 4, 1, "1 epoch of 10 batches, or 4 steps"),
    ],
)
def test_the_length_follows_what_is_really_taken(
    config: Compose, tmp_path: Path, settings: list[str], steps: int, epochs: int, said: str
) -> None:
    train(config(*SMALL, "trainer.max_epochs=null", *settings), tmp_path)
    assert (metrics(tmp_path)["steps"], metrics(tmp_path)["epochs"]) == (steps, epochs)
    assert f"length   {said}\n" in (tmp_path / "train.log").read_text()


def test_overfit_batches_are_the_same_each_epoch(config: Compose, tmp_path: Path, recorded: str) -> None:
    train(config(*SMALL, "+trainer.overfit_batches=2", "data.binarization=none", recorded), tmp_path)
    first, second, *again = Recorder.images
    assert equal(again, [first, second])
    assert not torch.equal(first, second)


def test_fast_dev_run_takes_one_batch_of_everything(config: Compose, tmp_path: Path) -> None:
    train(config(*SMALL, "+trainer.fast_dev_run=true", WHOLE), tmp_path)
    assert metrics(tmp_path)["steps"] == 1
    assert not (tmp_path / "checkpoints").exists()


def test_a_time_limit_ends_the_run_and_a_resumed_run_goes_on(config: Compose, tmp_path: Path) -> None:
    limit = "+trainer.max_time={seconds:1}"
    train(config(*SMALL, WHOLE, "trainer.max_epochs=100000", limit), tmp_path)
    before = metrics(tmp_path)
    assert 1 <= before["steps"] < 10**6
    cfg = runs.saved_config(tmp_path, ["trainer.max_time={seconds:2}"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert metrics(tmp_path)["steps"] > before["steps"]
    assert metrics(tmp_path)["epochs"] > before["epochs"]


@pytest.mark.parametrize("end", ["should_stop", "max_steps"])
def test_a_run_that_ended_within_an_epoch_goes_on_there(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """After a stop or a limit of steps, the resumed run equals an uninterrupted run bit for bit."""

    def on_train_batch_start(_: Any, trainer: Any, *__: Any) -> None:
        trainer.should_stop = trainer.global_step == 12

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    length, more = (["trainer.max_steps=13"], ["trainer.max_steps=30"]) if end == "max_steps" else ([], [])
    settings = [*SMALL, WHOLE, "trainer.max_epochs=3", "scheduler=iwae"]
    train(config(*settings, *more), whole)
    with monkeypatch.context() as patch:
        if end == "should_stop":
            patch.setattr(Progress, "on_train_batch_start", on_train_batch_start)
        train(config(*settings, *length), parts)
    assert (metrics(parts)["steps"], metrics(parts)["epochs"]) == (13, 2)
    assert ("something set trainer.should_stop" in (parts / "train.log").read_text()) == (end == "should_stop")
    cfg = runs.saved_config(parts, more)
    cfg.resume = str(parts)
    train(cfg, parts)
    assert (parts / "train.log").read_text().count("; it goes on at step 14\n") == 1
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(checkpoint(parts)[part], checkpoint(whole)[part]), part
    assert metrics(parts)["test"] == metrics(whole)["test"]


def test_validation_every_third_epoch(config: Compose, tmp_path: Path) -> None:
    """The schedule steps only after a validation, and the best weights are from a validated epoch."""
    plateau = [
        "scheduler=plateau", "scheduler.scheduler.patience=0", "+scheduler.scheduler.threshold=1.0",
        "trainer.max_epochs=7", "trainer.check_val_every_n_epoch=3",
    ]  # fmt: skip
    cfg = config(*SMALL, *plateau)
    train(cfg, tmp_path)
    assert curve(tmp_path, "val/loss") == [9, 18]
    assert checkpoint(tmp_path, "best")["global_step"] in (9, 18)
    scheduler = checkpoint(tmp_path)["lr_schedulers"][0]
    assert scheduler["last_epoch"] == 2
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(2.5e-4)
    agree(cfg, tmp_path, "best")


@pytest.mark.parametrize("monitor", ["mine/value", "val/mine"])
def test_a_schedule_may_wait_for_a_metric_of_ones_own(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str
) -> None:
    original = VAEModule.validation_step

    def validation_step(self: VAEModule, *args: Any) -> None:
        original(self, *args)
        self.log(monitor, 1.0)

    monkeypatch.setattr(VAEModule, "validation_step", validation_step)
    plateau = ["scheduler=plateau", "scheduler.scheduler.patience=0", f"+scheduler.monitor={monitor}"]
    train(config(*SMALL, *plateau, "trainer.max_epochs=3"), tmp_path)
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(2.5e-4)


def test_a_schedule_that_waits_for_what_nobody_logs_is_refused(config: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^scheduler.monitor=no/such: nothing logs this metric; there are .*val/loss"):
        train(config(*SMALL, "scheduler=plateau", "+scheduler.monitor=no/such"), tmp_path)


def test_a_schedule_steps_every_second_epoch(config: Compose, tmp_path: Path) -> None:
    plateau = ["scheduler=plateau", "scheduler.scheduler.patience=0", "+scheduler.scheduler.threshold=1.0"]
    train(config(*SMALL, *plateau, "+scheduler.frequency=2", "trainer.max_epochs=5"), tmp_path)
    assert checkpoint(tmp_path)["lr_schedulers"][0]["last_epoch"] == 2


def test_validation_twice_an_epoch(config: Compose, tmp_path: Path) -> None:
    cfg = config(*SMALL, WHOLE, "trainer.val_check_interval=0.5", "optimizer.lr=0.03")
    train(cfg, tmp_path)
    assert curve(tmp_path, "val/loss") == [5, 10, 15, 20]
    agree(cfg, tmp_path, "best")


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_limits_of_batches(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hook = {"train": "training_step", "val": "validation_step", "test": "test_step"}[name]
    count, original = [], getattr(VAEModule, hook)
    monkeypatch.setattr(VAEModule, hook, lambda *args: (count.append(1), original(*args))[1])
    sizes = ["data.eval_batch_size=10", "trainer.max_epochs=1"]
    train(config(*SMALL, *sizes, f"trainer.limit_{name}_batches=4"), tmp_path)
    assert len(count) == (8 if name == "val" else 4)  # the end of the run validates the best weights once more


def test_reloaded_loaders_make_the_same_run(config: Compose, tmp_path: Path) -> None:
    for name, own in (("plain", []), ("reloaded", ["+trainer.reload_dataloaders_every_n_epochs=1"])):
        (tmp_path / name).mkdir()
        train(config(*SMALL, WHOLE, *own), tmp_path / name)
    assert equal(checkpoint(tmp_path / "plain")["state_dict"], checkpoint(tmp_path / "reloaded")["state_dict"])


def test_detect_anomaly_names_the_function(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = VAEModule.training_step

    def training_step(self: VAEModule, *args: Any) -> torch.Tensor:
        return original(self, *args) + 0 * (self.model.decoder.layers[0].weight.sum() * 0).sqrt()

    monkeypatch.setattr(VAEModule, "training_step", training_step)
    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward"),
        pytest.raises(RuntimeError, match="returned nan values"),
    ):
        train(config(*SMALL, "+trainer.detect_anomaly=true"), tmp_path)


def test_the_simple_profiler_reports(config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
    try:
        train(config(*SMALL, "trainer.profiler=simple"), tmp_path)
    finally:
        logging.getLogger("lightning.pytorch").removeHandler(caplog.handler)
    assert "FIT Profiler Report" in caplog.text
    assert "[Strategy]SingleDeviceStrategy.training_step" in caplog.text


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)])
@pytest.mark.parametrize("option", ["model=vae", "model=ladder", "model/posterior=flow", "objective=iwae"])
def test_precision(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype, option: str
) -> None:
    """Linear layers compute in the chosen precision, and terms have at least float32."""
    seen, original = set(), VAEModule.terms

    def terms(self: VAEModule, *args: Any) -> dict[str, torch.Tensor]:
        hook = next(m for m in self.model.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(
            lambda _module, _inputs, output: seen.add(output.dtype)
        )
        result = original(self, *args)
        hook.remove()
        assert {term.dtype for term in result.values()} == {torch.float32 if "bf16" in precision else torch.float64}
        return result

    monkeypatch.setattr(VAEModule, "terms", terms)
    train(config(option, f"trainer.precision={precision}"), tmp_path)
    assert seen == {dtype}
    assert metrics(tmp_path)["steps"] == 6
    load_run(tmp_path)


def test_callbacks_see_the_metrics_of_the_epoch_that_ends(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """callback_metrics holds each split's loss at the end of its epoch, as with self.log in a step."""
    seen: dict[str, list[float]] = {"val": [], "train": [], "test": []}
    for hook, split in (("validation_epoch", "val"), ("train_epoch", "train"), ("test_epoch", "test")):
        monkeypatch.setattr(
            Progress, f"on_{hook}_end",
            lambda _, trainer, __, s=split: seen[s].append(float(trainer.callback_metrics[f"{s}/loss"])),
        )  # fmt: skip
    train(config(*SMALL), tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert seen["val"][:2] == pytest.approx([event.value for event in events.Scalars("val/loss")])
    assert seen["train"][1] == pytest.approx(metrics(tmp_path)["train"]["loss"])
    assert seen["test"] == pytest.approx([metrics(tmp_path)["test"]["loss"]])


# Lightning's callbacks ------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_ones_own(config: Compose, tmp_path: Path) -> None:
    mine = [
        "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint", "+callbacks.mine.monitor=val/rate",
        "+callbacks.mine.mode=max", "+callbacks.mine.filename=highest-rate", "trainer.max_epochs=3",
        "+callbacks.other._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        "+callbacks.other.every_n_train_steps=4", "+callbacks.other.save_top_k=-1",
    ]  # fmt: skip
    cfg = config(*SMALL, *mine)
    train(cfg, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "highest-rate.ckpt", "epoch=1-step=4.ckpt", "epoch=2-step=8.ckpt"}
    rates = {e.step: e.value for e in EventAccumulator(str(tmp_path)).Reload().Scalars("val/rate")}
    assert checkpoint(tmp_path, "highest-rate")["global_step"] == max(rates, key=rates.__getitem__)
    agree(cfg, tmp_path, "best")


FINDER = ["+callbacks.finder._target_=lightning.pytorch.callbacks.LearningRateFinder"]


@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*exceed the number of batches")
@pytest.mark.parametrize("option", ["scheduler=none", "scheduler=cosine", "model/likelihood=bernoulli_at_mean"])
def test_the_learning_rate_finder_chooses_the_rate(config: Compose, tmp_path: Path, option: str) -> None:
    """The search does not change weights or curves, and a resumed run keeps the rate without a new search."""
    settings = [*SMALL, option, *FINDER, "+callbacks.finder.num_training_steps=30", WHOLE]
    train(config(*settings), tmp_path)
    (group,) = checkpoint(tmp_path)["optimizer_states"][0]["param_groups"]
    rates = EventAccumulator(str(tmp_path)).Reload().Scalars("train/lr")
    found = checkpoint(tmp_path)["lr_schedulers"][0]["base_lrs"][0] if "cosine" in option else group["lr"]
    assert rates[0].value == pytest.approx(found, rel=0.1)
    assert found != pytest.approx(1e-3)
    assert curve(tmp_path, "train/loss") == list(range(2, 21, 2))
    if "cosine" not in option:
        (tmp_path / "plain").mkdir()
        train(config(*SMALL, option, f"optimizer.lr={found}", WHOLE), tmp_path / "plain")
        losses = [
            EventAccumulator(str(folder)).Reload().Scalars("val/loss") for folder in (tmp_path, tmp_path / "plain")
        ]
        assert [event.value for event in losses[0]] == [event.value for event in losses[1]]
        assert equal(checkpoint(tmp_path)["state_dict"], checkpoint(tmp_path / "plain")["state_dict"])
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert metrics(tmp_path)["steps"] == 30
    if "cosine" not in option:
        assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == found
