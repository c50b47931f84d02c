"""A search of settings as an Optuna study: `python train.py -m hydra/sweeper=optuna ...`.

The search space has Hydra's syntax:

| override | values |
|---|---|
| a=1,2 or a=choice(1,2) | one of these |
| a=range(2,20) | 2, 3, ..., 19 |
| a=interval(0,1) | a real number |
| a=int(interval(1,9)) | a whole number, 1 and 9 included |
| a=tag(log,interval(1e-4,1e-2)) | a real number, evenly on a logarithmic scale |
"""

import logging
import math
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from vaelab.errors import UserError
from vaelab.runs import sweeps
from vaelab.text import plain

log = logging.getLogger("vaelab.train")
PRUNED = "pruned"  # a mark of a trial in the study


def distribution(override: Override) -> Any:
    """Optuna's distribution of an override with several values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if override.is_choice_sweep():
        return CategoricalDistribution([*override.sweep_string_iterator()])
    log = "log" in value.tags
    if override.is_interval_sweep():
        kind: Any = IntDistribution if type(value.start) is type(value.end) is int else FloatDistribution
        return kind(value.start, value.end, log=log)
    points = [*value.range()]
    if not points or value.step <= 0:
        raise UserError(f"{override.input_line}: this range has no values; its step must be above zero")
    kind = IntDistribution if isinstance(points[0], int) else FloatDistribution
    return kind(points[0], points[-1], step=value.step, log=log)


def open_storage(sweep: Path) -> Any:
    """Optuna's storage of a sweep: the file study.db in its folder, which is made if it does not exist."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.mkdir(parents=True, exist_ok=True)
    patient = {"connect_args": {"timeout": 60}}  # seconds; runs that go side by side write to one file
    return optuna.storages.RDBStorage(f"sqlite:///{sweep.absolute()}/study.db", engine_kwargs=patient)


def open_study(storage: Any, sampler: Any = None, pruner: Any = None) -> Any:
    """The study of a sweep, which is made if it does not exist."""
    import optuna

    return optuna.create_study(storage=storage, study_name="sweep", sampler=sampler, pruner=pruner, load_if_exists=True)


def finished(study: Any) -> int:
    """The number of trials that have a result. Trials that were pruned are among them."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)


def unfinished(study: Any, space: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The numbers and settings of the trials that were stopped. Those that failed become the next that Optuna asks for.

    Raises UserError if the study searches other settings.
    """
    trials = study.trials
    for trial in trials:
        if trial.state.name == "RUNNING" and trial.params.keys() < space.keys():  # it was stopped while it was made
            tell(study, trial.number, None)
            continue
        for key in trial.params.keys() & space.keys():
            choices = getattr(space[key], "choices", None)
            if choices is not None and choices != trial.distributions[key].choices:
                raise UserError(f"the study of this sweep has other choices of {key}: start a new sweep")
            if choices is None and not isinstance(trial.params[key], int | float):
                raise UserError(f"the study of this sweep has {key}={plain(trial.params[key])}, which is no number")
        if trial.params and trial.params.keys() != space.keys():
            raise UserError(
                f"the study of this sweep searches {', '.join(trial.params)}, and not {', '.join(space)}: "
                "start a new sweep"
            )
    if trials:
        study.sampler.reseed_rng()  # otherwise it would draw the points of the first trials again
    known = [trial.params for trial in trials if trial.state.name != "FAIL"]
    for trial in trials:
        if trial.state.name == "FAIL" and trial.params not in known:
            study.enqueue_trial(trial.params)
            known.append(trial.params)
    return [(trial.number, trial.params) for trial in study.trials if trial.state.name == "RUNNING"]


def tell(study: Any, number: int, value: float | None) -> None:
    """Record the result of a trial. A run that failed has none. A trial with equal settings may have trained it."""
    from optuna.trial import TrialState

    trials = study.trials
    equal = [trial for trial in trials if trial.params == trials[number].params]
    if value is None or not math.isfinite(value):
        study.tell(number, state=TrialState.FAIL)
    elif any(trial.user_attrs.get(PRUNED) for trial in equal):
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, value)


def print_best(study: Any) -> None:
    """Print the settings of the best trial, if there is one."""
    if any(trial.state.name == "COMPLETE" for trial in study.trials):
        best = study.best_trial
        settings = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best     trial {best.number}, {best.value:.2f}: {settings}", flush=True)


class Pruning(Callback):
    """Reports the monitored metric of each validation to the study, and ends a run that the study's pruner gives up.

    Such a run is finished, only shorter. Without hydra/sweeper=optuna, this callback does nothing.
    """

    def __init__(self) -> None:
        self.trial: Any = None
        self.reported: set[int] = set()  # steps, also those before the run was resumed

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit" or not HydraConfig.initialized() or "trial" not in HydraConfig.get().sweeper:
            return
        from optuna.trial import Trial

        sweeper = HydraConfig.get().sweeper
        storage = open_storage(sweeps.sweep_folder())
        study = open_study(storage, pruner=instantiate(sweeper.pruner))
        study_id = storage.get_study_id_from_name(study.study_name)
        self.trial = Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, sweeper.trial))
        self.reported = {*study.trials[sweeper.trial].intermediate_values}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        step = trainer.global_step
        if self.trial is None or trainer.state.fn != "fit" or trainer.sanity_checking or step in self.reported:
            return
        self.trial.report(float(trainer.callback_metrics[pl_module.monitor]), step)
        if self.trial.should_prune():
            log.info("pruned   Optuna ends this run, because other runs were better at this step")
            self.trial.set_user_attr(PRUNED, True)
            trainer.should_stop = True
