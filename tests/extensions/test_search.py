"""A search with Optuna has Hydra's search space, ends bad runs early, and goes on where it stopped."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, stop_at
from hydra.core.override_parser.overrides_parser import OverridesParser

pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from vaelab.errors import UserError
from vaelab.extensions import search

SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "callbacks.pictures.count=0"]
SEARCH = ["-m", "hydra/sweeper=optuna", *SMALL, "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweep.dir=logs/s"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("objective=elbo,iwae", CategoricalDistribution(["elbo", "iwae"])),
        ("a=choice([8],[8,8])", CategoricalDistribution(["[8]", "[8,8]"])),
        ("a=range(2,20)", IntDistribution(2, 19)),
        ("a=range(2,20,4)", IntDistribution(2, 18, step=4)),
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("a=interval(0,1)", FloatDistribution(0, 1)),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_the_search_space_has_the_syntax_of_hydra(override: str, expected: Any) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert search.distribution(parsed) == expected


def test_a_range_without_values_is_refused() -> None:
    (parsed,) = OverridesParser.create().parse_overrides(["a=range(2,2)"])
    with pytest.raises(UserError, match=r"a=range\(2,2\): this range has no values"):
        search.distribution(parsed)


def study(command: Command) -> Any:
    return search.open_study(search.open_storage(command.folder / "logs" / "s"))


def test_a_search_that_stopped_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second trial is stopped within its second epoch, and it goes on with the same settings and in its folder."""
    three = [*SEARCH, "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner._target_=optuna.pruners.NopPruner"]
    assert command(*three[:-2], "hydra.sweeper.n_trials=1")[0] is None
    with monkeypatch.context() as patch:
        stop_at(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert command(*three)[0] == 128 + signal.SIGTERM
    assert [trial.state.name for trial in study(command).trials] == ["COMPLETE", "RUNNING"]
    code, printed = command(*three[:-3], *three[-2:], "resume=logs/s")
    assert code is None, printed
    trials = study(command).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 3  # the seed of the sampler is not used again
    names = [path.name for path in sorted(Path("logs/s").glob("*/"))]
    assert names == [f"{trial.number}_optimizer.lr-{trial.params['optimizer.lr']}" for trial in trials]
    best = min(trials, key=lambda trial: trial.value)
    assert f"best     trial {best.number}, {best.value:.2f}: optimizer.lr={best.params['optimizer.lr']}" in printed
    assert [*trials[1].intermediate_values] == [3, 6]
    assert trials[1].value == pytest.approx(min(trials[1].intermediate_values.values()), rel=1e-6)
    other, _ = command("-m", "hydra/sweeper=optuna", *SMALL, "seed=range(0,9)", "resume=logs/s")
    assert other == "error: the study of this sweep searches optimizer.lr, and not seed: start a new sweep"


def test_failed_trials_are_repeated_and_bad_ones_end_early(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    above = ["hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.upper=1"]
    one = [*SEARCH, *above, "hydra.sweeper.n_trials=1"]
    with monkeypatch.context() as patch:
        stop_at(patch, 1, lambda: 1 / 0)
        code, _ = command(*one)
    assert "1 of 1 runs are not finished: 0_optimizer.lr" in str(code)
    code, printed = command(*one)
    assert code is None, printed
    failed, pruned = study(command).trials
    assert (failed.state.name, pruned.state.name, failed.params) == ("FAIL", "PRUNED", pruned.params)
    assert [*pruned.intermediate_values] == [3]  # the run would have six steps
    assert "pruned   Optuna ends this run" in printed
    assert "finished in epoch 1" in printed
    assert len([*Path("logs/s/replaced").iterdir()]) == 1


def test_equal_trials_of_a_batch_are_one_run(command: Command) -> None:
    """Side by side, the second run would find the folder of the first one in use, and count as failed."""
    one = ["-m", "hydra/sweeper=optuna", *SMALL, "seed=range(3,4)", "hydra.sweep.dir=logs/s"]
    code, printed = command(*one, "hydra.sweeper.n_trials=2", "hydra.sweeper.max_batch_size=2")
    assert (code, printed.count("skipped  ")) == (None, 0), printed
    first, second = study(command).trials
    assert first.state.name == second.state.name == "COMPLETE"
    assert first.value == second.value
    assert [path.name for path in Path("logs/s").glob("*/")] == ["0_seed-3"]
