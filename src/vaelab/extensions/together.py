"""M models trained as one batched model.

    loss = sum_i mean_b loss_i(x_b)

Each model i gets the gradient that it would get alone. The weights and hyper-parameters of all models lie in one stack
(M, ...). The weights of each model are views of it, so a model has the optimiser and the schedule of a single run. All
models share the batches and the noise of the first model's run.
"""

import copy
import logging
import traceback
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vaelab.errors import UserError
from vaelab.extensions import configured, step_schedules
from vaelab.extensions.stack import Member, Stack, state
from vaelab.noise import fixed_noise
from vaelab.training import NonFiniteLossError
from vaelab.training.module import Batch

NOT_CALLED = (  # hooks of the members
    *("backward", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad"),
    *("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step"),
)
log = logging.getLogger("vaelab.train")


class _Optimizers(Optimizer):
    """The one optimiser that Lightning steps. It steps the optimisers of all members."""

    def __init__(self, stack: Stack, step: Callable[[], None]) -> None:
        super().__init__([*stack.weights.values()], {})
        self._step = step

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        self._step()
        return loss


class Together(L.LightningModule):
    """Trains members that differ only in numbers or seeds. Each keeps its own metrics, curves and weights.

    If the loss of a member is not a finite number, the member stops with its `error` and the others continue. Raises
    UserError for parts that cannot be computed for several models at once, such as path gradients.
    """

    members: Any  # nn.ModuleList of Member
    trainer: Any
    step: Tensor

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        edited = [name for name in NOT_CALLED if getattr(Member, name) is not getattr(L.LightningModule, name)]
        if edited:
            raise UserError(f"VAEModule.{edited[0]} is not called for each of the runs")
        _rehearse(members)
        self.members = nn.ModuleList(members)
        self.register_buffer("step", torch.zeros(()), persistent=False)

    @property
    def running(self) -> list[Any]:
        return [member for member in self.members if member.error is None]

    @property
    def metrics(self) -> Any:
        """The metrics of the first running member, for the progress bar."""
        return self.running[0].metrics

    @property
    def measured(self) -> dict[str, float]:
        return self.running[0].measured

    @property
    def total_steps(self) -> float:
        return self.running[0].total_steps

    def configure_optimizers(self) -> Optimizer:
        members: list[Any] = [*self.members]
        self.stack = Stack(members)
        self.stack.share(members)
        for member in members:
            member.trainer = self.trainer
            member.own_optimizer, member.own_schedules = configured(member.configure_optimizers())
        return _Optimizers(self.stack, self._step_members)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses, terms = self.stack(batch, self.step)
        self._add("train", terms)
        return losses.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with fixed_noise(self.device, batch_idx):  # as VAEModule's validation does
            self._add("val", self.stack(batch, None)[1])

    def _add(self, split: str, terms: dict[str, Tensor]) -> None:
        each = {name: term.detach().unbind() for name, term in terms.items()}
        for i, member in enumerate(self.members):
            member.metrics.add(split, {name: term[i] for name, term in each.items()}, self.step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.stack.split_gradients([*self.members])

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        for member in self.members:
            self.clip_gradients(member.own_optimizer, *args, **kwargs)

    def _step_members(self) -> None:
        for member in self.members:
            member.own_optimizer.step()
            step_schedules(member.schedules, "step", self.trainer.fit_loop.batch_idx + 1)

    def on_fit_start(self) -> None:
        for member in reversed(self.members):  # the first is last, because training continues with its random state
            torch.manual_seed(member.seed)
            torch.set_rng_state(member.stream)
            member.on_fit_start()

    def on_train_epoch_start(self) -> None:
        self._tell("on_train_epoch_start")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.step.fill_(self.trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.is_last_batch:
            for member in self.members:
                step_schedules(member.schedules, "epoch", self.trainer.current_epoch + 1)
        self._tell("on_train_batch_end")

    def on_validation_start(self) -> None:
        self._tell("on_validation_start")

    def on_validation_batch_end(self, *args: Any) -> None:
        self._tell("on_validation_batch_end", *args)

    def on_validation_epoch_end(self) -> None:
        self._tell("keep_best")

    def on_validation_end(self) -> None:
        self._tell("on_validation_end")

    def on_train_epoch_end(self) -> None:
        self._tell("on_train_epoch_end")

    def _tell(self, hook: str, *args: Any) -> None:
        """Call a method of each running member. A loss that is not a finite number stops its member."""
        for member in self.running:
            try:
                getattr(member, hook)(*args)
            except NonFiniteLossError as error:
                member.error = error
                log.error("%s: %s; the other runs continue", member.folder.name, error)
        if not self.running:
            raise NonFiniteLossError("the loss of every member is not a finite number")

    def part(self) -> None:
        """Copy each member's weights out of the stack, because torch saves a view together with the whole stack."""
        for member in self.members:
            for _, part in state(member):
                part.data = part.data.clone()


def _rehearse(members: list[Member]) -> None:
    """Score two noise images with copies, alone and together. Raises UserError unless terms and gradients agree."""
    copies, alone = copy.deepcopy(members), copy.deepcopy(members)
    model = members[0].model
    cpu = torch.device("cpu")
    with fixed_noise(cpu):
        batch = (torch.rand(2, *model.image_shape) < 0.5).float(), torch.zeros(2, dtype=torch.long)
    stack = Stack(copies)
    for training, step in ((True, torch.ones(())), (False, None)):  # at the start and at the end of schedules
        for module in (*copies, *alone):
            module.train(training)
        with torch.set_grad_enabled(training):
            try:
                with fixed_noise(cpu):
                    losses, terms = stack(batch, step)
                    if training:
                        losses.sum().backward()
            except Exception as error:
                raise UserError(_refusal(error)) from error
            for i, module in enumerate(alone):
                with fixed_noise(cpu):
                    loss, own = module(batch, step)
                    if training:
                        loss.backward()
                _compare(stack, i, module, {**terms, "loss of the step": losses}, {**own, "loss of the step": loss})


def _refusal(error: Exception) -> str:
    """The sentence that names the part that cannot be computed for several models at once, and the reason."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [
        f for f in frames if str(f.f_globals.get("__name__")).startswith("vaelab.") and f.f_globals is not globals()
    ]
    where = ours[-1].f_code.co_qualname if ours else "the model"
    why = " ".join(str(error).split()).split(". ")[0]
    return f"{where} cannot be computed for several models at once ({why})"


def _compare(stack: Stack, i: int, module: Member, terms: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise UserError unless the terms, gradients and buffers of member i are those of the module alone."""
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
            why = "a number that is not a buffer, or a gradient inside the step, cannot be batched"
            raise UserError(f"{name} would differ from that of a single run: {why}")
