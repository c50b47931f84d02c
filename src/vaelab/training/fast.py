"""Optimisation steps without Lightning's loop around each: one CUDA graph on a GPU, compiled if asked for."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch._functorch.config as functorch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from vaelab import checks
from vaelab.training.callbacks import BestCheckpoint, LastCheckpoint, Progress
from vaelab.training.module import VAEModule
from vaelab.training.totals import summed

log = logging.getLogger(__name__)

# What a step may be watched or changed by
CALLBACKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward",
             "on_after_backward", "on_before_optimizer_step")  # fmt: skip
MODULE = (*CALLBACKS, "training_step", "backward", "optimizer_step", "optimizer_zero_grad")
PATIENT = (BestCheckpoint, LastCheckpoint, Progress, LearningRateMonitor)  # act on steps that Lightning takes alone


class FastTrainer(L.Trainer):
    """A Trainer that takes the steps between two points of the training curves itself, and the last as Lightning does.

    The run is the same: noise, binarisation, schedules, clipping, curves, checkpoints, resuming. With `compile`, torch
    compiles model and objective, which takes a while. With `graph`, on a GPU, a step from the choice of images to the
    optimiser is one CUDA graph, and nothing waits for it until the epoch ends; ValueError if it cannot be captured.

    Lightning takes every step where a callback or module of one's own watches or changes it, a profiler measures it or
    validation comes in between, in several processes, with accumulated gradients, and in float16, whose scale depends
    on what it finds.
    """

    def __init__(self, *, compile: bool = False, graph: bool = False, **settings: Any) -> None:
        checks.one_of((True, False), compile=compile, graph=graph)
        super().__init__(**settings)
        loop = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = _FastLoop(self, loop.min_steps, loop.max_steps, compile, graph)


class _FastLoop(_TrainingEpochLoop):
    trainer: Any

    def __init__(self, trainer: L.Trainer, min_steps: int | None, max_steps: int, compile: bool, graph: bool) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._compile, self._wants_graph = compile, graph
        self._slow = 3  # steps of Lightning's, in which torch allocates what a graph must find
        self._score: Any = None  # (batch, step) -> mean loss, sums of the terms, their names; compiled or not
        self._names: tuple[str, ...] = ()
        self._graph: Any = None

    def advance(self, data_fetcher: Any) -> None:
        """Take the steps before the next that others have to see, and let Lightning take that."""
        trainer, progress = self.trainer, self.batch_progress.current
        if self._slow > 0:
            self._slow -= 1
            with _side_stream() if self._captures else contextlib.nullcontext():
                super().advance(data_fetcher)
            if self._slow == 0 and self._wants_graph and not self._captures:
                log.info("steps    without a CUDA graph, which needs a GPU")
            if self._slow == 0 and (why := self._watched()):
                self._slow = -1
                log.info("steps    one by one through Lightning%s: %s", ", not compiled" * self._compile, why)
            return
        if self._slow < 0 or trainer.accumulate_grad_batches > 1:  # which a callback can change
            return super().advance(data_fetcher)
        trainer.lightning_module.curves.reads_within_epochs = not self._captures
        every, step = trainer.log_every_n_steps or 1, self.global_step
        ends = [every - step % every, trainer.num_training_batches - progress.ready]
        ends += [self.max_steps - step] if self.max_steps > 0 else []
        for _ in range(min(ends) - 1):
            if any(isinstance(callback, LastCheckpoint) and callback.signalled for callback in trainer.callbacks):
                break
            self._advance_unseen(self._replay if self._captures else self._optimize)
            data_fetcher.fetched += 1
        super().advance(data_fetcher)

    def teardown(self) -> None:
        super().teardown()
        self._slow, self._score, self._graph = 3, None, None  # another fit may be of another module

    def _watched(self) -> str | None:
        """Why Lightning has to take every step, if it has to."""
        trainer, module = self.trainer, self.trainer.lightning_module
        reasons = {
            "several processes": trainer.world_size > 1,
            "accumulated gradients": trainer.accumulate_grad_batches > 1,
            "float16": trainer.precision.startswith("16"),
            "validation within epochs": trainer.val_check_interval != 1.0,
            "a profiler": not isinstance(trainer.profiler, PassThroughProfiler),
            "batches that are not vaelab.data.Loader's": not hasattr(trainer.train_dataloader, "next_index"),
        }
        for reason, holds in reasons.items():
            if holds:
                return reason
        for callback in trainer.callbacks:
            hooks = [hook for hook in CALLBACKS if is_overridden(hook, callback, L.Callback)]
            if hooks and type(callback) not in PATIENT:
                return f"{type(callback).__name__} has {hooks[0]}"
        own = [name for name in MODULE if getattr(type(module), name, None) != getattr(VAEModule, name)]
        return f"{type(module).__name__} has its own {own[0]}" if own else None

    @property
    def _captures(self) -> bool:
        return self._wants_graph and self.trainer.strategy.root_device.type == "cuda"

    def _advance_unseen(self, optimize: Any) -> None:
        """One step, and all that Lightning counts of it."""
        optimizer = self.automatic_optimization.optim_progress.optimizer
        index = self.trainer.train_dataloader.next_index()
        totals, step = self.trainer.lightning_module.curves.totals["train"], self.global_step + 1
        self.batch_progress.increment_ready()
        self.batch_progress.increment_started()
        optimizer.step.increment_ready()
        optimizer.zero_grad.increment_ready()
        optimizer.zero_grad.increment_started()
        totals.add_row(optimize(index), self._names, step, len(index))
        optimizer.zero_grad.increment_completed()
        optimizer.step.increment_completed()
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        self.batch_progress.increment_completed()
        self._batches_that_stepped += 1

    def _optimize(self, index: Tensor) -> Tensor:
        """One step on the images (B,); returns the sums of its terms."""
        trainer, module, optimizer = self.trainer, self.trainer.lightning_module, self.trainer.optimizers[0]
        batch = trainer.precision_plugin.convert_input(trainer.train_dataloader.gather(index))
        with trainer.precision_plugin.train_step_context():
            loss, row, self._names = self._score(batch, module.step) if self._score else self._first_score(batch)
        optimizer.zero_grad()
        loss.backward()
        if trainer.gradient_clip_val:
            value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            module.configure_gradient_clipping(optimizer, value, algorithm)
        optimizer.step()
        module.step += 1
        return row

    def _first_score(self, batch: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Compile model and objective if that was asked for and a compiler is at hand; the first batch's score."""
        module = self.trainer.lightning_module

        def score(batch: Any, step: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
            terms = module.terms(batch, step)
            return terms["loss"].mean(), summed(terms), tuple(terms)

        self._score = score
        if self._compile:
            started = time.perf_counter()
            torch.compiler.reset()  # what an earlier run of a sweep had compiled counts against a limit
            try:
                compiled = torch.compile(score, options={"fallback_random": True})  # the noise of eager torch
                with functorch.patch(force_non_lazy_backward_lowering=True):  # the backward pass is compiled now, too
                    scored = compiled(batch, module.step)
            except Exception as error:  # of the compiler: what it compiles has run before
                why = str(error).strip().splitlines()[0]
                log.warning("not compiled, which is slower and no different: %s", why)
            else:
                log.info("compiled in %.1f s", time.perf_counter() - started)
                self._score = compiled
                return scored
        return score(batch, module.step)

    def _replay(self, index: Tensor) -> Tensor:
        """`_optimize` as a CUDA graph."""
        groups = self.trainer.optimizers[0].param_groups
        if self._score is None:
            with _side_stream():
                return self._optimize(index)
        settings = [{key: group[key] for key in group if key not in ("params", "lr")} for group in groups]
        if self._graph is None:
            self._capture(index, groups)
            self._settings = settings
        if settings != self._settings:
            raise ValueError(
                "the scheduler changes more than learning rates, and a CUDA graph keeps the rest as it was"
            )
        self._index.copy_(index)
        for rate, group in zip(self._rates, groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._row.clone()

    def _capture(self, index: Tensor, groups: list[dict[str, Any]]) -> None:
        """Record one step on `index`, whose learning rates are read from the device; nothing is computed."""
        module, loader = self.trainer.lightning_module, self.trainer.train_dataloader
        self._index, before = index.clone(), [dict(group) for group in groups]
        self._rates = [torch.tensor(float(group["lr"]), device=index.device) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(loader.noise)
        try:
            with torch.cuda.graph(self._graph):
                self._row = self._optimize(self._index)
        except Exception as error:
            what = f"{type(module.model).__name__} with {type(module.objective).__name__}"
            why = str(error.__context__ or error).strip().splitlines()[0]  # ending the capture fails as well
            mend = "use trainer=gpu, or leave out trainer.graph"
            raise ValueError(f"a step of {what} cannot be captured as a CUDA graph, {mend}: {why}") from error
        finally:
            for group, settings in zip(groups, before, strict=True):
                group |= settings


@contextlib.contextmanager
def _side_stream() -> Iterator[None]:
    """Where a step has to be warmed up before it is captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
