"""Build what a config describes: the module, the callbacks and the length of the run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError, refused_by_library

if TYPE_CHECKING:
    from vaelab.data import ImageDataModule


def build(cfg: DictConfig, kind: Any = None) -> Any:
    """Build the LightningModule of a config, or one of the class `kind`. Torch's random state gives the first weights.

    Raises UserError for parts that do not go together, and for a model that cannot fit into memory.
    """
    from vaelab.runs.memory import Fits

    keys = ("model", "objective", "optimizer")
    with Fits():
        parts: dict[str, Any] = {key: hydra.utils.instantiate(cfg[key], _convert_="all") for key in keys}
        scheduler = hydra.utils.instantiate(cfg.scheduler, _convert_="all") or None  # the option `none` is empty
        return (kind or hydra.utils.instantiate(cfg.module, _partial_=True))(**parts, scheduler=scheduler)


def build_callbacks(cfg: DictConfig) -> list[Any]:
    """Build the callbacks of a config, except those that a flag of the Trainer or a resumed run excludes.

    Raises UserError for an entry that is not a callback, for BatchSizeFinder, after which no run can be resumed, and
    for a resumed run in which nothing writes checkpoints.
    """
    from lightning.pytorch.callbacks import BatchSizeFinder, Callback, Checkpoint, LearningRateFinder, ProgressBar

    made = {name: each for name, each in hydra.utils.instantiate(cfg.callbacks, _convert_="all").items() if each}
    for name, each in made.items():
        if isinstance(each, BatchSizeFinder):
            why = "changes data.batch_size within a run, and the run's length and checkpoints depend on it"
            raise UserError(f"callbacks.{name} {why}: set data.batch_size")
        if not isinstance(each, Callback):
            raise UserError(f"callbacks.{name} is not a callback: callbacks.{name}._target_ must name a class")
    absent: list[Any] = [LearningRateFinder] if cfg.resume else []  # the rate that it found is in the checkpoint
    saves = cfg.trainer.get("enable_checkpointing") is not False
    absent += [] if saves else [Checkpoint]
    absent += [ProgressBar] if cfg.trainer.get("enable_progress_bar") is False else []
    kept = [each for each in made.values() if not isinstance(each, tuple(absent))]
    if cfg.resume and saves and not any(isinstance(each, Checkpoint) for each in kept):
        # Lightning would add a ModelCheckpoint, and restore its state, which names files to remove
        raise UserError(
            "no callback writes checkpoints: +trainer.enable_checkpointing=false resumes the run without any"
        )
    return kept


def build_loggers(cfg: DictConfig, folder: Path, purge_step: int | None = None) -> list[Any]:
    """Build the loggers of a run in `folder`, and as the last the one that writes its metrics.csv.

    In their settings, {folder} is the folder and {run} is its name. A setting `purge_step` becomes the first step that
    a resumed run takes again. The config gets the id that a logger has made (`version` or `run_id`), so that a resumed
    run continues its files. Raises UserError for a logger that cannot start.
    """
    from vaelab.training import MetricsFile

    loggers = []
    for name, settings in (cfg.get("logger") or {}).items():
        if not settings:  # null leaves it out
            continue
        placed = _placed(OmegaConf.to_container(settings, resolve=True), {"folder": str(folder), "run": folder.name})
        if "purge_step" in placed:
            placed["purge_step"] = purge_step
        try:
            logger = hydra.utils.instantiate(placed, _convert_="all")
            getattr(logger, "experiment", None)  # its own writer gets settings that the logger does not know
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, ModuleNotFoundError):
                install = "pip install -e '.[loggers]' installs the packages of all loggers"
                raise UserError(f"logger.{name} needs a package that is not installed: {install} ({cause})") from error
            if not isinstance(cause, TypeError) and not refused_by_library(cause):
                raise
            raise UserError(f"logger.{name}: {cause}") from error
        for key in ("version", "run_id"):
            if key in settings and settings[key] is None:
                settings[key] = logger.version
        loggers.append(logger)
    return [*loggers, MetricsFile(folder, purge_step)]


def _placed(value: Any, names: dict[str, str]) -> Any:
    """A copy of nested settings, in the texts of which {NAME} is replaced."""
    if isinstance(value, dict):
        return {key: _placed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, names) for inner in value]
    return re.sub(r"\{(folder|run)\}", lambda found: names[found[1]], value) if isinstance(value, str) else value


def fill_in(cfg: DictConfig, data: "ImageDataModule", callbacks: Sequence[Any]) -> None:
    """Write the settings that depend on the loaded data into the config."""
    cfg.data.used = data.name
    count = batches(cfg, len(data.train_dataloader()))
    longest = {"accumulate_grad_batches": cfg.trainer.accumulate_grad_batches}
    if cfg.trainer.get("check_val_every_n_epoch") and type(cfg.trainer.get("val_check_interval")) is int:
        longest["val_check_interval"] = cfg.trainer.val_check_interval
    for name, value in longest.items():
        if value > count:
            raise UserError(f"trainer.{name}={value}: an epoch has {count} batches")
    for split in ("val", "test"):
        limit = cfg.trainer.get(f"limit_{split}_batches")
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        if type(limit) is float and 0 < limit * len(loader) < 1:
            raise UserError(f"trainer.limit_{split}_batches={limit} leaves none of {len(loader)} batches: use a number")
    cfg.trainer.max_epochs = epochs(cfg, count, callbacks)
    if data.val_size == 0:
        cfg.trainer.limit_val_batches = 0


def check_schedules(cfg: DictConfig, objective: Any, data: "ImageDataModule", callbacks: Sequence[Any]) -> None:
    """Raise UserError for a schedule of the objective that is longer than the run.

    Such a run would be tested with another objective than the one it ends with. A run with trainer.fast_dev_run or with
    a limit of its training batches is a trial, and is not checked.
    """
    trial = any(cfg.trainer.get(name) for name in ("fast_dev_run", "overfit_batches", "limit_train_batches"))
    if trial or cfg.trainer.max_epochs == 0:
        return
    steps = optimizer_steps(cfg, batches(cfg, len(data.train_dataloader())), callbacks)
    for name, part in objective.named_modules():
        length = getattr(part, "length", 0)  # of a schedule
        if length > steps:
            key = "objective." + re.sub(r"_(\d+)$", r".\1", name)
            raise UserError(
                f"{key} reaches its end after {length:,} optimiser steps, but the run takes {steps:,}, so it would be "
                f"tested with another objective than it ends with: set steps={length} (trainer.max_epochs and "
                f"trainer.max_steps must allow as many), or a smaller {key}.steps"
            )


def optimizer_steps(cfg: DictConfig, batches: int, callbacks: Sequence[Any]) -> int:
    """The number of optimiser steps of the whole run, with `batches` in an epoch."""
    from vaelab.training.length import steps_in

    most = cfg.trainer.max_steps
    if cfg.trainer.max_epochs == -1:
        return most
    steps = steps_in(cfg.trainer.max_epochs, batches, callbacks, cfg.trainer.accumulate_grad_batches)
    return min(steps, most) if most > 0 else steps


def processes(cfg: DictConfig) -> int:
    """The number of processes that share each epoch."""
    devices = cfg.trainer.devices
    each = devices if type(devices) is int else len(devices) if OmegaConf.is_list(devices) else 1
    return max(each, 1) * cfg.trainer.get("num_nodes", 1)


def batches(cfg: DictConfig, count: int) -> int:
    """The number of batches of a process in an epoch, if the training set has `count` batches."""
    each = -(-count // processes(cfg))
    limit = cfg.trainer.get("overfit_batches") or cfg.trainer.limit_train_batches
    return each if limit is None else min(limit, each) if type(limit) is int else max(int(limit * each), 1)


def epochs(cfg: DictConfig, batches: int, callbacks: Sequence[Any] = ()) -> int:
    """The number of epochs. It is trainer.max_epochs, unless this is null or the user typed only `steps`.

    Then the run takes `steps` optimiser steps. The result is -1 (no end) if trainer.max_steps is the only length.
    """
    from vaelab.training.length import epochs_of

    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() and not cfg.resume else []
    asked = {override.split("=")[0].lstrip("+") for override in typed} & {"steps", "trainer.max_epochs"}
    if cfg.trainer.max_epochs is not None and asked != {"steps"}:
        return cfg.trainer.max_epochs
    if "steps" not in asked and cfg.trainer.max_steps > 0:
        return -1
    return epochs_of(cfg.steps, batches, callbacks, cfg.trainer.accumulate_grad_batches)
