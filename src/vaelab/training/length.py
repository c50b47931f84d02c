"""The length of a fit in optimiser steps."""

import math
from collections.abc import Iterable
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler


def total_steps(trainer: Any) -> float:
    """The number of optimiser steps of the whole fit. It is infinite if the fit has no end."""
    steps = trainer.estimated_stepping_batches  # it assumes that all epochs accumulate like the present one
    if math.isfinite(steps) and trainer.max_epochs > 0:
        accumulated = trainer.accumulate_grad_batches
        steps = steps_in(trainer.max_epochs, trainer.num_training_batches, trainer.callbacks, accumulated)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def steps_in(epochs: int, batches: int, callbacks: Iterable[Any], accumulated: int) -> int:
    """The number of optimiser steps in `epochs` epochs of `batches` batches.

    A step accumulates `accumulated` batches, or as many as a GradientAccumulationScheduler among the callbacks says.
    """
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            factors = map(callback.get_accumulate_grad_batches, range(epochs))
            return sum(_steps_of(batches, factor) for factor in factors)
    return epochs * _steps_of(batches, accumulated)


def epochs_of(steps: int, batches: int, callbacks: Iterable[Any], accumulated: int) -> int:
    """The number of epochs of `batches` batches that `steps` optimiser steps need. See `steps_in`."""
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            epochs = 0
            while steps > 0:
                steps -= _steps_of(batches, callback.get_accumulate_grad_batches(epochs))
                epochs += 1
            return epochs
    return -(-steps // _steps_of(batches, accumulated))


def _steps_of(batches: int, accumulated: int) -> int:
    """The number of optimiser steps in an epoch. The last step may accumulate fewer batches than the others."""
    return -(-batches // accumulated)
