"""The curves of a run, from metrics.csv or from its event files, and their mean and spread over seeds."""

import csv
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vaelab.errors import UserError
from vaelab.files import read_text
from vaelab.pictures.files import read_events

Curve = dict[int, float]  # step -> value

MOST_CSV = 10**8  # bytes
LARGEST = 1e100  # a value of a curve is smaller
NAME = re.compile(r"(train|val)/[A-Za-z0-9_.-]{1,50}")
FIRST = ("loss", "elbo", "bound", "rate", "distortion")  # the order of the metrics; all others come after them


class Band(NamedTuple):
    """The mean and the standard deviation of several curves, at the steps that all of them have."""

    steps: list[int]
    mean: list[float]
    spread: list[float]  # the standard deviation with N - 1; zeros for a single curve


def read_curves(folder: Path) -> dict[str, Curve]:
    """The curves of training and validation by name, such as "val/loss", from metrics.csv if the run has one.

    If a step has several values, the last one counts. Values that are not finite are left out. Raises UserError for a
    file that cannot be read.
    """
    path = folder / "metrics.csv"
    return _from_table(path) if path.is_file() else _from_events(folder)


def _from_table(path: Path) -> dict[str, Curve]:
    """The curves of a table with a column `step`, one column for each curve, and cells that may be empty."""
    curves: dict[str, Curve] = {}
    text = read_text(path, MOST_CSV)
    try:
        for row in csv.DictReader(text.splitlines()):
            for name, cell in row.items():
                if cell and NAME.fullmatch(str(name)):
                    _add(curves, name, int(row["step"]), float(cell))
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a table of metrics by step: {error}") from error
    return curves


def _from_events(folder: Path) -> dict[str, Curve]:
    """The curves in the event files of TensorBoard."""
    curves: dict[str, Curve] = {}
    for name, events in read_events(folder, "scalars").items():
        for step, event in events.items() if NAME.fullmatch(name) else ():
            _add(curves, name, step, event.value)
    return curves


def _add(curves: dict[str, Curve], name: str, step: int, value: float) -> None:
    """Add a point to a curve, unless it is not one of a run: the comparison is false for NaN, too."""
    if step >= 0 and -LARGEST < value < LARGEST:
        curves.setdefault(name, {})[step] = value


def band(curves: Sequence[Curve]) -> Band:
    """The mean and the spread of the curves of several seeds. It is empty if they have no step in common."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[step] for curve in curves] for step in steps]
    spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
    return Band(steps, [statistics.fmean(each) for each in values], spread)


def metrics(runs: Sequence[Mapping[str, Curve]]) -> list[str]:
    """The metrics of the curves of several runs, the terms of the bound first. The learning rate is not a metric."""
    names = {name.partition("/")[2] for curves in runs for name in curves if name.startswith("val/")}
    names |= {name for curves in runs for name in FIRST if f"train/{name}" in curves}
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
