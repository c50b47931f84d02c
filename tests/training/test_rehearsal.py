"""The rehearsal refuses settings of a schedule, and an objective that does not return one loss per image."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from oracle import LinearGaussian
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau

from vaelab.errors import UserError
from vaelab.objectives import ELBO, Objective
from vaelab.training import Cosine, VAEModule
from vaelab.training.rehearsal import build_schedule, rehearse

ADAM = partial(torch.optim.Adam, lr=0.001)
WEIGHTS = [torch.nn.Parameter(torch.zeros(1))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"scheduler.scheduler=None: a class is needed"),
        ({"scheduler": 3}, r"scheduler.scheduler=3: a class is needed"),
        ({"every": 1}, r"scheduler.every: there is no such setting; there are scheduler, interval"),
        ({"interval": "day"}, r"scheduler.interval=day: choose one of step, epoch"),
        ({"frequency": 0}, r"scheduler.frequency=0: a whole number"),
        ({"scheduler": partial(ReduceLROnPlateau, factor=3)}, r"scheduler.scheduler cannot be built: Factor should be"),
        ({"scheduler": partial(MultiStepLR, milestones=1.5)}, r"scheduler.scheduler cannot be built: 'float' object"),
        (
            {"scheduler": partial(Cosine, min_ratio=1.5)},
            r"scheduler.scheduler cannot be built: min_ratio=1.5: a number",
        ),
    ],
)
def test_a_schedule_is_refused_before_the_run(settings: dict[str, Any], message: str) -> None:
    whole = {"scheduler": Cosine} | settings if settings else {"interval": "step"}
    with pytest.raises(UserError, match=message):
        VAEModule(LinearGaussian().vae(exact=False), ELBO(), ADAM, scheduler=whole)
    VAEModule(LinearGaussian().vae(exact=False), ELBO(), ADAM, scheduler={"scheduler": Cosine, "interval": "step"})


def test_a_bug_in_a_schedule_keeps_its_traceback() -> None:
    def mine(optimizer: torch.optim.Optimizer) -> None:
        raise ValueError(f"my own mistake with {type(optimizer).__name__}")

    with pytest.raises(ValueError, match=r"^my own mistake with Adam$"):
        build_schedule({"scheduler": mine}, ADAM(WEIGHTS))


def test_a_schedule_gets_the_length_of_the_run() -> None:
    optimizer = ADAM(WEIGHTS)
    schedule = build_schedule({"scheduler": Cosine}, optimizer, 4)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx([0.001 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(1, 5)])


def test_the_terms_of_evaluation_are_named_by_split() -> None:
    class Mode(ELBO):
        def forward(self, *inputs: Any) -> dict[str, torch.Tensor]:
            terms = super().forward(*inputs)
            return {**terms, "training" if self.training else "evaluation": terms["loss"]}

    names = rehearse(LinearGaussian().vae(exact=False), Mode())
    assert names["train"] == (*names["val"][:-1], "training")
    assert names["val"][-1] == "evaluation"


def test_an_objective_without_one_value_an_image_is_refused() -> None:
    class Mean(Objective):
        def terms(self, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return {"loss": -trace.log_weight(x).mean()}

    class Nameless(Objective):
        def terms(self, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return {"bound": trace.log_weight(x).mean(0)}

    for objective in (Mean(), Nameless()):
        with pytest.raises(ValueError, match="a loss and terms with one value for each of two images are needed"):
            rehearse(LinearGaussian().vae(exact=False), objective)
