"""The figures of a run: the points of its curves, the means of its epochs, and the latest of each."""

import time
from typing import Any

import torch

from vaelab.training.totals import NonFiniteLossError, Totals


class Curves:
    """Sums the objective's terms by split, and sends their means per image to the trainer's loggers.

    `latest` holds the last value of each figure, "train/loss" and so on. NonFiniteLossError where a term is no finite
    number names the first such step and the last good checkpoint.
    """

    def __init__(self) -> None:
        self.totals = {"train": Totals(), "val": Totals(), "test": Totals()}
        self.latest: dict[str, float] = {}
        self.reads_within_epochs = True  # and not at their ends alone
        self._clock = 0.0

    def begin(self) -> None:
        """An epoch's first step is next."""
        self._clock = time.perf_counter()

    def step_ended(self, trainer: Any) -> None:
        due = trainer.global_step % trainer.log_every_n_steps == 0 and self.reads_within_epochs
        if due or trainer.is_last_batch:
            self.read(trainer)

    def read(self, trainer: Any) -> None:
        """Log the training steps since the last time; the only place where training waits for the device."""
        totals = self.totals["train"]
        before = totals.images
        try:
            windows = totals.read(trainer.log_every_n_steps)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error}; {last_good(trainer)}") from None
        now = time.perf_counter()
        rate = (totals.images - before) * trainer.world_size / (now - self._clock)
        self._clock = now if windows else self._clock
        for step, means in windows:
            figures = {f"train/{name}": value for name, value in means.items()} | {"train/images_per_second": rate}
            self.record(trainer, figures, step)

    def epoch_ended(self, trainer: Any, split: str) -> dict[str, float]:
        """The epoch's means, {"val/loss": ...}, of which those of evaluations go to the loggers."""
        self.totals[split].read()
        means = self.means(trainer, split)
        self.latest |= means
        # the training curve has its points already, and the best weights' figures belong to no step of the other
        if split != "train" and trainer.state.fn != "validate":
            self.record(trainer, means)
        self.totals[split].clear()
        return means

    def record(self, trainer: Any, figures: dict[str, float], step: int | None = None) -> None:
        """Keep the latest of each figure, and send it to the loggers."""
        self.latest |= figures
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step if step is None else step)

    def means(self, trainer: Any, split: str) -> dict[str, float]:
        """Means per image over all ranks, of what was read of the epoch under way."""
        totals = self.totals[split]
        sums = torch.tensor([*totals.sums.values(), totals.images], dtype=torch.float64)
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum")
        *values, images = sums.tolist()
        return {f"{split}/{name}": value / images for name, value in zip(totals.sums, values, strict=True)}


def last_good(trainer: Any) -> str:
    """Where to go on from after a loss that is no finite number."""
    paths = [callback.best_model_path for callback in trainer.checkpoint_callbacks]
    good = f"the last good checkpoint is {paths[-1]}" if any(paths) else "no checkpoint was written before it"
    return f"{good}; a smaller optimizer.lr is the first thing to try"
