"""A Hydra sweeper that searches settings with Optuna. Hydra looks for plugins only in this package."""

from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Optuna(Sweeper):
    """Each run of the sweep is a trial of an Optuna study, which chooses its settings from those of earlier trials.

    The study is the SQLite file study.db in the sweep's folder. A sweep into a folder that has a study continues it: it
    runs the trials that were stopped, then those that failed, then new ones, until `n_trials` are finished. A launcher
    gets `max_batch_size` trials at a time, and equal ones of them are one run. Optuna minimises the number that a run
    returns, its monitored metric.

    The search space is all overrides of the command that have several values. vaelab.extensions.search describes it.
    `sampler` and `pruner` are objects of Optuna, see https://optuna.readthedocs.io. Raises UserError for a space that
    is not that of the study.
    """

    def __init__(self, n_trials: int, max_batch_size: int, sampler: Any, pruner: Any) -> None:
        self.n_trials, self.max_batch_size, self.sampler, self.pruner = n_trials, max_batch_size, sampler, pruner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        settings: Any = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        self.folder, self.loader = config.hydra.sweep.dir, hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(**settings)

    def sweep(self, arguments: list[str]) -> None:
        from vaelab import checks  # Hydra imports this file in every program
        from vaelab.extensions import search

        checks.whole(1, **{f"hydra.sweeper.{key}": getattr(self, key) for key in ("n_trials", "max_batch_size")})
        overrides = OverridesParser.create(self.loader).parse_overrides(arguments)
        space = {each.get_key_element(): search.distribution(each) for each in overrides if each.is_sweep_override()}
        shared = [str(each.input_line) for each in overrides if not each.is_sweep_override()]
        study = search.open_study(search.open_storage(Path(self.folder)), self.sampler, self.pruner)
        waiting = search.unfinished(study, space)
        left = self.n_trials - search.finished(study)
        while left > 0:
            count = min(left, self.max_batch_size)
            trials = waiting[:count] or [
                (each.number, each.params) for each in (study.ask(space) for _ in range(count))
            ]
            waiting, left = waiting[count:], left - len(trials)
            settings = {number: [f"{key}={value}" for key, value in params.items()] for number, params in trials}
            first = {tuple(texts): number for number, texts in reversed(settings.items())}  # equal trials are one run
            chosen = sorted(first.values())
            jobs = [[*shared, *settings[number], f"+hydra.sweeper.trial={number}"] for number in chosen]
            results = dict(zip(chosen, self.launcher.launch(jobs, initial_job_idx=chosen[0]), strict=True))
            for number, texts in settings.items():
                search.tell(study, number, results[first[tuple(texts)]].return_value)
        search.print_best(study)
