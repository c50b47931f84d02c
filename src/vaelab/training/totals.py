"""Sums of an objective's terms: kept on the device step by step, read rarely."""

import math

import torch
from torch import Tensor


class NonFiniteLossError(ArithmeticError):
    """A term of the loss became NaN or infinite."""


class Totals:
    """The terms of an objective, summed over images.

    `add` costs two small kernels and never waits for the device; `read` copies all steps since the last read at once.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.images = 0
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []  # (terms,) each, on the device
        self._steps: list[tuple[int, int]] = []  # number of the step and its images

    def add(self, terms: dict[str, Tensor], step: int) -> None:
        """Take in one step's terms, one value per image: {name: (B,)}."""
        self._names = tuple(terms)
        self._rows.append(torch.stack([term.detach() for term in terms.values()]).sum(1))
        self._steps.append((step, len(terms["loss"])))

    def read(self) -> dict[str, float]:
        """Means per image over the steps since the last read, which are added to `sums`.

        NonFiniteLossError names the first step with a term that is NaN or infinite, and all of its terms.
        """
        if not self._rows:
            return {}
        images, window = sum(count for _, count in self._steps), dict.fromkeys(self._names, 0.0)
        for (step, count), row in zip(self._steps, torch.stack(self._rows).tolist(), strict=True):
            if not all(map(math.isfinite, row)):
                terms = ", ".join(f"{name} {value / count:g}" for name, value in zip(self._names, row, strict=True))
                raise NonFiniteLossError(f"the loss is no finite number at step {step:,} ({terms})")
            for name, value in zip(self._names, row, strict=True):
                window[name] += value
                self.sums[name] = self.sums.get(name, 0.0) + value
        self._rows, self._steps, self.images = [], [], self.images + images
        return {name: value / images for name, value in window.items()}

    def clear(self) -> None:
        """Start anew."""
        self.__init__()  # type: ignore[misc]
