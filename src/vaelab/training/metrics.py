"""The metrics of a run: means per image of the objective's terms, which are summed on the device and read rarely."""

import math
from typing import Any

import torch
from torch import Tensor

from vaelab.errors import UserError


class NonFiniteLossError(UserError, ArithmeticError):
    """A term of the loss became NaN or infinite."""


class Sums:
    """The objective's terms of one split, summed over images.

    The sums since the last `read` are on the device; older sums are Python numbers. `add` runs a few small kernels on
    tensors that keep their addresses, so a CUDA graph can contain it. It never waits for the device. Sums in float64 of
    a batch's float32 values have no rounding, so a `read` at any step, such as a checkpoint's, changes no mean.
    """

    def __init__(self) -> None:
        self.window: dict[str, float] = {}  # since the last point of the curves, by term, and "images"
        self.epoch: dict[str, float] = {}  # since the epoch began
        self._names: tuple[str, ...] = ()  # T terms, and "images" as the last
        self._sums = self._row = self._step = torch.zeros(())

    def add(self, terms: dict[str, Tensor], step: Tensor) -> None:
        """Add the terms {name: (B,)} of one batch that was scored after `step` optimiser steps, a tensor ()."""
        values = [term.detach() for term in terms.values()]
        row = torch.stack([*values, torch.ones_like(values[0])]).sum(1)  # (T + 1,)
        if not self._names:
            self._names = (*terms, "images")
            exact = torch.float32 if row.device.type == "mps" else torch.float64  # see the docstring
            self._sums = torch.zeros_like(row, dtype=exact)
            self._row, self._step = torch.zeros_like(row), torch.zeros_like(step)
        finite = self._sums.isfinite().all()  # once a sum is NaN or infinite, it stays so
        torch.where(finite, row, self._row, out=self._row)  # so _row and _step keep the first bad batch
        torch.where(finite, step, self._step, out=self._step)
        self._sums += row

    def read(self) -> None:
        """Move the sums from the device to `window` and `epoch`. This method waits for the device.

        Raises NonFiniteLossError if a term was NaN or infinite. Its text names the first such step and the terms.
        """
        sums = dict(zip(self._names, self._sums.tolist(), strict=True)) if self._names else {}
        if not all(map(math.isfinite, sums.values())):
            *values, images = self._row.tolist()
            terms = ", ".join(f"{name} {value / images:g}" for name, value in zip(self._names, values, strict=False))
            start = "the weights are still those of the start, so a setting of the model or the objective is too large"
            mend = "first try a smaller optimizer.lr" if self._step else start
            raise NonFiniteLossError(
                f"the loss is not a finite number at step {int(self._step) + 1:,} ({terms}); {mend}"
            )
        self._sums.zero_()
        for totals in (self.window, self.epoch):
            totals.update({name: totals.get(name, 0.0) + value for name, value in sums.items()})

    def forget(self) -> None:
        """Drop the tensors on the device. The next `add` makes new ones, perhaps on another device."""
        self._names = ()


class Metrics:
    """The sums of each split, and the latest value of each metric by the name of its curve, such as "train/loss"."""

    def __init__(self) -> None:
        self.sums = {split: Sums() for split in ("train", "val", "test")}
        self.latest: dict[str, float] = {}

    def restart(self) -> None:
        """Drop the sums that an earlier fit, or a tuner's search, has left on the device."""
        self.sums["train"].forget()
        self.sums |= {"val": Sums(), "test": Sums()}

    def add(self, split: str, terms: dict[str, Tensor], step: Tensor) -> None:
        """Add the terms of one batch to a split. See `Sums.add`."""
        self.sums[split].add(terms, step)

    def end_window(self) -> tuple[dict[str, float], float]:
        """The means per training image of this process since the last point of the curves, and the number of images."""
        sums = self.sums["train"]
        sums.read()
        window, sums.window = sums.window, {}
        return self._means("train", window), window.get("images", 0.0)

    def result(self, monitor: str | None) -> float:
        """The metric that a run returns, see `name`."""
        return self.latest[self.name(monitor)]

    def name(self, monitor: str | None) -> str:
        """The name of the monitored metric, otherwise of the loss of training, otherwise of the test."""
        return next(name for name in (monitor, "train/loss", "test/loss") if name in self.latest)

    def epoch(self, split: str, trainer: Any) -> dict[str, float]:
        """The means per image over the epoch so far and over all processes."""
        sums = self.sums[split]
        sums.read()
        values = torch.tensor([*sums.epoch.values()], dtype=torch.float64)
        if trainer.world_size > 1:
            values = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="sum")
        return self._means(split, dict(zip(sums.epoch, values.tolist(), strict=True)))

    def end_epoch(self, split: str, trainer: Any) -> dict[str, float]:
        """The means that `epoch` returns. Afterwards the sums start at zero."""
        means = self.epoch(split, trainer)
        self.sums[split].epoch = {}
        if split != "train":
            self.sums[split] = Sums()  # tensors of torch's inference mode cannot be used outside it
        return means

    def _means(self, split: str, sums: dict[str, float]) -> dict[str, float]:
        images = sums.get("images")
        means = {f"{split}/{name}": value / images for name, value in sums.items() if name != "images" and images}
        self.latest |= means
        return means
