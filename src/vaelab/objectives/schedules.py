"""Weights that change with the number of optimiser steps. `step=None` asks for the final value."""

from torch import Tensor


class Linear:
    """start + (end - start) * min(step / steps, 1): the warm-up of Bowman et al. 2016, https://arxiv.org/abs/1511.06349

    Raises:
        ValueError: steps is not above zero.
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        if not steps > 0:
            raise ValueError(f"a linear schedule needs steps above zero, got {steps}")
        self.steps, self.start, self.end = steps, start, end

    def __call__(self, step: Tensor | None) -> Tensor | float:
        if step is None:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1.0)
