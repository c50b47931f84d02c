"""The log goes to the screen and to the run's folder, and says how long the run is and why it ended."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Compose

from vaelab.runs.log import announce_end, length, rank, start_log, summary


def test_messages_go_to_the_screen_and_to_each_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    start_log(*folders)
    start_log(*folders)  # a second run in the same process does not repeat lines
    logging.getLogger("vaelab.train").info("hello")
    assert capsys.readouterr().out == "hello\n"
    for folder in folders:
        (line,) = (folder / "train.log").read_text().splitlines()
        assert line.endswith("INFO hello")


@pytest.mark.parametrize(
    ("overrides", "steps", "text"),
    [
        (["trainer.max_epochs=1"], -1, "1 epoch of 10 batches"),
        (["trainer.max_epochs=0"], -1, "0 epochs of 10 batches"),
        (["trainer.max_epochs=2000"], 30, "2,000 epochs of 10 batches, or 30 steps"),
        (["trainer.max_epochs=-1"], 3000, "3,000 steps, in epochs of 10 batches"),
    ],
)
def test_length(config: Compose, overrides: list[str], steps: int, text: str) -> None:
    trainer = SimpleNamespace(fast_dev_run=0, max_steps=steps)
    assert length(config(*overrides), trainer, 10) == text


def test_an_end_before_its_length_has_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    trainer = SimpleNamespace(
        global_step=70, current_epoch=7, max_epochs=9, max_steps=-1, fast_dev_run=0, callbacks=[]
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "vaelab"):
        announce_end(trainer, None)
    assert "in epoch 7 at step 70" in caplog.text
    caplog.clear()
    trainer.max_epochs = 7
    announce_end(trainer, None)
    assert not caplog.text


def test_the_last_line_has_the_metrics_that_there_are() -> None:
    metrics = {"test/elbo": -97.123, "test/rate": 25.0, "test/squared_error": 3.0, "val/elbo": -98.0}
    assert summary(metrics, "MNIST") == "test elbo -97.12, rate 25.00 nats per image, squared_error 3.00 on MNIST"


def test_this_is_the_first_process() -> None:
    assert rank() == 0


def test_a_thread_prints_the_traceback_of_a_bug_but_not_of_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's thread hands an OSError on to the training, which then ends with one sentence."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored after the test
    start_log(tmp_path)

    def fail(error: Exception) -> None:
        raise error

    for error in (OSError(28, "No space left on device"), KeyError("a bug")):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    printed = capsys.readouterr().err
    assert "a bug" in printed
    assert "No space" not in printed
