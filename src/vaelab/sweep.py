"""The runs of a sweep trained at once, as one batched model: python train.py -m hydra/launcher=together ..."""

import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from omegaconf import DictConfig

from vaelab import runs

log = logging.getLogger("vaelab.train")
BATCHED = ("model", "objective", "optimizer", "scheduler")


def check(configs: Sequence[DictConfig]) -> None:
    """Raise ValueError unless the configs are those of train.py and differ in what can be batched."""
    alone = "; without hydra/launcher=together each run trains by itself"
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
                raise ValueError(f"{differ}, and all runs share their {key.split('.')[0]}{alone}")
            if any(type(value) not in (int, float) for value in values):
                raise ValueError(f"{differ}, and runs that train as one differ in numbers and seeds alone{alone}")
    trainer = configs[0].trainer
    if runs.processes(configs[0]) > 1:
        raise ValueError(f"hydra/launcher=together trains in one process, and trainer.devices={trainer.devices}{alone}")
    if trainer.precision == "16-mixed":
        why = "scales all losses alike, and members would feel each other's overflow: bf16-mixed does not"
        raise ValueError(f"hydra/launcher=together: trainer.precision=16-mixed {why}")
    for name, callback in configs[0].callbacks.items():
        if str((callback or {}).get("_target_")).endswith("EarlyStopping"):
            raise ValueError(f"hydra/launcher=together: callbacks.{name} would stop all runs for one of them{alone}")


def _leaves(config: DictConfig) -> Any:
    return ((k, v) for k, v in runs.settings(config) if not k.startswith("hydra") and not isinstance(v, dict | list))


class Sweep:
    """The members of a sweep, each with its config and folder, and their training."""

    def __init__(self) -> None:
        self.cfgs: list[DictConfig] = []
        self.folders: list[Path] = []
        self.members: list[Any] = []
        self.data: Any = None

    def add(self, cfg: DictConfig) -> None:
        """Build a member by its seed."""
        import lightning
        import torch

        from vaelab.training.together import Member

        self.folders.append(Path(HydraConfig.get().runtime.output_dir).absolute())
        self.cfgs.append(cfg)
        torch.distributions.Distribution.set_default_validate_args(False)
        runs.check_config(cfg)
        lightning.seed_everything(cfg.seed, verbose=False)
        data = instantiate(cfg.data, _convert_="all")
        member = Member(
            instantiate(cfg.model, _convert_="all"),
            objective=instantiate(cfg.objective, _convert_="all"),
            optimizer=instantiate(cfg.optimizer, _convert_="all"),
            scheduler=instantiate(cfg.get("scheduler"), _convert_="all") or None,
        )
        member.seed, member.stream = cfg.seed, torch.get_rng_state()
        self.members.append(member)
        if self.data is None:
            self.data = data
            data.setup()
            runs.check_data(member.model, data)
        cfg.data.used = self.data.name
        cfg.trainer.max_epochs = runs.epochs(cfg, len(self.data.train_dataloader()))
        if self.data.val_size == 0:
            cfg.trainer.limit_val_batches = 0

    def train(self, jobs: Sequence[JobReturn]) -> list[float | Exception]:
        """Fit all, then test and record each; returns their monitored figures, or what stopped them."""
        from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar

        from vaelab.training import AtomicCheckpointIO, Interrupted, NonFiniteLossError, tensorboard
        from vaelab.training.together import Seat, Together

        runs.start_log(*self.folders)
        together = Together(self.members)
        for job, folder, cfg in zip(jobs, self.folders, self.cfgs, strict=True):
            HydraConfig.instance().cfg = job.hydra_cfg
            runs.record(folder, cfg)
        kinds = [[c for c in instantiate(cfg.callbacks, _convert_="all").values() if c] for cfg in self.cfgs]
        bars = [callback for callback in kinds[0] if isinstance(callback, ProgressBar)]
        plain = {"logger": False, "enable_checkpointing": False, "plugins": [AtomicCheckpointIO()]}
        trainer = instantiate(self.cfgs[0].trainer, _convert_="all", callbacks=bars, **plain)
        seats = []
        for cfg, folder, member, callbacks in zip(self.cfgs, self.folders, self.members, kinds, strict=True):
            logger = instantiate(cfg.logger, save_dir=str(folder))
            tensorboard.add_layout(logger)
            own = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint | ProgressBar)]
            seats.append(Seat(trainer, member, folder, logger, own))

        model, parent = self.members[0].model, runs.shown(self.folders[0].parent)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        log.info("runs     %d in %s", len(seats), parent)
        log.info("data     %s", self.data.description)
        what = f"{type(model).__name__}, {parameters:,} parameters each"
        log.info("model    %s, together on %s", what, trainer.strategy.root_device)
        log.info("length   %s epochs", f"{trainer.max_epochs:,}")
        started = time.perf_counter()
        try:
            trainer.fit(together, self.data)
        except NonFiniteLossError:
            log.error("no run is left")
        except (KeyboardInterrupt, SystemExit) as stop:
            together.part()
            for seat in seats:
                seat.save_weights()
            log.info("stopped at step %s: weights.pt are the best so far; %s cannot go on", trainer.global_step, parent)
            raise Interrupted(128 + signal.SIGINT) from stop
        seconds = time.perf_counter() - started
        together.part()

        outcomes: list[float | Exception] = []
        for number, (seat, cfg, folder) in enumerate(zip(seats, self.cfgs, self.folders, strict=True)):
            try:
                if number in together.failed:
                    raise together.failed[number]
                outcomes.append(seat.measure(self.data))
            except NonFiniteLossError as error:
                outcomes.append(error)
                continue
            runs.finish(folder, seat.member, self.data.protocol, seat, seconds)
            tensorboard.add_hyperparameters(seat.loggers[0], cfg, seat.member.figures, trainer.global_step)
            log.info("done     %s: %s", folder.name, runs.summary(seat.member.figures, self.data.description))
        for note in runs.notes(self.cfgs[0], self.data):
            log.warning(note)
        log.info("curves   tensorboard --logdir %s", parent)
        return outcomes
