"""The checkpoints of a run, best.ckpt and last.ckpt, and how their files are written."""

import io
import logging
import shlex
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vaelab.errors import UserError
from vaelab.files import read_plain, shown, write_atomically

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """A signal stopped training. This exception also ends a sweep."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints in a background thread while training continues. Each file is replaced as a whole.

    A file holds the state at the call of `save_checkpoint`. Two files may wait for the disk: the best and the last
    checkpoint of an epoch. A third save, a load and `teardown` wait for them, and raise the OSError of a failed write.

    `folder` is the folder of the run, which is not made anew if somebody deletes it. With `only`, for a resumed run,
    other files are neither written nor removed, and UserError is raised: the state of a ModelCheckpoint in a checkpoint
    names files to remove, and a stranger may have written it.
    """

    def __init__(self, folder: Path, only: bool = False) -> None:
        self.folder, self.only = folder, folder if only else None
        self._writer: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, content = self._inside(path), io.BytesIO()
        torch.save(checkpoint, content)
        self._wait(1)
        path.parent.mkdir(exist_ok=True, parents=self.folder not in path.parents)
        self._writer = self._writer or ThreadPoolExecutor(1)
        self._waiting.append(self._writer.submit(write_atomically, path, content.getbuffer()))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load a file as plain data. Lightning's own method can run code that comes from a web address."""
        self._wait()
        return read_plain(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        self._wait()
        super().remove_checkpoint(self._inside(path))

    def _inside(self, path: Any) -> Path:
        """The path. Raises UserError if it lies outside of the only folder that may be changed."""
        if self.only and not Path(path).resolve().is_relative_to(self.only.resolve()):
            raise UserError(f"a callback would change {path}, but a resumed run changes only files in {self.only}")
        return Path(path)

    def teardown(self) -> None:
        self._wait()

    def _wait(self, allowed: int = 0) -> None:
        """Wait until at most `allowed` files are not yet written."""
        while len(self._waiting) > allowed:
            self._waiting.pop(0).result()


class BestCheckpoint(Checkpoint):
    """Writes best.ckpt: the weights with the lowest monitored metric in validation.

    With EMAWeightAveraging, the averaged weights are validated and saved. With StochasticWeightAveraging, the average
    exists only when training ends, and then replaces the saved weights. If nothing is validated, only such an average
    is saved.
    """

    def __init__(self) -> None:
        self.path: Path | None = None  # the saved file
        self.kind = "best"  # or "average"
        self.step = 0
        self._score = float("inf")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        folder = trainer.strategy.broadcast(str(trainer.default_root_dir))  # only the first process has the folder
        self._file = Path(folder) / "checkpoints" / "best.ckpt"

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[pl_module.monitor])
        if score < self._score:
            self._score = score
            self._save(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for callback in trainer.callbacks:
            if not isinstance(callback, StochasticWeightAveraging):
                continue
            if trainer.current_epoch <= callback.swa_end:
                log.info(
                    "weights  the run ended before its last epoch, so StochasticWeightAveraging changes no weights"
                )
            else:
                log.info("weights  the average of StochasticWeightAveraging replaces the best weights")
                self.kind = "average"
                self._save(trainer)

    def _save(self, trainer: Any) -> None:
        if not trainer.fast_dev_run:
            self.path, self.step = self._file, trainer.global_step
            trainer.save_checkpoint(self._file, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self._score, "saved": self.path is not None, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state. The path is in the run's present folder, because a run may have been moved."""
        self._score, self.step = state_dict["score"], state_dict["step"]
        self.path = self._file if state_dict["saved"] else None


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt at the end of each epoch, and at the step at which the run stops within an epoch.

    SIGINT (Ctrl-C), SIGTERM, trainer.max_steps and trainer.max_time stop a run between two steps. A resumed run
    therefore continues bit for bit. After a signal, the checkpoint is written and Interrupted is raised. A second
    Ctrl-C, or a signal outside the training steps, stops the run at once. A second SIGTERM changes nothing, because
    `timeout` and schedulers send it to a process and to its group. A signal that was ignored when the process started
    stays ignored: a shell's background processes ignore Ctrl-C.
    """

    def __init__(self) -> None:
        self.path: Path | None = None  # the saved file
        self.step = 0
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._file = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._signal = None
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._handlers[signum] = signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._signal = signum
        log.info("%s: training saves a checkpoint and stops", signal.Signals(signum).name)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch or not (pl_module.resumable and _resumable(trainer, batch_idx)):
            return
        stopped = self._stop(trainer)
        if stopped or _ends(trainer):
            self._save(trainer)
        if stopped:
            self._interrupt(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.step != trainer.global_step:  # otherwise on_train_batch_end has saved this step
            self._save(trainer)
        if not self._stop(trainer):
            return
        if trainer.current_epoch + 1 == trainer.max_epochs:
            log.info("this was the last step, so only the test is left: the run goes on to its end")
        else:
            self._interrupt(trainer)

    def _save(self, trainer: Any) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self._file, weights_only=False)
            self.path, self.step = self._file, trainer.global_step

    def _interrupt(self, trainer: Any) -> None:
        trainer.strategy.checkpoint_io.teardown()  # waits until all files are written
        log.info(
            "stopped at step %s and saved %s; continue with: python train.py %s",
            f"{trainer.global_step:,}", self.path, _resume(trainer),
        )  # fmt: skip
        raise Interrupted(128 + (self._signal or signal.SIGTERM))

    def _stop(self, trainer: Any) -> bool:
        """Whether any rank has received a signal. Several ranks check this only every `log_every_n_steps` steps."""
        every = trainer.log_every_n_steps if trainer.world_size > 1 else 1
        due = trainer.is_last_batch or trainer.global_step % every == 0
        return due and trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()
        trainer.strategy.checkpoint_io.teardown()  # an error of the last write is raised within training

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._restore_handlers()
        try:
            trainer.strategy.checkpoint_io.teardown()
        except OSError as error:  # it must not hide the exception that ended the run
            log.error("a checkpoint could not be written: %s", error)
        if isinstance(exception, KeyboardInterrupt | SystemExit) and not isinstance(exception, Interrupted):
            self._stopped_at_once(trainer, exception)
        if isinstance(exception, ArithmeticError | OSError):
            saved = self._file.is_file() if trainer.is_global_zero else self.path
            resume = f"continue with {_resume(trainer)}"
            good = f"the last good checkpoint is {self._file}" if saved else "no checkpoint has been saved"
            log.error(f"{good}; {resume}" if saved and isinstance(exception, OSError) else good)

    def _stopped_at_once(self, trainer: Any, exception: BaseException) -> None:
        """Log how to go on after a signal outside the training steps, such as in the final test."""
        if self.path:
            log.info("stopped; continue from step %s with: python train.py %s", f"{self.step:,}", _resume(trainer))
        if isinstance(exception, SystemExit) and exception.code is None:
            # Lightning raises this for SIGTERM. Without a code, the process would end as if the run were finished
            exception.code = 128 + signal.SIGTERM

    def _restore_handlers(self) -> None:
        """Restore the previous signal handlers. Lightning restores its own ones later."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def _resume(trainer: Any) -> str:
    """The argument of train.py that continues a run, with the quotes that a shell needs."""
    return shlex.quote(f"resume={shown(Path(trainer.default_root_dir))}")


def _resumable(trainer: Any, batch_idx: int) -> bool:
    """Whether a run that is resumed after this batch, within an epoch, equals a run that never stopped.

    This is false if accumulated gradients are not yet applied, if a validation follows, which the resumed run would
    skip, and with StochasticWeightAveraging, which sets up its schedule at the start of an epoch.
    """
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    validates = (
        trainer.enable_validation and every is not None and not (epochs and (trainer.current_epoch + 1) % epochs)
    )
    validates = validates and ((batch_idx if epochs else trainer.fit_loop.total_batch_idx) + 1) % every == 0
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not validates and not averages


def _ends(trainer: Any) -> bool:
    """Whether the run ends after this step, because of trainer.max_steps or trainer.should_stop."""
    lasted = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.global_step == trainer.max_steps or (trainer.should_stop and lasted)


def saved_by(trainer: Any, kind: type[BestCheckpoint | LastCheckpoint]) -> Any:
    """The callback of the class `kind` if it has saved a checkpoint, otherwise None."""
    return next((each for each in trainer.checkpoint_callbacks if isinstance(each, kind) and each.path), None)


def measure(trainer: Any, module: Any, data: Any, checkpoint: Path | None) -> None:
    """Load the weights of a checkpoint after a fit, then validate and test them.

    If the checkpoint is None, the present weights of the module are validated and tested.
    """
    trainer.strategy.barrier()  # the first process has written the checkpoint
    if checkpoint:
        module.load_state_dict(trainer.strategy.load_checkpoint(checkpoint)["state_dict"])
    # The callback of a weight average would overwrite the averaged weights in the module
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    if module.monitor:
        loggers, trainer.loggers = trainer.loggers, []  # these metrics are not points of the curves
        trainer.validate(module, data, verbose=False)
        trainer.loggers = loggers
    module.logs_results = False  # log_results does it
    trainer.test(module, data, verbose=False)
