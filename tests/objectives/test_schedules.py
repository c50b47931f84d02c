"""Schedules of weights that change with the number of optimiser steps."""

import pytest
import torch

from vaelab.objectives import Cyclical, Linear


def test_schedule_out_of_range() -> None:
    with pytest.raises(ValueError, match="steps=0: a whole number, at least 1"):
        Linear(steps=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
@pytest.mark.parametrize(
    ("step", "value"),
    [
        *[(0, 1.0), (2, 2.0), (4, 3.0), (5, 3.0), (9, 3.0)],  # rises for four steps, and stays for six
        *[(10, 1.0), (13, 2.5), (19, 3.0), (20, 1.0), (21, 1.5), (29, 3.0)],  # two more cycles
        *[(30, 3.0), (31, 3.0), (10_000, 3.0)],  # after the last cycle
    ],
)
def test_cyclical_schedule(kind: torch.dtype, step: int, value: float) -> None:
    schedule = Cyclical(steps=10, cycles=3, ramp=0.4, start=1.0, end=3.0)
    torch.testing.assert_close(schedule(torch.tensor(step, dtype=kind)), torch.tensor(value))
    assert schedule(None) == 3.0


def test_a_schedule_is_at_its_end_after_its_length() -> None:
    for schedule in (Linear(steps=7, end=2.0), Cyclical(steps=5, cycles=3, ramp=0.5, end=2.0)):
        after = [float(schedule(torch.tensor(step))) for step in range(schedule.length - 7, schedule.length + 9)]
        assert min(after[:7]) < 2.0
        assert set(after[7:]) == {2.0}


def test_one_cycle_that_is_all_ramp_is_the_linear_schedule() -> None:
    once, linear = Cyclical(steps=50, cycles=1, ramp=1.0, end=0.7), Linear(steps=50, end=0.7)
    for step in torch.arange(0.0, 120.0, 7.0):
        torch.testing.assert_close(once(step), linear(step))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps=0: a whole number, at least 1"),
        ({"steps": 2.5}, "steps=2.5: a whole number, at least 1"),
        ({"steps": 5, "cycles": 0}, "cycles=0: a whole number, at least 1"),
        ({"steps": 5, "cycles": 1.5}, "cycles=1.5: a whole number, at least 1"),
        ({"steps": 5, "ramp": 0.0}, "ramp=0.0: a number above zero"),
        ({"steps": 5, "ramp": 1.1}, "ramp=1.1: a number from zero to one"),
        ({"steps": 5, "end": "high"}, "end=high: a number, at least zero"),
    ],
)
def test_cyclical_schedule_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Cyclical(**settings)
