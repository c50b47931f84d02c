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
        self.add_row(summed(terms), tuple(terms), step, len(terms["loss"]))

    def add_row(self, row: Tensor, names: tuple[str, ...], step: int, images: int) -> None:
        """Take in what `summed` made of one step's terms."""
        self._names = names
        self._rows.append(row)
        self._steps.append((step, images))

    def read(self, every: int | None = None) -> list[tuple[int, dict[str, float]]]:
        """(last step, means per image) of the steps since the last read, which are added to `sums`.

        One such window, or with `every` one that ends at each multiple of so many steps, and one of the rest.
        NonFiniteLossError names the first step with a term that is NaN or infinite, and all of its terms.
        """
        windows: list[tuple[int, dict[str, float]]] = []
        sums, images = dict.fromkeys(self._names, 0.0), 0
        rows = torch.stack(self._rows).tolist() if self._rows else []
        for i, ((step, count), row) in enumerate(zip(self._steps, rows, strict=True)):
            if not all(map(math.isfinite, row)):
                terms = ", ".join(f"{name} {value / count:g}" for name, value in zip(self._names, row, strict=True))
                raise NonFiniteLossError(f"the loss is no finite number at step {step:,} ({terms})")
            for name, value in zip(self._names, row, strict=True):
                sums[name] += value
                self.sums[name] = self.sums.get(name, 0.0) + value
            images, self.images = images + count, self.images + count
            if i == len(rows) - 1 or (every and step % every == 0 and self._steps[i + 1][0] > step):
                windows.append((step, {name: value / images for name, value in sums.items()}))
                sums, images = dict.fromkeys(self._names, 0.0), 0
        self._rows, self._steps = [], []
        return windows

    def clear(self) -> None:
        """Start anew."""
        self.__init__()  # type: ignore[misc]


def summed(terms: dict[str, Tensor]) -> Tensor:
    """{name: (B,)} -> (terms,), sums over images."""
    return torch.stack([term.detach() for term in terms.values()]).sum(1)
