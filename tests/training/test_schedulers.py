import math

import pytest
import torch
from conftest import Compose
from hydra.utils import instantiate

from vaelab.training import Cosine


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_cosine_falls_from_the_learning_rate_to_its_least_and_stays() -> None:
    seen = rates(Cosine(sgd(2.0), total_steps=10, min_ratio=0.1), 15)
    assert seen[0] == 2
    assert seen[5] == pytest.approx(1.1)
    assert seen[10:] == pytest.approx(5 * [0.2])
    assert seen[3] == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(0.3 * math.pi)) / 2))


def test_iwae_schedule_is_the_published_one(config: Compose) -> None:
    scheduler = instantiate(config("scheduler=iwae").scheduler.scheduler, _convert_="all")(sgd(1e-3))
    expected = [1e-3 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(expected) == 3280
    assert rates(scheduler, 3280) == pytest.approx(expected)
