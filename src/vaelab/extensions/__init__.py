"""Optional ways to train beyond plain Lightning. The rest of the package never imports them."""

from collections.abc import Iterable
from typing import Any


def configured(built: Any) -> tuple[Any, list[Any]]:
    """Turn the result of VAEModule.configure_optimizers into the optimiser and Lightning's schedule configurations."""
    from lightning.pytorch.utilities.types import LRSchedulerConfig
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    if not isinstance(built, dict):
        return built, []
    config = built["lr_scheduler"]
    plateau = isinstance(config["scheduler"], ReduceLROnPlateau)
    return built["optimizer"], [LRSchedulerConfig(**config, reduce_on_plateau=plateau)]


def step_schedules(schedules: Iterable[Any], interval: str, count: int) -> None:
    """Step the schedules that are due after `count` steps or epochs, because Lightning does not step them."""
    for config in schedules:
        if config.interval == interval and count % config.frequency == 0 and not config.reduce_on_plateau:
            config.scheduler.step()
