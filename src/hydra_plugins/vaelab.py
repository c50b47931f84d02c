"""What Hydra finds here, and nowhere else: a launcher that trains all runs of a sweep at once."""

import contextlib
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class Together(Launcher):
    """Members of a sweep that differ in numbers of model, objective, optimizer and scheduler, or in the seed, alone.

    Batches and noise are those of the first member, whatever the seeds: they choose the first weights.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vaelab.sweep import Sweep, check  # every program that uses Hydra imports this file

        setup_globals()
        configs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            configs.append(self.context.config_loader.load_sweep_config(self.config, list(overrides)))
            with open_dict(configs[-1]):
                configs[-1].hydra.job.id = configs[-1].hydra.job.num = number
        check(configs)
        sweep = Sweep()
        try:
            jobs = []
            for config in configs:
                with open_dict(config):
                    config.data.seed = configs[0].data.seed
                where = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
                jobs.append(run_job(sweep.add, config, **where, hydra_context=self.context))
                _ = jobs[-1].return_value  # raises what went wrong
            outcomes = sweep.train(jobs)
        finally:
            for folder in sweep.folders:
                with contextlib.suppress(OSError):  # leave no empty folder behind
                    folder.rmdir()
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.return_value = outcome
            job.status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
        return jobs
