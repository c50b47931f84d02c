"""Learning-rate schedules that torch does not have. A schedule with an argument `total_steps` gets the run's length."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vaelab import checks


class Cosine(LambdaLR):
    """A cosine decay of the learning rate over the T = `total_steps` optimiser steps of a run.

        lr(t) = min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2,     lr(t > T) = min_lr,     min_ratio = min_lr / lr

    Unlike torch's CosineAnnealingLR, it depends on the step t alone. A resumed run with more epochs therefore follows
    the longer curve. Raises UserError unless `min_ratio` is from 0 to 1. Loshchilov & Hutter 2017, without restarts,
    https://arxiv.org/abs/1608.03983
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, min_ratio: float = 0.0) -> None:
        checks.share(min_ratio=min_ratio)

        def ratio(step: int) -> float:
            return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * min(step / total_steps, 1.0))) / 2

        super().__init__(optimizer, ratio)
