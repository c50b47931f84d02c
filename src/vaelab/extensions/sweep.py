"""Train all runs of a sweep as one batched model: `python train.py -m hydra/launcher=together ...`."""

import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vaelab import runs
from vaelab.errors import UserError

log = logging.getLogger("vaelab.train")
BATCHED = ("model", "objective", "optimizer", "scheduler")
CALLBACKS = ("best_checkpoint", "last_checkpoint", "progress", "pictures")
ALONE = "; without hydra/launcher=together each run trains by itself"


def check(configs: Sequence[DictConfig]) -> None:
    """Raise UserError unless the configs are those of train.py and differ only in what can be batched."""
    if "objective" not in configs[0]:
        raise UserError("hydra/launcher=together trains models: use it with python train.py -m")
    first = dict(_leaves(configs[0]))
    for other in (dict(_leaves(config)) for config in configs[1:]):
        for key in first | other:
            values = [first.get(key), other.get(key)]
            if values[0] == values[1] or key == "seed":
                continue
            differ = f"hydra/launcher=together: {key} is {values[0]} and {values[1]}"
            if key.split(".")[0] not in BATCHED:
                raise UserError(f"{differ}, but all runs must share their {key.split('.')[0]}{ALONE}")
            if any(type(value) not in (int, float) for value in values):
                raise UserError(f"{differ}, but such runs may differ only in numbers and seeds{ALONE}")
    trainer, module = configs[0].trainer, configs[0].module
    if runs.processes(configs[0]) > 1:
        raise UserError(f"hydra/launcher=together trains in one process, but trainer.devices={trainer.devices}{ALONE}")
    if module.compile or not module._target_.endswith(".VAEModule"):
        raise UserError(f"hydra/launcher=together has its own training step, so module must be the default{ALONE}")
    if trainer.precision == "16-mixed":
        why = "scales all losses alike, so one overflow would affect all runs: choose bf16-mixed"
        raise UserError(f"hydra/launcher=together: trainer.precision=16-mixed {why}")
    for name, callback in configs[0].callbacks.items():
        if callback and name not in CALLBACKS:
            raise UserError(f"hydra/launcher=together: callbacks.{name} works for a single run only{ALONE}")


def _leaves(config: DictConfig) -> Any:
    return ((k, v) for k, v in runs.settings(config) if not k.startswith("hydra") and not isinstance(v, dict | list))


def train(cfgs: Sequence[DictConfig], folders: Sequence[Path], contexts: Sequence[Any] = ()) -> list[float | Exception]:
    """Fit all members, then test and record each in its folder. Return their monitored metrics or their exceptions.

    `contexts` are Hydra's configs of the jobs. Raises UserError, before it writes anything, if runs cannot be batched.
    """
    import lightning
    import torch
    from lightning.pytorch.callbacks import ProgressBar

    from vaelab.extensions.stack import Member
    from vaelab.extensions.together import Together
    from vaelab.files import read_plain
    from vaelab.training import Interrupted, NonFiniteLossError, Pictures, log_results, log_start, measure
    from vaelab.training.threads import tune

    check(cfgs)
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_flush_denormal(True)
    runs.start_log(*folders)
    members = []
    for cfg, folder in zip(cfgs, folders, strict=True):
        runs.check_config(cfg)
        lightning.seed_everything(cfg.seed, verbose=False)
        member = runs.build(cfg, Member)
        member.folder, member.seed, member.stream = folder, cfg.seed, torch.get_rng_state()
        members.append(member)
    try:
        together = Together(members)
    except UserError as error:
        raise UserError(f"hydra/launcher=together: {error}{ALONE}") from error
    data = instantiate(cfgs[0].data, _convert_="all")
    data.setup()
    for member in members:
        runs.check_data(member.model, data, member.objective)

    for i, (cfg, member) in enumerate(zip(cfgs, members, strict=True)):
        if contexts:
            HydraConfig.instance().cfg = contexts[i]
        cfg.data.seed = data.seed
        runs.fill_in(cfg, data, ())
        runs.check_schedules(cfg, member.objective, data, ())
        member.own_loggers = runs.build_loggers(cfg, member.folder)
        runs.record_start(member.folder, cfg)
        log_start(member.own_loggers, OmegaConf.to_container(cfg, resolve=True))
    callbacks = runs.build_callbacks(cfgs[0])
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    options: dict[str, Any] = {"enable_checkpointing": False, "_convert_": "all"}
    trainer = instantiate(cfgs[0].trainer, callbacks=bars, logger=False, **options)
    tune(trainer.strategy.root_device)
    parent = runs.shown(folders[0].parent)
    log.info("runs     %d in %s", len(members), parent)
    runs.announce(folders[0], cfgs[0], data, members[0], trainer)

    started = time.perf_counter()
    try:
        trainer.fit(together, data)
    except NonFiniteLossError as error:
        log.error(error)
    except (KeyboardInterrupt, SystemExit) as stop:
        step = f"{trainer.global_step:,}"
        log.info("stopped at step %s and cannot be resumed; %s/*/weights.pt hold the best weights", step, parent)
        raise Interrupted(128 + signal.SIGINT) from stop
    seconds = time.perf_counter() - started
    together.part()

    outcomes: list[float | Exception] = []
    for cfg, member in zip(cfgs, members, strict=True):
        if member.error:
            outcomes.append(member.error)
            continue
        best = member.folder / "weights.pt"
        if best.exists():
            member.model.load_state_dict(read_plain(best))
        own = {"logger": member.own_loggers, "default_root_dir": member.folder, "enable_progress_bar": False}
        alone = instantiate(cfg.trainer, **options, **own)
        measure(alone, member, data, None)
        for pictures in callbacks:
            if isinstance(pictures, Pictures) and pictures.count:
                pictures.draw(alone, member, trainer.current_epoch)
        kept = ("best", member.best_step) if best.exists() else ("last", trainer.global_step)
        runs.finish(member.folder, member, data.protocol, trainer, seconds, kept)
        settings = runs.hyperparameters(member.folder, cfg, member, data)
        log_results(member.own_loggers, member.folder, settings, member.metrics.latest, trainer.global_step)
        log.info("done     %s: %s", member.folder.name, runs.summary(member.metrics.latest, data.description))
        outcomes.append(member.metrics.result(member.monitor))
    log.info("curves   tensorboard --logdir %s", parent)
    return outcomes
