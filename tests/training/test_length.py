"""The computed number of optimiser steps equals the number that Lightning takes."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from vaelab.training.length import epochs_of, steps_in, total_steps


@pytest.mark.parametrize(("batches", "accumulated", "steps"), [(10, 1, 10), (10, 3, 4), (9, 3, 3), (1, 8, 1)])
def test_steps_of_an_epoch(batches: int, accumulated: int, steps: int) -> None:
    assert steps_in(1, batches, [], accumulated) == steps
    assert steps_in(10**9, batches, [], accumulated) == steps * 10**9


@pytest.mark.parametrize("callbacks", [[], [GradientAccumulationScheduler({0: 1, 2: 4})]], ids=["same", "changing"])
def test_the_epochs_that_hold_some_steps(callbacks: list) -> None:
    for steps in range(1, 60):
        epochs = epochs_of(steps, 10, callbacks, 3)
        assert steps_in(epochs - 1, 10, callbacks, 3) < steps <= steps_in(epochs, 10, callbacks, 3)


def test_a_scheduler_rules_over_the_setting() -> None:
    scheduler = GradientAccumulationScheduler({0: 1, 2: 4})
    assert [steps_in(epochs, 10, [scheduler], 7) for epochs in range(5)] == [0, 10, 20, 23, 26]


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
