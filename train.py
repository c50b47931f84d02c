"""Train a model: `python train.py [group=option ...] [setting=value ...]`; `--help` lists them."""

import logging
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vaelab import cli

log = logging.getLogger("vaelab.train")


def train(cfg: DictConfig, folder: Path) -> float:
    """Fit, test and record one run in `folder`. Return the monitored metric of its best weights (lower is better)."""
    from vaelab import runs

    runs.check_config(cfg)  # before the slow imports

    import lightning
    import torch
    from hydra.utils import instantiate

    from vaelab.training import (
        AtomicCheckpointIO,
        BestCheckpoint,
        LastCheckpoint,
        log_results,
        log_start,
        measure,
        saved_by,
    )
    from vaelab.training.threads import tune

    runs.start_log(folder)
    torch.distributions.Distribution.set_default_validate_args(False)  # its checks read every value at every step
    torch.set_flush_denormal(True)  # a CPU is slow with numbers below 1e-38, which Adam's moments reach
    lightning.seed_everything(cfg.seed, verbose=False)

    data = instantiate(cfg.data, _convert_="all")
    module = runs.build(cfg)
    checkpoint, step = runs.last_checkpoint(folder, module, cfg) if cfg.resume else (None, None)

    data.setup()
    runs.check_data(module.model, data, module.objective)
    callbacks = runs.build_callbacks(cfg)
    runs.fill_in(cfg, data, callbacks)
    runs.check_callbacks(cfg, callbacks, module.model)
    runs.check_schedules(cfg, module.objective, data, callbacks)

    loggers = runs.build_loggers(cfg, folder, step)
    plugins = [AtomicCheckpointIO(folder, only=bool(cfg.resume))]
    extras = {"logger": loggers, "callbacks": callbacks, "plugins": plugins}
    trainer = instantiate(cfg.trainer, _convert_="all", default_root_dir=folder, **extras)

    tune(trainer.strategy.root_device, trainer.num_devices)
    runs.record_start(folder, cfg)
    runs.announce(folder, cfg, data, module, trainer, step)

    started = time.perf_counter()
    log_start(loggers, None if cfg.resume else OmegaConf.to_container(cfg, resolve=True))
    trainer.fit(module, data, ckpt_path=checkpoint)
    seconds = time.perf_counter() - started
    runs.announce_end(trainer, step)
    best, last = saved_by(trainer, BestCheckpoint), saved_by(trainer, LastCheckpoint)
    kept = (best.kind, best.step) if best else ("last", trainer.global_step)  # if nothing was validated
    measure(trainer, module, data, best.path if best else last.path if last else checkpoint)

    log_results(
        loggers, folder, runs.hyperparameters(folder, cfg, module, data), module.metrics.latest, trainer.global_step
    )
    runs.finish(folder, module, data.protocol, trainer, seconds, kept)  # metrics.json comes last: the run is complete
    log.info("pictures %s/pictures; curves: metrics.csv there, or tensorboard --logdir logs", runs.shown(folder))
    log.info("done     %s", runs.summary(module.metrics.latest, data.description))
    return module.metrics.result(module.monitor)  # the test loss if nothing was trained


if __name__ == "__main__":
    cli.main(train, Path(__file__).parent / "configs", "train", resumable=True)
