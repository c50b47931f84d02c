"""A Hydra launcher that trains all runs of a sweep at once. Hydra looks for plugins only in this package."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class Together(Launcher):
    """Trains all runs of a sweep as one batched model.

    Raises UserError if they differ in more than seeds and numbers of model, objective, optimizer and scheduler, and if
    the sweep's folder has runs already. A seed sets only the first weights of its run: batches and noise are those of
    the first run.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vaelab.errors import UserError  # Hydra imports this file in every program
        from vaelab.extensions import sweep
        from vaelab.runs import sweeps

        old = [run.folder.name for run in sweeps.started(Path(self.config.hydra.sweep.dir))]
        if old and initial_job_idx == 0:  # a later batch of this sweep finds its own runs
            raise UserError(f"hydra/launcher=together cannot continue a sweep, and its folder has {old[0]} already")
        setup_globals()
        own, jobs = HydraConfig.instance().cfg, []
        where: Any = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            jobs.append(run_job(lambda cfg: cfg, config, **where, hydra_context=self.context))
        contexts: list[Any] = [job.hydra_cfg for job in jobs]
        folders = [Path(context.hydra.runtime.output_dir) for context in contexts]
        try:
            outcomes = sweep.train([job.return_value for job in jobs], folders, contexts)
        finally:
            HydraConfig.instance().cfg = own
            for folder in folders:
                with contextlib.suppress(OSError):  # leave no empty folder behind
                    folder.rmdir()
        for job, folder, outcome in zip(jobs, folders, outcomes, strict=True):
            failed = isinstance(outcome, Exception)
            if failed:
                sweeps.record_failure(folder, list(job.overrides or ()), str(outcome))
            job.return_value, job.status = None if failed else outcome, JobStatus.COMPLETED
        return jobs
