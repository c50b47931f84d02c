"""Weights that change with the number of optimiser steps. With step=None, a schedule returns its final value."""

import torch
from torch import Tensor, nn

from vaelab import checks


class Schedule(nn.Module):
    """The base class of schedules. Its numbers are 0-dim buffers, like other hyper-parameters."""

    steps: Tensor
    start: Tensor
    end: Tensor

    def __init__(self, **numbers: float) -> None:
        super().__init__()
        for name, value in numbers.items():
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)


class Linear(Schedule):
    """A warm-up, start + (end - start) * min(step / steps, 1): Bowman et al. 2016, https://arxiv.org/abs/1511.06349"""

    def __init__(self, steps: int, start: float = 0.0, end: float = 1.0) -> None:
        checks.whole(steps=steps)
        checks.number(start=start, end=end)
        super().__init__(steps=steps, start=start, end=end)

    @property
    def length(self) -> int:
        return int(self.steps)

    def forward(self, step: Tensor | None) -> Tensor:
        if step is None:
            return self.end
        return self.start + (self.end - self.start) * (step / self.steps).clamp(max=1.0)


class Cyclical(Schedule):
    """`cycles` cycles of `steps` steps. In each, the value rises from start to end in the share `ramp` of its steps.

    For the rest of a cycle and after the last one, the value is end. Fu et al. 2019, https://arxiv.org/abs/1903.10145
    """

    cycles: Tensor
    ramp: Tensor

    def __init__(self, steps: int, cycles: int = 4, ramp: float = 0.5, start: float = 0.0, end: float = 1.0) -> None:
        checks.whole(steps=steps, cycles=cycles)
        checks.number(start=start, end=end)
        checks.positive(ramp=ramp)
        checks.share(ramp=ramp)
        super().__init__(steps=steps, cycles=cycles, ramp=ramp, start=start, end=end)

    @property
    def length(self) -> int:
        return int(self.steps * self.cycles)

    def forward(self, step: Tensor | None) -> Tensor:
        if step is None:
            return self.end
        done = (step >= self.steps * self.cycles).float()
        place = (step % self.steps / (self.steps * self.ramp)).clamp(max=1.0)
        return self.start + (self.end - self.start) * torch.maximum(place, done)
