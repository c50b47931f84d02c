"""M models as one: loss = sum_i mean_b loss_i(x_b), so that each model gets the gradient that it would get alone.

Weights lie in one stack, (M, ...), of which each model's own are views: its optimiser, schedule, pictures and
checkpoints are those of a run by itself. Batches and noise are shared: every draw is that of the first model's run.
"""

import copy
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vaelab.files import read_plain, write_plain
from vaelab.training.callbacks import BestCheckpoint
from vaelab.training.module import Batch, VAEModule, seed_noise
from vaelab.training.totals import NonFiniteLossError

log = logging.getLogger(__name__)


class Member(VAEModule):
    """One of the models that are trained together: a run of its own in all but the step."""

    forward = VAEModule.terms
    callbacks: list[Any]
    seed: int
    stream: Tensor  # torch's random state once it was built

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's table has room for one model; checkpoints and schedules read `figures`."""


class Seat:
    """The Trainer as one member sees it: folder, loggers, optimiser and checkpoint are its own, all else is shared."""

    def __init__(self, trainer: L.Trainer, member: Member, folder: Path, logger: Any, callbacks: list[Any]) -> None:
        self.trainer, self.member = trainer, member
        self.default_root_dir, self.loggers, self.callbacks = str(folder), [logger], callbacks
        self.checkpoint_callback = BestCheckpoint()
        self.checkpoint_callbacks = [self.checkpoint_callback]
        self.optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[LRSchedulerConfig] = []
        member.trainer, member.callbacks = self, [*callbacks, self.checkpoint_callback]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["trainer"], name)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value) for name, value in self.member.figures.items()}

    def build_optimizer(self) -> None:
        built: Any = self.member.configure_optimizers()
        if isinstance(built, Optimizer):
            self.optimizers = [built]
            return
        self.optimizers, schedule = [built["optimizer"]], built["lr_scheduler"]
        plateau = isinstance(schedule["scheduler"], ReduceLROnPlateau)
        self.lr_scheduler_configs = [LRSchedulerConfig(**schedule, reduce_on_plateau=plateau)]

    def step(self) -> None:
        """Of the optimiser, and of a schedule that counts steps."""
        self.optimizers[0].step()
        for config in self.lr_scheduler_configs:
            if config.interval == "step" and (self.trainer.fit_loop.epoch_loop.batch_idx + 1) % config.frequency == 0:
                self.member.lr_scheduler_step(config.scheduler, None)

    def save_checkpoint(self, path: Any, weights_only: bool | None = None) -> None:
        """A view is saved with all that it is a view of: copies are not."""
        state = {name: weight.clone() for name, weight in self.member.state_dict().items()}
        at = {"epoch": self.trainer.current_epoch, "global_step": self.trainer.global_step}
        checkpoint = {**at, "pytorch-lightning_version": L.__version__, "state_dict": state}
        self.member.on_save_checkpoint(checkpoint)
        self.trainer.strategy.save_checkpoint(checkpoint, path)

    def save_weights(self) -> None:
        """weights.pt, the best so far, of a run that was stopped."""
        best = Path(self.checkpoint_callback.best_model_path)
        if best.is_file():
            state = read_plain(best)["state_dict"]
            weights = {name.removeprefix("model."): w for name, w in state.items() if name.startswith("model.")}
            write_plain(Path(self.default_root_dir) / "weights.pt", weights)

    def measure(self, data: Any) -> float:
        """Validate and test the best weights, as after a run by itself; returns its monitored figure."""
        best, monitor = self.checkpoint_callback.best_model_path, self.member.monitor
        self.trainer.loggers = self.loggers
        if monitor:
            self.trainer.validate(self.member, data, ckpt_path=best, verbose=False)
        self.trainer.test(self.member, data, ckpt_path=best, verbose=False)
        self.member.trainer = self
        return self.member.best_figure


class Stack:
    """The terms of M modules of one build in one pass: their weights and the numbers in which they differ, stacked."""

    def __init__(self, modules: list[Member]) -> None:
        shapes = [{name: tuple(part.shape) for name, part in _state(module)} for module in modules]
        for other in shapes[1:]:
            for name in shapes[0] | other:
                if shapes[0].get(name) != other.get(name):
                    raise ValueError(f"{name} is {shapes[0].get(name)} and {other.get(name)}, which makes no stack")
        self.module = modules[0]
        self.weights, self.buffers = stack_module_state(modules)
        kept = modules[0].state_dict()  # what is not kept never changes, and draws from p(z) need it as it is
        same = {name for name, rows in self.buffers.items() if name not in kept and bool((rows == rows[0]).all())}
        self.constants = {name: self.buffers.pop(name)[0] for name in same}
        every = [[*_numbers(module.model), *_numbers(module.objective)] for module in modules]
        if len({tuple(key for _, key in numbers) for numbers in every}) > 1:
            raise ValueError("a number that switches a part off in one of them is set in another")
        rows = [[holder[key] for holder, key in numbers] for numbers in zip(*every, strict=True)]
        differ = [place for place, row in enumerate(rows) if len(set(row)) > 1]
        device = next(iter(self.weights.values())).device
        self.places = [every[0][place] for place in differ]
        self.numbers = [torch.tensor(rows[place], dtype=torch.float32, device=device) for place in differ]  # (M,) each

    def __call__(self, batch: Batch, step: Tensor | None) -> dict[str, Tensor]:
        """{"loss": (M, B), ...}."""

        def terms(weights: Any, buffers: Any, numbers: list[Tensor]) -> dict[str, Tensor]:
            before = [holder[key] for holder, key in self.places]
            try:
                self._set(numbers)
                return functional_call(self.module, (weights, buffers, self.constants), (batch, step))
            finally:
                self._set(before)

        return vmap(terms, randomness="same")(self.weights, self.buffers, self.numbers)

    def _set(self, numbers: list[Any]) -> None:
        for (holder, key), number in zip(self.places, numbers, strict=True):
            holder[key] = number

    def share(self, modules: list[Member]) -> None:
        """Make the weights and buffers of each module views of the stack."""
        for i, module in enumerate(modules):
            for name, part in _state(module):
                if name not in self.constants:
                    part.data = (self.weights if name in self.weights else self.buffers)[name][i].detach()


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _numbers(part: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of each number that stands in a module, its schedules, lists and tables: holder[key]."""
    holder: Any = part if isinstance(part, dict | list) else vars(part)
    for key, value in enumerate(part) if isinstance(part, list) else holder.items():
        if type(value) in (int, float):
            yield holder, key
        elif isinstance(value, nn.Module | dict | list) or type(value).__module__.startswith("vaelab."):
            yield from _numbers(value)


class _Optimizers(Optimizer):
    """The members' optimisers as one: what Lightning calls."""

    def __init__(self, stack: Stack, step: Callable[[], None]) -> None:
        super().__init__([*stack.weights.values()], {})
        self._step = step

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        self._step()
        return loss


class Together(L.LightningModule):
    """Trains members that differ in numbers or seeds alone, as one; each keeps the record of its own run.

    A member whose loss is no finite number stops, and `failed` keeps why; the others go on. Raises ValueError for
    parts that cannot be computed for several models at once, such as path gradients.
    """

    trainer: Any

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        _rehearse(members)
        self.members = nn.ModuleList(members)
        self.running = list(enumerate(members))
        self.failed: dict[int, Exception] = {}
        self._steps = torch.zeros(())  # optimiser steps so far, on the device

    @property
    def figures(self) -> dict[str, float]:
        """Means over the members that go on, for the progress bar."""
        each = [member.figures for _, member in self.running]
        return {name: sum(figures[name] for figures in each) / len(each) for name in (each[0] if each else {})}

    def configure_optimizers(self) -> Optimizer:
        members = [member for _, member in self.running]
        self.stack = Stack(members)
        self.stack.share(members)
        for member in members:
            member.trainer.build_optimizer()
        self._steps = torch.zeros((), device=self.device)
        return _Optimizers(self.stack, self._step_members)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.stack(batch, self._steps)
        self._add("train", terms, self.trainer.global_step + 1)
        return terms["loss"].mean(1).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """At the noise of VAEModule.validation_step."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            seed_noise(self.device, batch_idx)
            self._add("val", self.stack(batch, None), self.trainer.global_step)

    def _add(self, split: str, terms: dict[str, Tensor], step: int) -> None:
        each = {name: term.detach().unbind() for name, term in terms.items()}
        for i, member in self.running:
            member.curves.totals[split].add({name: term[i] for name, term in each.items()}, step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Hand each member its part of the gradient."""
        parts = {name: weight.grad.unbind() for name, weight in self.stack.weights.items() if weight.grad is not None}
        for i, member in self.running:
            for name, weight in member.named_parameters():
                weight.grad = parts[name][i] if name in parts else None

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        for _, member in self.running:
            self.clip_gradients(member.trainer.optimizers[0], *args, **kwargs)

    def _step_members(self) -> None:
        for _, member in self.running:
            member.trainer.step()
        self._steps += 1

    def on_fit_start(self) -> None:
        for _, member in reversed(self.running):  # the first member last: the random stream goes on from there
            torch.manual_seed(member.seed)
            torch.set_rng_state(member.stream)
            member.on_fit_start()
            for callback in member.callbacks:
                callback.setup(member.trainer, member, "fit")

    def on_train_start(self) -> None:
        self._tell("on_train_start")

    def on_train_epoch_start(self) -> None:
        self._tell("on_train_epoch_start")

    def on_train_batch_start(self, *args: Any) -> None:
        self._tell("on_train_batch_start", *args)

    def on_train_batch_end(self, *args: Any) -> None:
        self._tell("on_train_batch_end", *args)

    def on_validation_epoch_end(self) -> None:
        self._tell("on_validation_epoch_end")

    def on_train_epoch_end(self) -> None:
        self._tell("on_train_epoch_end")

    def on_train_end(self) -> None:
        self.trainer.strategy.checkpoint_io.teardown()

    def _tell(self, hook: str, *args: Any) -> None:
        """Pass a hook on to each member and its callbacks, its checkpoint last."""
        for i, member in self.running[:]:
            try:
                for part in (*member.callbacks[:-1], member, member.callbacks[-1]):
                    getattr(part, hook)(*(() if part is member else (member.trainer, member)), *args)
            except NonFiniteLossError as error:
                self.failed[i] = error
                self.running.remove((i, member))
                log.error("%s: %s; the others go on", Path(member.trainer.default_root_dir).name, error)
        if not self.running:
            raise NonFiniteLossError("the loss of every member is no finite number")

    def part(self) -> None:
        """Make the members' weights their own again: a view is saved with all that it is a view of."""
        for member in self.members:
            for _, part in _state(member):
                part.data = part.data.clone()


def _rehearse(members: list[Member]) -> None:
    """Score two images of noise on copies, each alone and all together: ValueError unless terms and gradients agree."""
    copies, alone = copy.deepcopy(members), copy.deepcopy(members)
    model = members[0].model
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        x = (torch.rand(2, *model.image_shape) < 0.5).float()
        batch = x, torch.zeros(2, dtype=torch.long)
        stack = Stack(copies)
        for training, step in ((True, torch.ones(())), (False, None)):  # of a schedule's first steps and its end
            for module in (*copies, *alone):
                module.train(training)
            with torch.set_grad_enabled(training):
                torch.manual_seed(0)
                try:
                    terms = stack(batch, step)
                    if training:
                        terms["loss"].mean(1).sum().backward()
                except Exception as error:
                    raise ValueError(_refusal(error)) from error
                for i, module in enumerate(alone):
                    torch.manual_seed(0)
                    own = module(batch, step)
                    if training:
                        own["loss"].mean().backward()
                    _compare(stack, i, module, terms, own)


def _refusal(error: Exception) -> str:
    """Which part of the package could not be computed for several models at once, and why."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [
        f for f in frames if str(f.f_globals.get("__name__")).startswith("vaelab.") and f.f_globals is not globals()
    ]
    where = ours[-1].f_code.co_qualname if ours else "the model"
    why = " ".join(str(error).split()).split(". ")[0]
    return f"{where} cannot be computed for several models at once ({why})"


def _compare(stack: Stack, i: int, module: Member, terms: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise ValueError unless the terms, gradients and buffers of member i are those of the module by itself."""
    pairs = [(f"the {name}", term[i], own[name]) for name, term in terms.items()]
    for name, weight in module.named_parameters():
        grads = stack.weights[name].grad
        grad, wanted = (
            torch.zeros_like(weight) if g is None else g for g in (None if grads is None else grads[i], weight.grad)
        )
        pairs.append((f"the gradient of {name}", grad, wanted))
    pairs += [
        (name, stack.buffers[name][i], buffer) for name, buffer in module.named_buffers() if name in stack.buffers
    ]
    for name, got, wanted in pairs:
        got, wanted = got.detach().float(), wanted.detach().float()
        if not torch.allclose(got, wanted, rtol=1e-3, atol=1e-4 * (1 + wanted.abs().max().item()), equal_nan=True):
            why = "a gradient that is taken inside the step, such as a path gradient, does not reach it"
            raise ValueError(f"{name} would not be that of a run by itself: {why}")
