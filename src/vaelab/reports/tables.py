"""The tables of a report: runs in groups that differ only in the seed, their metrics, and the best of each metric."""

import os
import re
import statistics
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

from vaelab.evaluation import report
from vaelab.runs import Run, settings
from vaelab.text import plain, rounded

# A metric with no better direction, such as the rate, is in neither of them
HIGHER = (
    *("log_likelihood", "exact_log_likelihood", "elbo", "linear_accuracy", "knn_accuracy", "kmeans_accuracy"),
    *("mig", "dci_disentanglement", "factor_vae_score", "udr", "precision", "recall"),
)
LOWER = ("bits_per_dim", "squared_error", "frechet_distance", "predictive_distance")
MOST_SHOWN = 3  # settings in the name of a group
LAST = re.compile(r"[^.]*(\.\d+)*$")  # the last part of a dotted key, with the numbers of lists


class Entry(NamedTuple):
    """A run in a report."""

    key: str  # a short name, such as A or B2
    name: str  # its folder, below the folder that all runs are in
    run: Run
    record: Mapping[str, Any]  # its evaluation


class Group(NamedTuple):
    """Runs that differ only in the seed, or a single run."""

    key: str  # one letter, or the same letter several times
    entries: list[Entry]


class Cell(NamedTuple):
    """A metric of a group in the table."""

    text: str
    best: bool


def group(runs: Mapping[str, Run], records: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Runs by name in groups, in their order. The keys are A, B, ..., and A1, A2, ... for the runs of group A."""
    names, short = list(runs), short_names(runs)
    parts: dict[str, dict[str, Mapping[str, Any]]] = {}  # the runs that compare
    for name in names:
        parts.setdefault(_protocol(records[name]), {})[name] = dict(settings(runs[name].cfg))
    members = [each for part in parts.values() for each in report.seed_groups(part)]
    members += [[name] for name in names if not any(name in each for each in members)]
    groups = []
    for i, each in enumerate(sorted(members, key=lambda each: names.index(each[0]))):
        letter = ascii_uppercase[i % 26] * (1 + i // 26)
        keys = [f"{letter}{k}" for k in range(1, len(each) + 1)] if len(each) > 1 else [letter]
        entries = [Entry(key, short[name], runs[name], records[name]) for key, name in zip(keys, each, strict=True)]
        groups.append(Group(letter, entries))
    return groups


def short_names(runs: Mapping[str, Run]) -> dict[str, str]:
    """The folders of runs below the folder that all of them are in, whose name can be private, by name of the run."""
    paths = {name: run.folder.absolute() for name, run in runs.items()}
    above = os.path.commonpath([path.parent for path in paths.values()])
    return {name: plain(path.relative_to(above)) for name, path in paths.items()}


def by_protocol(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups in lists with equal protocols. Metrics compare within such a list."""
    found: dict[str, list[Group]] = {}
    for each in groups:
        found.setdefault(_protocol(each.entries[0].record), []).append(each)
    return list(found.values())


def _protocol(record: Mapping[str, Any]) -> str:
    return repr(sorted(record["protocol"].items()))


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The settings in which groups differ, by dotted key, with the value of each group. A part has its class's name."""
    configs = [_leaves(each.entries[0].run.cfg) for each in groups]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key, "–") for config in configs] for key in keys}
    return {key: values for key, values in rows.items() if len({*values}) > 1}


def _leaves(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The single settings of a config, without those of the seed and of the machine."""
    found = {}
    for key, value in settings(cfg):
        if isinstance(value, dict | list) or key in (*report.OF_A_SEED, "data.path") or key.endswith("_partial_"):
            continue
        text = plain(value).removesuffix(".0") if isinstance(value, float) else plain(value)  # 1.0 and 1 are equal
        part = key.endswith("._target_")
        found[plain(key).removesuffix("._target_")] = text.rpartition(".")[2] if part else text
    return found


def labels(groups: Sequence[Group]) -> dict[str, str]:
    """What tells a group from the others, by its key: the name of the experiment, or some settings that differ."""
    names = [plain(each.entries[0].run.cfg.get("name", "run")) for each in groups]
    if len({*names}) == len(names):
        return {each.key: name for each, name in zip(groups, names, strict=True)}
    table = differing(groups)
    first = telling(table, len(groups))[:MOST_SHOWN]
    more = [f"{len(table) - len(first)} more"] if len(table) > len(first) else []
    found = {}
    for i, each in enumerate(groups):
        words = [f"{LAST.search(key)[0]}={table[key][i]}" for key in first]  # type: ignore[index]
        found[each.key] = ", ".join(words + more) or names[i]
    return found


def telling(table: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """All settings of a table of `count` groups. First come those that tell most groups apart, each with the former."""
    chosen: list[str] = []
    rest, parts = list(table), [tuple[str, ...]()] * count
    while rest:
        key = max(rest, key=lambda key: len({*zip(parts, table[key], strict=True)}))
        rest.remove(key)
        chosen.append(key)
        parts = [(*part, value) for part, value in zip(parts, table[key], strict=True)]
    return chosen


def columns(groups: Sequence[Group]) -> list[str]:
    """The metrics of the table that at least one run has."""
    records = [entry.record["metrics"] for each in groups for entry in each.entries]
    return [name for name in report.COLUMNS if any(name in metrics for metrics in records)]


def arrow(column: str) -> str:
    """↑ if a higher value is better, ↓ if a lower one is better, or an empty text."""
    return "↑" if column in HIGHER else "↓" if column in LOWER else ""


def column(groups: Sequence[Group], name: str) -> list[Cell]:
    """A metric of groups that compare: the mean and the standard deviation over seeds, or the value of a single run.

    Every cell that shows the best mean is marked, if there are several and the metric has a better direction.
    """
    found = [values(each, name) for each in groups]
    shown = [report.shown(statistics.mean(each)) if each else "–" for each in found]
    means = [statistics.mean(each) for each in found if each]
    best = (max if name in HIGHER else min)(means, default=None) if arrow(name) and len(means) > 1 else None
    marked = None if best is None else report.shown(best)
    return [Cell(spread(each), text == marked) for each, text in zip(found, shown, strict=True)]


def values(group: Group, name: str) -> list[float]:
    """A metric of each run of a group. Empty if one of them does not have it."""
    found = [entry.record["metrics"].get(name) for entry in group.entries]
    return found if None not in found else []


def spread(values: Sequence[float]) -> str:
    """The mean and the standard deviation of several values, a single value as it is, or – if there is none."""
    if len(values) < 2:
        return report.shown(values[0] if values else None)
    return f"{report.shown(statistics.mean(values))} ± {rounded(statistics.stdev(values))}"
