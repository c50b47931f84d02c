"""What goes beyond plain Lightning, for those who ask for it. The rest of the package never imports it."""

from collections.abc import Iterable
from typing import Any


def configured(built: Any) -> tuple[Any, list[Any]]:
    """The optimiser and the schedules, as Lightning keeps them, of what VAEModule.configure_optimizers returns."""
    from lightning.pytorch.utilities.types import LRSchedulerConfig
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    if not isinstance(built, dict):
        return built, []
    config = built["lr_scheduler"]
    plateau = isinstance(config["scheduler"], ReduceLROnPlateau)
    return built["optimizer"], [LRSchedulerConfig(**config, reduce_on_plateau=plateau)]


def step_schedules(schedules: Iterable[Any], interval: str, count: int) -> None:
    """Step the schedules that are due after `count` steps or epochs, where Lightning does not."""
    for config in schedules:
        if config.interval == interval and count % config.frequency == 0 and not config.reduce_on_plateau:
            config.scheduler.step()
