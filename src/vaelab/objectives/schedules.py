"""Weights that change with the number of optimiser steps. `step=None` asks for the final value."""

from torch import Tensor


class Linear:
    """start + (end - start) * min(step / steps, 1): the warm-up of Bowman et al. 2016, https://arxiv.org/abs/1511.06349

    Raises:
        ValueError: steps is no whole number above zero, or an end is no number.
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        if type(steps) is not int or steps < 1:
            raise ValueError(f"a linear schedule needs a whole number of steps above zero, got {steps}")
        if not all(isinstance(value, int | float) for value in (start, end)):
            raise ValueError(f"a linear schedule goes from number to number, not from {start} to {end}")
        self.steps, self.start, self.end = steps, start, end

    def __call__(self, step: Tensor | None) -> Tensor | float:
        if step is None:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1.0)
