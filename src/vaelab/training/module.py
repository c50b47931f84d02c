"""One optimisation step: terms = objective(model, x, y), loss = their mean over the batch."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from vaelab.objectives import Objective
from vaelab.trace import GenerativeModel
from vaelab.training.curves import Curves, last_good
from vaelab.training.totals import NonFiniteLossError

Batch = tuple[Tensor, Tensor]


class VAEModule(L.LightningModule):
    """Trains a model by an objective. Figures are means per image, in nats where the objective's terms are.

    `optimizer` is a factory, parameters -> Optimizer, and `scheduler` Lightning's configuration with a factory under
    "scheduler". Raises ValueError if the optimiser refuses its settings, or parts and objective do not go together.
    """

    model: GenerativeModel
    objective: Objective
    trainer: Any

    def __init__(
        self,
        model: GenerativeModel,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        scheduler: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.optimizer, self.scheduler = optimizer, scheduler
        build_optimizer(optimizer, model, objective)
        rehearse(model, objective)
        self.curves = Curves()
        self.step = torch.zeros(())  # optimiser steps so far, on the device
        self._rng_state: dict[str, Tensor] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the name of each hook that it calls: a twentieth of a small step, by torch's own way."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def figures(self) -> dict[str, float]:
        """The latest of each, "train/loss" and so on."""
        return self.curves.latest

    @property
    def monitor(self) -> str | None:
        """The figure that tells the best weights, lower is better; None without validation images."""
        return f"val/{self.objective.monitor}" if self.trainer.limit_val_batches else None

    @property
    def best_figure(self) -> float:
        """What the best weights reached: the monitored figure, or the last epoch's training loss."""
        score = self.trainer.checkpoint_callback.best_model_score
        return float(score) if score is not None else self.figures["train/loss"]

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer, self.model, self.objective)
        self._groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        if self.scheduler is None:
            return optimizer
        factory = self.scheduler["scheduler"]
        takes_length = "total_steps" in inspect.signature(factory).parameters
        length = {"total_steps": self.trainer.estimated_stepping_batches} if takes_length else {}
        schedule = {**self.scheduler, "scheduler": factory(optimizer, **length)}
        return {"optimizer": optimizer, "lr_scheduler": {"monitor": self.monitor or "train/loss", **schedule}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.terms(batch, self.step)
        self.curves.totals["train"].add(terms, self.trainer.global_step + 1)
        return terms["loss"].mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same noise each time, another one in each process, and none of it taken from the training stream."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            seed_noise(self.device, batch_idx * self.trainer.world_size + self.global_rank)
            self.curves.totals[self._split].add(self.terms(batch, None), self.trainer.global_step)

    test_step = validation_step

    @property
    def _split(self) -> str:
        """What is under way; an epoch's validation is no training."""
        return "train" if self.trainer.training else "test" if self.trainer.testing else "val"

    def terms(self, batch: Batch, step: Tensor | None) -> dict[str, Tensor]:
        x, y = batch
        return self.objective(self.model, x, y if self.model.num_classes else None, step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.step += 1

    def on_fit_start(self) -> None:
        """Let parts that must see data first do so, once: when resuming, what they learned came with the checkpoint."""
        for stopping in self.trainer.early_stopping_callbacks:
            stopping.monitor = self.monitor if stopping.monitor == "val/loss" else stopping.monitor
        parts: list[Any] = [part for part in self.modules() if hasattr(part, "initialize")]
        if parts and not self._rng_state:
            images = self.trainer.datamodule.splits["train"][0].to(self.device).float().div_(255)
            for part in parts:
                part.initialize(images)

    def on_train_start(self) -> None:
        self.step = torch.tensor(float(self.trainer.global_step), device=self.device)
        if self._rng_state:
            torch.set_rng_state(self._rng_state["cpu"])
            if "cuda" in self._rng_state and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._rng_state["cuda"], self.device)
        if self.global_rank:  # only the first rank's state is in a checkpoint; noise differs by rank
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_rank + self.trainer.global_step)
        # the optimiser's settings of this run's config rule over those of the checkpoint it resumes
        for group, wanted in zip(self.trainer.optimizers[0].param_groups, self._groups, strict=True):
            group |= {k: v for k, v in wanted.items() if k != "lr" or self.scheduler is None}

    def on_train_epoch_start(self) -> None:
        self.curves.begin()

    def on_train_batch_end(self, *_: Any) -> None:
        self.curves.step_ended(self.trainer)

    def on_train_epoch_end(self) -> None:
        self._epoch_end()
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "epoch":
                metric = self.figures[config.monitor] if config.reduce_on_plateau else None
                super().lr_scheduler_step(config.scheduler, metric)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's own step after an epoch comes too late for the checkpoint of that epoch: see above."""
        if any(config.interval == "step" for config in self.trainer.lr_scheduler_configs):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_end(self) -> None:
        self._epoch_end()

    on_test_epoch_end = on_validation_epoch_end

    def _epoch_end(self) -> None:
        """Hand the epoch's means to checkpoints and whatever else watches them."""
        self.log_dict(self.curves.epoch_ended(self.trainer, self._split), logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing but finite numbers is written; random states and the epoch's sums go along."""
        self.curves.read(self.trainer)
        if not torch.stack([p.isfinite().all() for p in self.parameters()]).all():
            step = f"{self.trainer.global_step:,}"
            raise NonFiniteLossError(f"a weight is no finite number after step {step}; {last_good(self.trainer)}")
        rng_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng_state["cuda"] = torch.cuda.get_rng_state(self.device)
        totals = self.curves.totals["train"]
        checkpoint["vaelab"] = {"rng_state": rng_state, "sums": dict(totals.sums), "images": totals.images}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vaelab"]
        self._rng_state = state["rng_state"]
        totals = self.curves.totals["train"]
        totals.sums, totals.images = dict(state["sums"]), state["images"]


def seed_noise(device: torch.device, seed: int) -> None:
    """torch.manual_seed, which on a CPU takes a millisecond to keep a traceback for GPUs that are not used."""
    (torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed)(seed)


def build_optimizer(factory: Callable[..., Optimizer], model: Any, objective: Objective) -> Optimizer:
    """The optimiser of the objective's parameter groups; ValueError if it refuses their settings or its own."""
    groups = objective.parameter_groups(model)
    try:
        optimizer = factory(groups)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the optimizer cannot be built: {error}") from error
    unknown = {setting for group in groups for setting in group} - {"params", *optimizer.defaults}
    if unknown:
        own = f"{type(objective).__name__} sets its parameters' {', '.join(sorted(unknown))}"
        raise ValueError(f"{own}, which optimizer {type(optimizer).__name__} has not: optimizer=adam has")
    return optimizer


def rehearse(model: Any, objective: Objective) -> None:
    """Score two blank images on a copy: parts that do not go together raise ValueError before any data is fetched."""
    model, objective = copy.deepcopy((model, objective))
    x = torch.zeros(2, *model.image_shape)
    y = torch.zeros(2, dtype=torch.long) if model.num_classes else None
    parts = [(part, getattr(model, part, None)) for part in ("posterior", "prior")]
    names = ", ".join(f"{part} {type(module).__name__}" for part, module in parts if module is not None) or "no prior"
    pair = f"objective {type(objective).__name__} does not go with {type(model).__name__} ({names})"
    with torch.random.fork_rng([]):
        try:
            terms = objective(model, x, y, torch.zeros(()))
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f"{pair}: {error or type(error).__name__}") from error
    if "loss" not in terms or any(term.shape != (2,) for term in terms.values()):
        shapes = ", ".join(f"{name} {tuple(term.shape)}" for name, term in terms.items())
        raise ValueError(f"{pair}: a loss and one value of each term for each of two images are needed, not {shapes}")
    for name, term in terms.items():
        if not term.isfinite().all():
            why = ": a point mass has no density, which this objective needs" if "PointMass" in names else ""
            raise ValueError(f"{pair}: its {name} is {term[0].item()}{why}")
    terms["loss"].mean().backward()
    idle = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    if idle:
        raise ValueError(f"{pair}: no gradient reaches its {', '.join(idle)}, which would never learn")
