"""The runs of a sweep trained at once, as one batched model: python train.py -m hydra/launcher=together ..."""

import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from vaelab import runs

log = logging.getLogger("vaelab.train")
BATCHED = ("model", "objective", "optimizer", "scheduler")
ALONE = "; without hydra/launcher=together each run trains by itself"


def check(configs: Sequence[DictConfig]) -> None:
    """Raise ValueError unless the configs are those of train.py and differ in what can be batched."""
    if "objective" not in configs[0]:
        raise ValueError("hydra/launcher=together trains: it goes with python train.py -m")
    first = dict(_leaves(configs[0]))
    for other in (dict(_leaves(config)) for config in configs[1:]):
        for key in first | other:
            values = [first.get(key), other.get(key)]
            if values[0] == values[1] or key == "seed":
                continue
            differ = f"hydra/launcher=together: {key} is {values[0]} and {values[1]}"
            if key.split(".")[0] not in BATCHED:
                raise ValueError(f"{differ}, and all runs share their {key.split('.')[0]}{ALONE}")
            if any(type(value) not in (int, float) for value in values):
                raise ValueError(f"{differ}, and runs that train as one differ in numbers and seeds alone{ALONE}")
    trainer = configs[0].trainer
    if runs.processes(configs[0]) > 1:
        raise ValueError(f"hydra/launcher=together trains in one process, and trainer.devices={trainer.devices}{ALONE}")
    if trainer.get("compile") or trainer.get("graph"):
        raise ValueError(f"hydra/launcher=together: trainer.compile and trainer.graph are for one model's steps{ALONE}")
    if trainer.precision == "16-mixed":
        why = "scales all losses alike, and members would feel each other's overflow: bf16-mixed does not"
        raise ValueError(f"hydra/launcher=together: trainer.precision=16-mixed {why}")
    for name, callback in configs[0].callbacks.items():
        if str((callback or {}).get("_target_")).endswith("EarlyStopping"):
            raise ValueError(f"hydra/launcher=together: callbacks.{name} would stop all runs for one of them{ALONE}")


def _leaves(config: DictConfig) -> Any:
    return ((k, v) for k, v in runs.settings(config) if not k.startswith("hydra") and not isinstance(v, dict | list))


def train(cfgs: Sequence[DictConfig], folders: Sequence[Path], contexts: Sequence[Any] = ()) -> list[float | Exception]:
    """Fit all members, then test and record each in its folder; returns their monitored figures, or what stopped them.

    `contexts` are Hydra's configs of the jobs. Raises ValueError for what cannot be batched, before it writes anything.
    """
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar

    from vaelab import hardware
    from vaelab.training import AtomicCheckpointIO, Interrupted, NonFiniteLossError, NoProfiler, tensorboard
    from vaelab.training.together import Seat, Together

    check(cfgs)
    torch.distributions.Distribution.set_default_validate_args(False)
    runs.start_log(*folders)
    members = [_build(cfg) for cfg in cfgs]
    try:
        together = Together(members)
    except ValueError as error:
        raise ValueError(f"hydra/launcher=together: {error}{ALONE}") from error
    data = instantiate(cfgs[0].data, _convert_="all")
    data.setup()
    runs.check_data(members[0].model, data)

    seats = []
    options = {"logger": False, "enable_checkpointing": False, "profiler": NoProfiler()}
    for i, (cfg, folder, member) in enumerate(zip(cfgs, folders, members, strict=True)):
        if contexts:
            HydraConfig.instance().cfg = contexts[i]
        cfg.data.seed = data.seed
        batches = runs.fill_in(cfg, data)
        callbacks = [callback for callback in instantiate(cfg.callbacks, _convert_="all").values() if callback]
        if i == 0:
            bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
            settings = {k: v for k, v in cfg.trainer.items() if k not in ("compile", "graph")}
            settings["_target_"] = "lightning.pytorch.Trainer"
            trainer = instantiate(settings, _convert_="all", callbacks=bars, plugins=[AtomicCheckpointIO()], **options)
            hardware.tune(trainer.strategy.root_device)
        logger = instantiate(cfg.logger, save_dir=str(folder))
        own = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint | ProgressBar)]
        seats.append(Seat(trainer, member, folder, logger, own))
        runs.record(folder, cfg)
        tensorboard.add_layout(logger)

    parent, model = runs.shown(folders[0].parent), members[0].model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("runs     %d in %s", len(seats), parent)
    log.info("data     %s", data.description)
    kind = f"{type(model).__name__}, {parameters:,} parameters each"
    log.info("model    %s, together on %s", kind, trainer.strategy.root_device)
    log.info("length   %s epochs of %s batches", f"{trainer.max_epochs:,}", f"{batches:,}")
    started = time.perf_counter()
    try:
        trainer.fit(together, data)
    except NonFiniteLossError as error:
        log.error(error)
    except (KeyboardInterrupt, SystemExit) as stop:
        for seat in seats:
            seat.save_weights()
        log.info(
            "stopped at step %s for good: what weights.pt there are in %s are the best", trainer.global_step, parent
        )
        raise Interrupted(128 + signal.SIGINT) from stop
    seconds = time.perf_counter() - started
    together.part()

    outcomes: list[float | Exception] = []
    for i, (seat, cfg, folder) in enumerate(zip(seats, cfgs, folders, strict=True)):
        try:
            if i in together.failed:
                raise together.failed[i]
            outcomes.append(seat.measure(data))
        except NonFiniteLossError as error:
            outcomes.append(error)
            continue
        runs.finish(folder, seat.member, data.protocol, seat, seconds)
        tensorboard.add_hyperparameters(seat.loggers[0], cfg, seat.member.figures, trainer.global_step)
        log.info("done     %s: %s", folder.name, runs.summary(seat.member.figures, data.description))
    for note in runs.notes(cfgs[0], data):
        log.warning(note)
    log.info("curves   tensorboard --logdir %s", parent)
    return outcomes


def _build(cfg: DictConfig) -> Any:
    """A member, from its own seed."""
    import lightning
    import torch

    from vaelab.training.together import Member

    runs.check_config(cfg)
    lightning.seed_everything(cfg.seed, verbose=False)
    member = runs.build(cfg, Member)
    member.seed, member.stream = cfg.seed, torch.get_rng_state()
    return member
