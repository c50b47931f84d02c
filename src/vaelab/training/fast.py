"""Optimisation steps without Lightning's loop around each: one CUDA graph on a GPU, compiled if asked for."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor

from vaelab.training.totals import summed

log = logging.getLogger(__name__)


class FastTrainer(L.Trainer):
    """A Trainer that takes the steps between two points of the training curves itself, and the last as Lightning does.

    The arithmetic is the same: noise, binarisation, schedules, clipping, checkpoints and resuming. Callbacks see the
    batches at multiples of log_every_n_steps and the last of an epoch. On a GPU a step, from the choice of images to
    the optimiser, is one CUDA graph, and nothing waits for it until the epoch ends. With `compile`, torch compiles
    model and objective before, which takes a while. Several processes, accumulated gradients and float16, whose scale
    depends on what it finds, train as with Trainer. Raises ValueError for a step that cannot be captured.
    """

    def __init__(self, *, compile: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        loop = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = _FastLoop(self, loop.min_steps, loop.max_steps, compile)


class _FastLoop(_TrainingEpochLoop):
    trainer: Any

    def __init__(self, trainer: L.Trainer, min_steps: int | None, max_steps: int, compile: bool) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._compile = compile
        self._slow = 3  # steps of Lightning's, in which torch allocates what a graph must find
        self._score: Any = None  # (batch, step) -> terms, the module's or compiled
        self._names: tuple[str, ...] = ()
        self._graph: Any = None

    def advance(self, data_fetcher: Any) -> None:
        """Take the steps before the next that others have to see, and let Lightning take that."""
        trainer, progress = self.trainer, self.batch_progress.current
        if self._slow:
            alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
            self._slow -= alone and not trainer.precision.startswith("16")
            with _side_stream() if self._captures else contextlib.nullcontext():
                return super().advance(data_fetcher)
        trainer.lightning_module.reads_at_epoch_end = self._captures
        every, step = trainer.log_every_n_steps or 1, self.global_step
        ends = [every - step % every, trainer.num_training_batches - progress.ready]
        ends += [self.max_steps - step] if self.max_steps > 0 else []
        for _ in range(min(ends) - 1):
            self._advance_unseen(self._replay if self._captures else self._optimize)
            data_fetcher.fetched += 1
        return super().advance(data_fetcher)

    @property
    def _captures(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    def _advance_unseen(self, optimize: Any) -> None:
        """One step, and all that Lightning counts of it."""
        optimizer = self.automatic_optimization.optim_progress.optimizer
        index = self.trainer.train_dataloader.next_index()
        totals, step = self.trainer.lightning_module.totals["train"], self.global_step + 1
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
        batch = trainer.train_dataloader.gather(index)
        with trainer.precision_plugin.train_step_context():
            terms = self._score(batch, module.step) if self._score else self._first_score(batch)
        self._names = tuple(terms)
        optimizer.zero_grad()
        terms["loss"].mean().backward()
        if trainer.gradient_clip_val:
            value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            module.configure_gradient_clipping(optimizer, value, algorithm)
        optimizer.step()
        module.step += 1
        return summed(terms)

    def _first_score(self, batch: Any) -> dict[str, Tensor]:
        """Compile model and objective if that was asked for and a compiler is at hand; the terms of the first batch."""
        module = self.trainer.lightning_module
        self._score = module.terms
        if self._compile:
            started = time.perf_counter()
            compiled = torch.compile(module.terms, options={"fallback_random": True})  # the noise of eager torch
            try:
                terms = compiled(batch, module.step)
            except Exception as error:  # of the compiler: what it compiles has run before
                why = str(error).strip().splitlines()[0]
                log.warning("not compiled, which is slower and no different: %s", why)
            else:
                log.info("compiled in %.1f s", time.perf_counter() - started)
                self._score = compiled
                return terms
        return self._score(batch, module.step)

    def _replay(self, index: Tensor) -> Tensor:
        """`_optimize` as a CUDA graph."""
        groups = self.trainer.optimizers[0].param_groups
        if self._score is None:
            with _side_stream():
                return self._optimize(index)
        if self._graph is None:
            self._capture(index, groups)
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
        except RuntimeError as error:
            what = f"{type(module.model).__name__} with {type(module.objective).__name__}"
            why = str(error).strip().splitlines()[0]
            raise ValueError(f"a step of {what} cannot be captured as a CUDA graph, use trainer=gpu: {why}") from error
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
