"""The length of a fit in optimiser steps."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler


def total_steps(trainer: Any) -> float:
    """The number of optimiser steps of the whole fit. It is infinite if the fit has no end."""
    steps = trainer.estimated_stepping_batches  # it assumes that all epochs accumulate like the present one
    if math.isfinite(steps) and trainer.max_epochs > 0:
        factor = accumulation(trainer.callbacks, trainer.accumulate_grad_batches)
        steps = sum(steps_of(trainer.num_training_batches, factor(epoch)) for epoch in range(trainer.max_epochs))
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def accumulation(callbacks: Iterable[Any], otherwise: int) -> Callable[[int], int]:
    """A function from the epoch to the number of batches in one optimiser step."""
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches
    return lambda _: otherwise


def steps_of(batches: int, accumulated: int) -> int:
    """The number of optimiser steps in an epoch. The last step may accumulate fewer batches than the others."""
    return -(-batches // accumulated)
