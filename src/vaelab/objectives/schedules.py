"""Weights that change with the number of optimiser steps. `step=None` asks for the final value."""

import torch
from torch import Tensor


class Linear:
    """start + (end - start) * min(step / steps, 1): the warm-up of Bowman et al. 2016, https://arxiv.org/abs/1511.06349

    Raises:
        ValueError: steps is no whole number above zero, or an end is no number.
    """

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        _check("linear", steps, start, end)
        self.steps, self.start, self.end = steps, start, end

    def __call__(self, step: Tensor | None) -> Tensor | float:
        if step is None:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1.0)


class Cyclical:
    """`cycles` times a ramp from start to end over the first `ramp` of a cycle's steps, and end for its rest and after.

    Fu et al. 2019, https://arxiv.org/abs/1903.10145

    Args:
        steps: optimiser steps of one cycle.

    Raises:
        ValueError: a count is no whole number above zero, the ramp is not in (0, 1], or an end is no number.
    """

    def __init__(self, steps: int, cycles: int = 4, ramp: float = 0.5, start: float = 0.0, end: float = 1.0) -> None:
        _check("cyclical", steps, start, end)
        if type(cycles) is not int or cycles < 1 or not 0 < ramp <= 1:
            raise ValueError(f"a cyclical schedule has whole cycles and a ramp in (0, 1], not {cycles} and {ramp}")
        self.steps, self.cycles, self.ramp, self.start, self.end = steps, cycles, ramp, start, end

    def __call__(self, step: Tensor | None) -> Tensor | float:
        if step is None:
            return self.end
        done = (step >= self.steps * self.cycles).float()
        place = (step % self.steps / (self.steps * self.ramp)).clamp(max=1.0)
        return self.start + (self.end - self.start) * torch.maximum(place, done)


def _check(kind: str, steps: int, start: float, end: float) -> None:
    if type(steps) is not int or steps < 1:
        raise ValueError(f"a {kind} schedule needs a whole number of steps above zero, got {steps}")
    if not all(isinstance(value, int | float) for value in (start, end)):
        raise ValueError(f"a {kind} schedule goes from number to number, not from {start} to {end}")
