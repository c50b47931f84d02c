"""The computed number of optimiser steps equals the number that Lightning takes."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from vaelab.training.length import accumulation, steps_of, total_steps


@pytest.mark.parametrize(("batches", "accumulated", "steps"), [(10, 1, 10), (10, 3, 4), (9, 3, 3), (1, 8, 1)])
def test_steps_of_an_epoch(batches: int, accumulated: int, steps: int) -> None:
    assert steps_of(batches, accumulated) == steps


def test_a_scheduler_rules_over_the_setting() -> None:
    scheduler = GradientAccumulationScheduler({0: 1, 2: 4})
    assert [accumulation([scheduler], 7)(epoch) for epoch in range(4)] == [1, 1, 4, 4]
    assert [accumulation([], 7)(epoch) for epoch in range(2)] == [7, 7]


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "estimated", "steps"),
    [(4, -1, 99, 10 + 10 + 3 + 3), (4, 12, 99, 12), (-1, 50, 50, 50), (-1, -1, float("inf"), float("inf"))],
)
def test_the_whole_fit(max_epochs: int, max_steps: int, estimated: float, steps: float) -> None:
    trainer = SimpleNamespace(
        estimated_stepping_batches=estimated, max_epochs=max_epochs, max_steps=max_steps, num_training_batches=10,
        accumulate_grad_batches=1, callbacks=[GradientAccumulationScheduler({0: 1, 2: 4})],
    )  # fmt: skip
    assert total_steps(trainer) == steps
