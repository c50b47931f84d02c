"""One optimiser step: terms = objective(model, x, y, step), loss = the mean of terms["loss"] over the batch.

The loader makes a batch of images on the training device. Lightning passes it to `VAEModule.training_step`, where the
objective computes its terms and the metrics sum them. Lightning then computes the gradient of the loss, clips it if the
Trainer has a clip value, and steps the optimiser and the learning-rate schedules. Callbacks run last. The loggers get
the means of the terms every `trainer.log_every_n_steps` steps.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vaelab import checks
from vaelab.errors import UserError
from vaelab.interfaces import GenerativeModel, labels, learners
from vaelab.noise import fixed_noise
from vaelab.objectives import Objective
from vaelab.training import ranks
from vaelab.training.length import total_steps
from vaelab.training.metrics import Metrics, NonFiniteLossError
from vaelab.training.rehearsal import build_optimizer, build_schedule, rehearse

log = logging.getLogger(__name__)
Batch = tuple[Tensor, Tensor | None] | Tensor  # images x (B, C, H, W) in [0, 1], and labels y (B,) if there are any


class VAEModule(L.LightningModule):
    """The LightningModule that trains a model with an objective. Metrics are means of the objective's terms per image.

    Raises UserError if an argument is out of its range, if the optimiser or the learning-rate schedule does not accept
    its settings, or if parts and objective do not go together.
    """

    model: GenerativeModel
    objective: Objective
    step: Tensor
    trainer: Any

    def __init__(
        self,
        model: GenerativeModel,
        objective: Objective,
        optimizer: Callable[..., Optimizer],  # parameter groups -> Optimizer
        scheduler: dict[str, Any] | None = None,  # Lightning's configuration, with a factory under "scheduler"
        compile: bool = False,  # use torch.compile for the objective in training steps
    ) -> None:
        super().__init__()
        checks.one_of((True, False), **{"module.compile": compile})
        self.model, self.objective = model, objective
        self.optimizer, self.scheduler, self.compiled = optimizer, scheduler, compile
        self.lr: float | None = None  # the rate of LearningRateFinder; it replaces the optimiser's rate
        trial = build_optimizer(optimizer, model, objective)
        if scheduler is not None:
            build_schedule(scheduler, trial)
        self._terms = rehearse(model, objective)  # the names of the objective's terms, by split
        self.metrics = Metrics()
        self.register_buffer("step", torch.zeros(()), persistent=False)  # optimiser steps so far, on the device
        self._scores: Callable[..., dict[str, Tensor]] | None = None  # the compiled objective
        self._initialized = self._tuning = False
        self._settings: list[dict[str, Any]] = []  # the optimiser's settings in the config, by parameter group
        self._restored: dict[str, Any] = {}  # the entry "vaelab" of a checkpoint
        self.resumable = True  # whether a run can resume from a checkpoint within an epoch
        self.logs_results = True  # whether loggers get the results of Trainer.validate and Trainer.test
        self.measured: dict[str, float] = {}  # the means of this epoch and of its validations
        self._logged_step, self._clock = 0, 0.0

    # The step ---------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        terms = self.terms(batch, self.step)  # {"loss": (B,), "elbo": (B,), ...}
        self.metrics.add("train", terms, self.step)
        return terms["loss"].mean()

    def terms(self, batch: Batch, step: Tensor | None) -> dict[str, Tensor]:
        """The objective's terms {name: (B,)} after `step` optimiser steps. With None, schedules are at their end."""
        x, y = (batch, None) if isinstance(batch, Tensor) else batch
        inputs = (self.model, x, y if self.objective.takes_labels else labels(self.model, y), step)
        if self._scores and self.training:
            try:
                return self._scores(*inputs)
            except Exception as error:  # a bug of the objective is raised again below, with its traceback
                log.warning("not compiled, which only makes training slower: %s", str(error).strip().split("\n")[0])
                self._scores = None
        return self.objective(*inputs)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def _evaluate(self, split: str, batch: Batch, batch_idx: int) -> None:
        """Score a batch with fixed noise. It differs between processes and does not change the noise of training."""
        with fixed_noise(self.device, batch_idx * self.trainer.world_size + self.global_rank):
            self.metrics.add(split, self.terms(batch, None), self.step)

    # The optimiser and its schedule -----------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer, self.model, self.objective)
        self._settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        if self.scheduler is None:
            return optimizer
        scheduler = build_schedule(self.scheduler, optimizer, self.total_steps)
        config = {"monitor": self.monitor or "train/loss", "frequency": 1, **self.scheduler, "scheduler": scheduler}
        if isinstance(scheduler, ReduceLROnPlateau):
            self._expect(config["monitor"], "the scheduler")
        if isinstance(scheduler, ReduceLROnPlateau) and config.get("interval", "epoch") == "epoch":
            # Lightning would step it after the epoch's checkpoint, so a resumed run would miss it: see step_plateau
            self._plateau_frequency, config["frequency"] = config["frequency"], sys.maxsize
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _expect(self, metric: str | None, who: str) -> None:
        """Warn of a metric to monitor that is not of the objective. The user's own code may log it."""
        own = [f"{split}/{term}" for split, terms in self._terms.items() for term in terms]
        if metric not in own:
            log.warning(f"{who} monitors {metric}: the run fails if nothing logs it; there are {', '.join(own)}")

    def step_plateau(self) -> None:
        """Step each ReduceLROnPlateau that is due. A validation metric counts only if this epoch was validated.

        Raises UserError if nothing logs the metric.
        """
        validated = any(name.startswith("val/") for name in self.measured)
        metrics = {**self.trainer.callback_metrics, **self.measured}
        for config in self.schedules:
            if not config.reduce_on_plateau or config.interval != "epoch":
                continue
            due = (self.trainer.current_epoch + 1) % self._plateau_frequency == 0
            if not due or (config.monitor.startswith("val/") and not validated):
                continue
            if config.monitor not in metrics:
                known = ", ".join(sorted(metrics))
                raise UserError(f"scheduler.monitor={config.monitor}: nothing logs this metric; there are {known}")
            config.scheduler.step(float(metrics[config.monitor]))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        return self.trainer.optimizers[0].param_groups

    @property
    def schedules(self) -> Sequence[Any]:
        """Lightning's configurations of the learning-rate schedules."""
        return self.trainer.lr_scheduler_configs

    @property
    def total_steps(self) -> float:
        """The number of optimiser steps of the whole fit. It is infinite if the fit has no end."""
        return total_steps(self.trainer)

    @property
    def monitor(self) -> str | None:
        """The metric that selects the best weights (lower is better), or None without validation images."""
        return f"val/{self.objective.monitor}" if self.trainer.limit_val_batches else None

    # Around the steps -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self._tuning = stage == "fit"  # steps before on_fit_start belong to a tuner's search
        for stopping in self.trainer.early_stopping_callbacks:
            stopping.monitor = self.monitor if stopping.monitor == "auto" else stopping.monitor
            if self._tuning:
                self._expect(stopping.monitor, "an EarlyStopping callback")
        if self._tuning and self.compiled:
            log.info("compiling, so the first steps take longer")
            torch.compiler.reset()  # earlier runs of a sweep count for torch's limit of compilations
            self._scores = torch.compile(self.objective.forward, options={"fallback_random": True})  # eager-mode noise

    def on_fit_start(self) -> None:
        self._tuning = False
        self._initialize()
        if self.lr is not None:
            log.info("rate     %g, which LearningRateFinder found", self.lr)
            for group in self.groups:
                group |= {"lr": self.lr, "initial_lr": self.lr}
            for config in self.schedules:
                config.scheduler.base_lrs = [self.lr for _ in config.scheduler.base_lrs]

    def _initialize(self) -> None:
        """Call `initialize` once on each part that learns from the training images. Checkpoints contain the result."""
        parts = learners(self)
        if parts and not self._initialized:
            images = self.trainer.datamodule.splits["train"][0].to(self.device, self.dtype).div_(255)
            for part in parts:
                part.initialize(images)
        self._initialized = True

    def on_train_start(self) -> None:
        self._initialize()  # a tuner does not call on_fit_start
        self.metrics.restart()
        if self._tuning:
            return
        self._logged_step = self.trainer.global_step
        ranks.restore_noise(self, self._restored.get("ranks", []))
        # Optimiser settings that the user changed after the checkpoint replace those in the checkpoint
        restored = self._restored.get("settings", self._settings)
        for group, wanted, before in zip(self.groups, self._settings, restored, strict=True):
            group |= {name: value for name, value in wanted.items() if value != before.get(name)}

    def on_train_epoch_start(self) -> None:
        self.measured, self._clock = {}, time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.step.fill_(self.trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        self.log_due()
        if self.trainer.is_last_batch or self.trainer.global_step == self.trainer.max_steps:
            self._end_epoch("train")  # callbacks read these means in on_train_epoch_end

    def log_due(self) -> None:
        """Add a point to the training curves if one is due: every `log_every_n_steps` steps, and at an epoch's end."""
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps
        if self.trainer.is_last_batch or (step % every == 0 and step != self._logged_step):
            self.log_window()

    def log_window(self) -> None:
        """Log the means since the last point of the training curves, and the images per second."""
        if self._tuning:
            return
        means, images = self.metrics.end_window()
        now = time.perf_counter()
        if means:
            rates = {"train/images_per_second": images * self.trainer.world_size / (now - self._clock)}
            for i, group in enumerate(self.groups, 1):
                rates["train/lr" if i == 1 else f"train/lr_{i}"] = float(group["lr"])
            self.record(means | rates)
        self._logged_step, self._clock = self.trainer.global_step, now

    def record(self, metrics: dict[str, float]) -> None:
        """Store the latest value of each metric, and send it to the loggers at the present optimiser step."""
        self.metrics.latest |= metrics
        for logger in self.loggers:
            logger.log_metrics(metrics, self.trainer.global_step)

    def on_validation_start(self) -> None:
        self.log_window()  # validation does not count as training time

    def on_validation_end(self) -> None:
        self._clock = time.perf_counter()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        trainer = self.trainer
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        if batch_idx + 1 == batches[0]:
            self._end_epoch("val")

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        if batch_idx + 1 == self.trainer.num_test_batches[0]:
            self._end_epoch("test")

    def on_train_epoch_end(self) -> None:
        if "train/loss" not in self.measured:  # something ended the epoch before its last batch
            self.log_window()
            self._end_epoch("train")
        self.step_plateau()

    def _end_epoch(self, split: str) -> None:
        """Pass the means of an epoch to Lightning, for callbacks that monitor them. Also record validation means."""
        if self._tuning:
            return
        means = self.metrics.end_epoch(split, self.trainer)
        self.measured |= means
        fitting = self.trainer.state.fn == "fit"
        for name, value in means.items():
            shown = name.endswith("/loss")  # in a progress bar of Lightning
            logged = self.logs_results and not fitting
            self.log(name, value, shown, logged, on_step=False, on_epoch=True, batch_size=1)
        if fitting and split == "val" and not self.trainer.sanity_checking:
            self.record(means)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add random states and sums to a checkpoint. Raises NonFiniteLossError if a loss or a weight is not finite."""
        self.log_due()  # callbacks save before on_train_batch_end of this module
        self.metrics.sums["train"].read()
        if not torch.stack([p.isfinite().all() for p in self.parameters()]).all():
            raise NonFiniteLossError(f"a weight is not a finite number after step {self.trainer.global_step:,}")
        checkpoint["vaelab"] = {
            "ranks": ranks.collect(self),
            "latest": self.metrics.latest | self.metrics.epoch("train", self.trainer),
            "settings": self._settings,
            "initialized": self._initialized,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint["vaelab"]
        self._initialized = self._restored["initialized"]
        self.metrics.latest = dict(self._restored["latest"])
        ranks.restore_sums(self, self._restored["ranks"])
