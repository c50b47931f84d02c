"""Checkpoints hold the right weights, also after a signal, on a full disk and on a slow disk."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, checkpoint, equal, metrics, refused, stop_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import runs
from vaelab.training import Interrupted, VAEModule, checkpoints


def test_checkpoints_and_weights_are_plain_data(finished: Path) -> None:
    weights = torch.load(finished / "weights.pt", weights_only=True)
    best, last = checkpoint(finished, "best"), checkpoint(finished)
    assert equal(dict(weights), {k.removeprefix("model."): v for k, v in best["state_dict"].items()})
    assert last["global_step"] == 20
    assert not any("_orig_mod" in key or key.startswith("model") for key in weights)


def test_best_weights_are_those_of_the_lowest_validation_loss(finished: Path, events: EventAccumulator) -> None:
    curve = {event.step: event.value for event in events.Scalars("val/loss")}
    best = min(curve, key=curve.__getitem__)
    assert checkpoint(finished, "best")["global_step"] == best
    assert metrics(finished)["val"]["loss"] == pytest.approx(curve[best], rel=1e-6)


def test_a_moved_run_resumes_and_keeps_its_best(config: Compose, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    train(config(), tmp_path / "old")
    moved = (tmp_path / "old").rename(tmp_path / "new")
    cfg = runs.saved_config(moved, ["trainer.max_epochs=3"])
    cfg.resume = str(moved)
    train(cfg, moved)
    assert sorted(path.name for path in (moved / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("times", [1, 2])  # twice if it is sent to the process and to its group
def test_sigterm_saves_first(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    stop_at(monkeypatch, 1, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(times)])
    with pytest.raises(Interrupted) as stop:
        train(config(), tmp_path)
    assert stop.value.code == 143
    assert checkpoint(tmp_path)["global_step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_stops_at_once(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 1, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(SystemExit) as stop:  # Lightning raises it for KeyboardInterrupt
        train(config(), tmp_path)
    assert not isinstance(stop.value, Interrupted)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_signal_in_the_last_step_lets_the_run_end(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(config(), tmp_path)
    assert metrics(tmp_path)["steps"] == 6
    assert "this was the last step, so only the test is left: the run goes on to its end" in caplog.text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
@pytest.mark.parametrize("stage", ["sanity_check", "validate", "test"])
def test_a_signal_outside_the_training_steps_is_no_success(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: int, code: int
) -> None:
    """The code of the process is not zero, and the log says how to go on if there is a checkpoint."""

    def stopped(self: VAEModule, *args: Any) -> None:
        if stage == (self.trainer.state.stage if self.trainer.sanity_checking else self.trainer.state.fn):
            os.kill(os.getpid(), number)
        evaluate(self, *args)

    evaluate = VAEModule._evaluate
    with monkeypatch.context() as patch:
        patch.setattr(VAEModule, "_evaluate", stopped)
        with pytest.raises(SystemExit) as stop:
            train(config("trainer.num_sanity_val_steps=2", "data.eval_batch_size=50"), tmp_path)
    assert stop.value.code == code
    assert not (tmp_path / "metrics.json").exists()
    said = (tmp_path / "train.log").read_text()
    assert ("continue from step 6 with: python train.py resume=" in said) == (stage != "sanity_check")
    if stage != "sanity_check":
        cfg = runs.saved_config(tmp_path)
        cfg.resume = str(tmp_path)
        train(cfg, tmp_path)
        assert metrics(tmp_path)["steps"] == 6


def test_a_signal_that_the_process_ignores_stays_ignored(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell ignores Ctrl-C for the processes that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(config(), tmp_path)
    assert metrics(tmp_path)["steps"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("epochs", [0, 2, 3])
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, caplog: pytest.LogCaptureFixture
) -> None:
    def write(path: Path, content: memoryview) -> None:
        written.append(path.name)
        if written.count("last.ckpt") > epochs:
            raise OSError(28, "No space left on device", str(path))
        original(path, content)

    written: list[str] = []
    original = checkpoints.write_atomically
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    with pytest.raises(OSError, match="No space left on device") as error:
        train(config("trainer.max_epochs=4"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert error.value.filename == str(last)
    assert checkpoint(tmp_path)["global_step"] == 3 * epochs if epochs else not last.exists()
    if epochs:
        assert f"the last good checkpoint is {last}; continue with resume={tmp_path}" in caplog.text
    else:
        assert "no checkpoint has been saved" in caplog.text
        assert "resume=" not in caplog.text
    assert not (tmp_path / "metrics.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_slow_disk_is_waited_for(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: memoryview) -> None:
        time.sleep(0.3)
        original(path, content)
        steps[path.name] = torch.load(path, weights_only=True)["global_step"]

    steps: dict[str, int] = {}
    original = checkpoints.write_atomically
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    stop_at(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config("trainer.max_epochs=2"), tmp_path)
    assert steps == {"best.ckpt": 3, "last.ckpt": 5}  # both were written before the run ended


@pytest.mark.parametrize("place", ["../victim", "checkpoints/../../victim", "link/victim"])
def test_a_resumed_run_writes_and_removes_only_its_own_files(tmp_path: Path, place: str) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    (run / "checkpoints").mkdir(parents=True)
    (run / "link").symlink_to("..")
    victim.write_text("precious")
    plugin = checkpoints.AtomicCheckpointIO(run, only=True)
    for action in (plugin.remove_checkpoint, lambda path: plugin.save_checkpoint({}, path)):
        assert "a resumed run changes only files in" in refused(action, str(run / place))
    plugin.teardown()
    assert victim.read_text() == "precious"
    plugin.save_checkpoint({"a": 1}, run / "checkpoints" / "more.ckpt")
    plugin.remove_checkpoint(run / "checkpoints" / "more.ckpt")
    assert not list((run / "checkpoints").iterdir())
    plugin = checkpoints.AtomicCheckpointIO(run)  # a new run may write anywhere
    plugin.remove_checkpoint(victim)
    assert not victim.exists()
    plugin.save_checkpoint({"a": 1}, tmp_path / "new" / "folders" / "mine.ckpt")
    plugin.teardown()
    assert (tmp_path / "new" / "folders" / "mine.ckpt").is_file()
    plugin.save_checkpoint({"a": 1}, run / "more" / "mine.ckpt")
    plugin.teardown()
    shutil.rmtree(run)
    with pytest.raises(FileNotFoundError):  # the folder of the run is not made anew
        plugin.save_checkpoint({"a": 1}, run / "checkpoints" / "last.ckpt")
