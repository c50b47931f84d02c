"""Training steps as one CUDA graph. On a GPU, a step of a small model takes less time than its launch from Python.

Lightning gets windows of `log_every_n_steps` batches. Inside a window, `VAEModule.training_step` runs on each batch in
turn. On a GPU, the step is captured once, with gradient and optimiser update, and then replayed.
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

from vaelab.data.loader import Loader
from vaelab.errors import UserError
from vaelab.extensions import configured, step_schedules
from vaelab.training import LastCheckpoint, Progress, VAEModule

log = logging.getLogger(__name__)

REFUSED = (
    LearningRateFinder,  # it reads the loss of each batch
    *(GradientAccumulationScheduler, StochasticWeightAveraging, WeightAveraging),  # they change or follow each step
)
WINDOW_HOOKS = ("on_train_batch_start", "on_train_batch_end")
STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
LIGHTNINGS = ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")  # never run
CAPTURES = ("cuda",)  # the types of device that can capture a step
WARM_UP = 3  # steps before the capture; they allocate the memory that the graph will use


class Windows:
    """A loader of windows. A window is an iterator over up to `size` batches, each as the index (B,) of its images."""

    def __init__(self, loader: Loader, size: int) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        return math.ceil(self.loader.taken / self.size)

    def __iter__(self) -> Iterator[Iterator[Tensor]]:
        indices = self.loader.indices()
        for first in indices:
            yield chain([first], islice(indices, self.size - 1))

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


class GraphedModule(VAEModule):
    """A VAEModule that replays each training step on a GPU as one CUDA graph. On a CPU it uses no graph.

    The graph contains what the step computes on the device. Python code of the step (a counter, a print, `self.log`)
    runs only in the first steps and for a smaller last batch. Callbacks see one batch for each window of steps. Raises
    UserError for settings and callbacks that need single steps, and for a step that cannot be captured.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False  # training_step takes all optimiser steps of a window
        self._graph: Any = None  # a torch.cuda.CUDAGraph after the capture
        self._taken = 0  # steps since the fit began

    def configure_callbacks(self) -> list[Any]:
        """Check the settings, because Lightning calls this method first. Return no callbacks."""
        if self.trainer.state.fn == "fit":
            self._check()
        return []

    def configure_optimizers(self) -> Any:
        """Give Lightning the schedules for its checkpoints. Under manual optimisation, it does not step them."""
        optimizer, self._schedules = configured(super().configure_optimizers())
        return [optimizer], [config.scheduler for config in self._schedules]

    @property
    def schedules(self) -> list[Any]:
        return self._schedules

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.trainer.datamodule.serve = self._windows
            self._graph, self._taken = None, 0

    def _windows(self, loader: Loader) -> Windows:
        """The windows of a loader. Raises UserError for images that are not on the device of the graph."""
        if loader.images.device.type != self.device.type:
            raise UserError(
                "trainer=gpu_fast needs all images in the GPU's memory, and they are too large: trainer=gpu"
            )
        return Windows(loader, self.trainer.log_every_n_steps)

    def _check(self) -> None:
        """Raise UserError for settings that need single steps, and log which callbacks see only windows."""
        trainer, limit = self.trainer, self.trainer.limit_train_batches
        reasons = {
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}": trainer.accumulate_grad_batches != 1,
            f"gradient_clip_val={trainer.gradient_clip_val}": bool(trainer.gradient_clip_val),
            f"precision={trainer.precision}": trainer.precision == "16-mixed",
            f"val_check_interval={trainer.val_check_interval}": trainer.val_check_interval != 1.0,
            f"limit_train_batches={limit}": type(limit) is float and limit != 1.0,
            f"overfit_batches={trainer.overfit_batches}": bool(trainer.overfit_batches),
            "reload_dataloaders_every_n_epochs": bool(trainer.reload_dataloaders_every_n_epochs),
            f"devices={trainer.num_devices}": trainer.world_size > 1,
        }
        refused = [f"trainer.{reason}" for reason, holds in reasons.items() if holds]
        hooks = [name for name in LIGHTNINGS if getattr(type(self), name) is not getattr(L.LightningModule, name)]
        refused += [f"{name} of {type(self).__name__}" for name in hooks]
        seeing = []
        for callback in trainer.callbacks:
            name = type(callback).__name__
            if isinstance(callback, REFUSED) or _has(callback, STEP_HOOKS):
                refused.append(f"the callback {name}")
            elif _has(callback, WINDOW_HOOKS) and not isinstance(callback, LastCheckpoint | Progress):
                seeing.append(name)
        if refused:
            raise UserError(f"trainer=gpu_fast does not go with {refused[0]}: choose trainer=gpu")
        every = f"one batch for every {trainer.log_every_n_steps} steps"
        log.info("steps    callbacks see %s%s", every, f": {', '.join(seeing)}" * bool(seeing))

    @property
    def total_steps(self) -> float:
        if self.trainer.train_dataloader is None:
            self.trainer.fit_loop.setup_data()
        steps = self.trainer.max_epochs * self.trainer.train_dataloader.loader.taken
        return steps if self.trainer.max_steps == -1 else min(steps, self.trainer.max_steps)

    def training_step(self, batch: Iterator[Tensor], batch_idx: int) -> None:
        """Take an optimiser step on each batch of a window."""
        counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        size = self.trainer.log_every_n_steps
        for number, index in enumerate(batch, batch_idx * size):
            self._take_step(index, number)
            self._taken += 1
            counter.increment_ready()
            counter.increment_completed()
            step_schedules(self.schedules, "step", number + 1)
            if self.trainer.global_step % size == 0:
                self.log_window()
            if self.trainer.global_step == self.trainer.max_steps:
                self.resumable = (number + 1) % size == 0  # Lightning counts a part of a window as a whole one
                return

    def on_train_batch_end(self, *args: Any) -> None:
        if self.trainer.is_last_batch:
            step_schedules(self.schedules, "epoch", self.trainer.current_epoch + 1)
        super().on_train_batch_end(*args)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["vaelab"]["steps_per_window"] = self.trainer.log_every_n_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state. Raises UserError for another size of windows, because Lightning counts windows."""
        super().on_load_checkpoint(checkpoint)
        size = self._restored["steps_per_window"]
        if size != self.trainer.log_every_n_steps:
            raise UserError(f"trainer=gpu_fast cannot change the size of windows: set trainer.log_every_n_steps={size}")

    def _take_step(self, index: Tensor, batch_idx: int) -> None:
        full = len(index) == self.trainer.train_dataloader.loader.batch_size
        if index.device.type not in CAPTURES:
            self._optimize(index, batch_idx)
        elif self._taken < WARM_UP or not full:
            with _side_stream():
                self._optimize(index, batch_idx)
        else:
            self._replay(index, batch_idx)

    def _optimize(self, index: Tensor, batch_idx: int) -> None:
        """Take one optimiser step on the images of an index (B,): batch, loss, gradient, update."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        batch = self.trainer.train_dataloader.loader.gather(index)
        loss = super().training_step(self.trainer.precision_plugin.convert_input(batch), batch_idx)
        self.on_before_zero_grad(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss["loss"] if isinstance(loss, dict) else loss)
        self.on_before_optimizer_step(optimizer)
        optimizer.step()
        self.step += 1
        torch.clear_autocast_cache()  # it holds the old weights in bfloat16

    def _replay(self, index: Tensor, batch_idx: int) -> None:
        """Run `_optimize` as a CUDA graph with the learning rates of this step. The first call captures the graph."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        groups = optimizer.param_groups
        settings = [{key: group[key] for key in group if key not in ("params", "lr")} for group in groups]
        if self._graph is None:
            self._captured_settings = settings
            self._capture(index, batch_idx, groups)
        if settings != self._captured_settings:
            raise UserError("the scheduler changes more than learning rates, which needs trainer=gpu")
        self._index.copy_(index)
        for rate, group in zip(self._rates, groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()

    def _capture(self, index: Tensor, batch_idx: int, groups: list[dict[str, Any]]) -> None:
        """Record one step without running it. The graph reads the index (B,) and the learning rates from tensors."""
        self._index, before = index.clone(), [dict(group) for group in groups]
        self._rates = [torch.tensor(float(group["lr"]), device=index.device) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.trainer.train_dataloader.loader.noise)
        try:
            with torch.cuda.graph(graph):
                self._optimize(self._index, batch_idx)
        except Exception as error:
            what = f"{type(self.model).__name__} with {type(self.objective).__name__}"
            why = str(error.__context__ or error).strip().splitlines()[0]  # the end of the capture fails too
            raise UserError(f"a step of {what} cannot be captured as a CUDA graph, use trainer=gpu: {why}") from error
        finally:
            for group, settings in zip(groups, before, strict=True):
                group |= settings
        self._graph = graph


def _has(callback: Callback, hooks: Iterable[str]) -> bool:
    """Whether a callback defines one of the hooks."""
    return any(hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook) for hook in hooks)


@contextlib.contextmanager
def _side_stream() -> Iterator[None]:
    """Run the warm-up steps on a side stream, which a later capture requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
