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


def test_parts_that_must_see_data_do_so_once(config: Compose, tmp_path: object) -> None:
    from train import train
    from vaelab import runs
    from vaelab.likelihoods import BernoulliAtMean

    calls = []
    original = BernoulliAtMean.initialize
    try:
        BernoulliAtMean.initialize = lambda self, images: (calls.append(images.shape), original(self, images))[1]
        train(config("model/likelihood=bernoulli_at_mean"), tmp_path)
        cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3"])
        cfg.resume = str(tmp_path)
        train(cfg, tmp_path)
    finally:
        BernoulliAtMean.initialize = original
    assert calls == [(500, 1, 28, 28)]
