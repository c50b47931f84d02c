"""Learning-rate schedules that torch lacks. A scheduler with an argument `total_steps` is given the run's length."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Cosine(LambdaLR):
    """lr(t) = min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2 over the T optimiser steps of the run, min_lr beyond.

    Unlike torch's CosineAnnealingLR it is a function of the step alone, so that a resumed run that was given more
    epochs follows the longer curve; min_ratio is min_lr / lr. Loshchilov & Hutter 2017 without restarts, https://arxiv.org/abs/1608.03983
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, min_ratio: float = 0.0) -> None:
        def ratio(step: int) -> float:
            return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * min(step / total_steps, 1.0))) / 2

        super().__init__(optimizer, ratio)
