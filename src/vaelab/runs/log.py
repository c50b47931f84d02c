"""The log of a run: on the screen, and with times in train.log."""

import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vaelab.files import shown
from vaelab.runs.building import batches

if TYPE_CHECKING:
    from vaelab.data import ImageDataModule
    from vaelab.training import VAEModule

log = logging.getLogger("vaelab.train")


def start_log(*folders: Path) -> None:
    """Send the package's messages to the screen and to train.log of each folder. Only the first process logs."""
    threading.excepthook = _except_of_the_disk
    logger = logging.getLogger("vaelab")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    # These warnings concern Lightning's own use of torch, or do not apply: each epoch logs its last window, and means
    # are already taken over all processes
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    warnings.filterwarnings("ignore", "The number of training batches", module="lightning")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists", module="lightning")
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True", module="lightning")
    warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
    warnings.filterwarnings("ignore", "You called .self.log.*no logger configured", module="lightning")
    if rank() > 0:
        logger.setLevel(logging.ERROR)
        return
    logger.addHandler(logging.StreamHandler(sys.stdout))
    for folder in folders:
        file = logging.FileHandler(folder / "train.log", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    logger.setLevel(logging.INFO)
    for banners in ("utilities.rank_zero", "trainer", "accelerators.cuda"):  # messages of callbacks and profilers stay
        logging.getLogger(f"lightning.pytorch.{banners}").setLevel(logging.WARNING)


def _except_of_the_disk(failed: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, except an OSError: TensorBoard's thread hands it on to the training."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def rank() -> int:
    """The number of this process, from Lightning or from the variables that Lightning reads when it is imported."""
    if "lightning" not in sys.modules:
        given = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
        return int(next(given, 0))
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0)


def announce(
    folder: Path, cfg: DictConfig, data: "ImageDataModule", module: "VAEModule", trainer: Any, first: int | None = None
) -> None:
    """Log the first lines of a run: folder, data, model, length, threads, caveats and a collapse that is foreseen.

    `first` is the first step of a resumed run.
    """
    import torch

    from vaelab.runs.caveats import boxed, find_caveats
    from vaelab.runs.config import foreign
    from vaelab.training.closed_forms import foretold_collapse

    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    kind, device = type(module.model).__name__, trainer.strategy.root_device
    log.info("run      %s", shown(folder))
    log.info("data     %s", data.description)
    log.info("model    %s, %s parameters, on %s", kind, f"{parameters:,}", device)
    resumed = f"; it goes on at step {first:,}" if first else ""
    log.info("length   %s%s", length(cfg, trainer, batches(cfg, len(data.train_dataloader()))), resumed)
    if device.type == "cpu":
        log.info("threads  %d; the environment variable OMP_NUM_THREADS changes it", torch.get_num_threads())
    if modules := foreign(cfg):
        names = ",".join(modules)
        log.info("trust    classes outside vaelab: evaluate.py, generate.py and export.py need trust=[%s]", names)
    if (modules_resumed := foreign(cfg, resuming=True)) != modules:
        log.info("trust    callbacks or others outside vaelab: resume= needs trust=[%s]", ",".join(modules_resumed))
    for caveat in (*find_caveats(module.model, cfg), foretold_collapse(module, data)):
        if caveat:
            log.warning(boxed(caveat))


def length(cfg: DictConfig, trainer: Any, count: int) -> str:
    """The length of a run in words, with `count` batches in an epoch."""
    if trainer.fast_dev_run:
        return "trainer.fast_dev_run: one batch of everything"
    epoch = f"{count:,} batch{'es' * (count > 1)}"
    if cfg.trainer.max_epochs == -1:
        return f"{trainer.max_steps:,} steps, in epochs of {epoch}"
    end = f", or {trainer.max_steps:,} steps" if trainer.max_steps > 0 else ""
    return f"{cfg.trainer.max_epochs:,} epoch{'s' * (cfg.trainer.max_epochs != 1)} of {epoch}{end}"


def announce_end(trainer: Any, first: int | None) -> None:
    """Log why a fit ended before its length. `first` is the first step of a resumed run."""
    from lightning.pytorch.callbacks import EarlyStopping, Timer

    steps, done = trainer.global_step, trainer.current_epoch == trainer.max_epochs
    if first == steps + 1:
        log.warning("the run was complete, so no step was taken")
    if done or steps == trainer.max_steps or trainer.fast_dev_run:
        return
    reasons = ["something set trainer.should_stop"]
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            reasons.insert(0, f"{callback.monitor} has not improved for {callback.wait_count} validations")
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            reasons.insert(0, "trainer.max_time, which counts all starts of the run, is over")
    log.info("ended    in epoch %s at step %s: %s", f"{trainer.current_epoch:,}", f"{steps:,}", reasons[0])


def summary(metrics: dict[str, float], data: str) -> str:
    """The last line of a run: its test metrics."""

    def terms(*names: str) -> list[str]:
        return [f"{name} {metrics[f'test/{name}']:.2f}" for name in names if f"test/{name}" in metrics]

    nats = ", ".join(terms("elbo", "bound", "loss", "rate", "distortion"))
    return ", ".join([f"test {nats} nats per image", *terms("squared_error", "perplexity", "accuracy")]) + f" on {data}"
