"""Train a model: `python train.py [group=option ...] [setting=value ...]`; `--help` lists them."""

import logging
import time
from pathlib import Path

from omegaconf import DictConfig

from vaelab import cli

log = logging.getLogger("vaelab.train")


def train(cfg: DictConfig, folder: Path) -> float:
    """Fit, test and record one run in `folder`; returns the monitored figure of its best weights, lower is better."""
    from vaelab import runs

    runs.check_config(cfg)  # before the imports that take seconds

    import lightning
    import torch
    from hydra.utils import instantiate

    from vaelab import hardware
    from vaelab.training import AtomicCheckpointIO, NoProfiler, VAEModule, tensorboard

    runs.start_log(folder)
    torch.distributions.Distribution.set_default_validate_args(False)  # each check reads every value of every step
    lightning.seed_everything(cfg.seed, verbose=False)

    data = instantiate(cfg.data, _convert_="all")
    module = runs.build(cfg, VAEModule)
    model = module.model
    checkpoint, step = runs.last_checkpoint(folder, module, cfg.trainer.max_epochs) if cfg.resume else (None, None)

    data.setup()
    runs.check_data(model, data)
    batches = runs.fill_in(cfg, data)

    logger = instantiate(cfg.logger, save_dir=str(folder), purge_step=step)
    callbacks = [callback for callback in instantiate(cfg.callbacks, _convert_="all").values() if callback]
    extras = {"logger": logger, "callbacks": callbacks, "plugins": [AtomicCheckpointIO()]}
    extras |= {} if cfg.trainer.get("profiler") else {"profiler": NoProfiler()}
    trainer = instantiate(cfg.trainer, _convert_="all", default_root_dir=folder, **extras)

    hardware.tune(trainer.strategy.root_device)
    runs.record(folder, cfg)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("run      %s", runs.shown(folder))
    log.info("data     %s", data.description)
    log.info("model    %s, %s parameters, on %s", type(model).__name__, f"{parameters:,}", trainer.strategy.root_device)
    log.info("length   %s epochs of %s batches", f"{cfg.trainer.max_epochs:,}", f"{batches:,}")
    for note in runs.notes(cfg, data):
        log.warning(note)

    started = time.perf_counter()
    tensorboard.add_layout(logger)
    trainer.fit(module, data, ckpt_path=checkpoint)
    seconds = time.perf_counter() - started
    best = trainer.checkpoint_callback.best_model_path
    if module.monitor:
        trainer.validate(module, data, ckpt_path=best, verbose=False)
    trainer.test(module, data, ckpt_path=best, verbose=False)

    runs.finish(folder, module, data.protocol, trainer, seconds)
    tensorboard.add_hyperparameters(logger, cfg, module.figures, trainer.global_step)
    for note in runs.notes(cfg, data):
        log.warning(note)
    log.info("pictures %s/figures; curves: tensorboard --logdir logs", runs.shown(folder))
    log.info("done     %s", runs.summary(module.figures, data.description))
    return module.best_figure


if __name__ == "__main__":
    cli.main(train, Path(__file__).parent / "configs", "train", resumable=True)
