"""The weights of M models in one stack (M, ...), and the training step of all models in one pass."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from vaelab.errors import UserError
from vaelab.files import write_plain
from vaelab.training import VAEModule
from vaelab.training.module import Batch


class _Terms:
    """A stand-in for Metrics during a training step. It keeps the terms that the step adds."""

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}

    def add(self, split: str, terms: dict[str, Tensor], step: Tensor) -> None:
        self.terms |= terms


class Member(VAEModule):
    """One of the models that are trained together. Each has its own run; they share batches and noise."""

    folder: Path
    own_loggers: list[Any]
    own_optimizer: Optimizer
    own_schedules: Sequence[LRSchedulerConfig] = ()
    seed: int
    stream: Tensor  # torch's random state after the model was built
    best = float("inf")  # the lowest monitored metric so far
    best_step = 0  # the optimiser step of weights.pt
    error: Exception | None = None  # the exception that stopped this member

    def forward(self, batch: Batch, step: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `training_step` after `step` optimiser steps, and its terms (B,). None means validation."""
        if step is None:
            terms = self.terms(batch, None)
            return terms["loss"].mean(), terms
        metrics, self.metrics = self.metrics, _Terms()  # type: ignore[assignment]
        try:
            self.step = step
            loss = self.training_step(batch, 0)
            return loss["loss"] if isinstance(loss, dict) else loss, self.metrics.terms  # type: ignore[attr-defined]
        finally:
            self.metrics = metrics

    @property
    def loggers(self) -> list[Any]:
        return self.own_loggers

    @property
    def schedules(self) -> Sequence[LRSchedulerConfig]:
        return self.own_schedules

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.own_optimizer.param_groups

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because Lightning's table of metrics has room for one model."""

    def keep_best(self) -> None:
        """Write weights.pt if the validation that has just ended was the best so far."""
        if self.trainer.sanity_checking:
            return
        score = self.metrics.latest[str(self.monitor)]
        if score < self.best:
            self.best, self.best_step = score, self.trainer.global_step
            write_plain(self.folder / "weights.pt", {name: w.clone() for name, w in self.model.state_dict().items()})


class Stack:
    """The training step of M modules in one pass. Their weights and buffers, with hyper-parameters, are stacked.

    Raises UserError if two modules differ in the shape of a weight.
    """

    def __init__(self, modules: list[Member]) -> None:
        shapes = [{name: tuple(part.shape) for name, part in state(module)} for module in modules]
        for other in shapes[1:]:
            for name in shapes[0] | other:
                if shapes[0].get(name) != other.get(name):
                    raise UserError(f"{name} has shapes {shapes[0].get(name)} and {other.get(name)}, which must agree")
        self.module = modules[0]
        self.weights, self.buffers = stack_module_state(modules)
        # Buffers that are not saved are constants. If all members have the same value, it is not stacked
        saved = modules[0].state_dict()
        same = {name for name, rows in self.buffers.items() if name not in saved and bool((rows == rows[0]).all())}
        self.constants = {name: self.buffers.pop(name)[0] for name in same}

    def __call__(self, batch: Batch, step: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses (M,) and the terms {name: (M, B)} of all modules, as `Member.forward` defines them."""

        def step_of(weights: Any, buffers: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return functional_call(self.module, (weights, buffers, self.constants), (batch, step))

        return vmap(step_of, randomness="same")(self.weights, self.buffers)

    def share(self, modules: list[Member]) -> None:
        """Make the weights and buffers of each module views of the stack."""
        for i, module in enumerate(modules):
            for name, part in state(module):
                if name not in self.constants:
                    part.data = (self.weights if name in self.weights else self.buffers)[name][i].detach()

    def split_gradients(self, modules: list[Member]) -> None:
        """Give each module its part of the gradient."""
        parts = {name: weight.grad.unbind() for name, weight in self.weights.items() if weight.grad is not None}
        for i, module in enumerate(modules):
            for name, weight in module.named_parameters():
                weight.grad = parts[name][i] if name in parts else None


def state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
