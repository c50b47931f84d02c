"""A table and a picture of evaluated runs on data with known factors: disentanglement against reconstruction.

    python benchmarks/disentanglement.py logs/SWEEP --picture docs/disentanglement.png

The folder is that of a sweep whose runs have their evaluation.json. Runs that differ only in the seed are one row, with
mean ± standard deviation over seeds. The last line has the share of a metric's variance over all runs that the method
explains, eta^2 = sum_g n_g (mean_g - mean)^2 / sum_i (x_i - mean)^2, and the share that G groups of N runs without any
difference would have on average, (G - 1) / (N - 1).
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[Mapping[str, float]]]  # method -> the metrics of each of its runs
COLUMNS = {
    "elbo": "ELBO",
    "rate": "rate",
    "squared_error": "squared error",
    "active_units": "units",
    "mig": "MIG",
    "dci_disentanglement": "DCI",
    "factor_vae_score": "FactorVAE",
    "beta_vae_score": "beta-VAE",
    "sap": "SAP",
    "modularity": "modularity",
    "udr": "UDR",
}
WEIGHTS = {"ELBO": "beta", "BetaTC": "beta", "FactorVAE": "weight", "DIP": "off_diagonal"}


def method(objective: Mapping[str, Any]) -> str:
    """The name of an objective, with its weight."""
    name = objective["_target_"].rpartition(".")[2]
    return f"{name}, {WEIGHTS[name].replace('_', ' ')} {objective[WEIGHTS[name]]:g}"


def read(folder: Path) -> Groups:
    """The metrics of the runs in a folder by method, in the order of its name."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for path in sorted(folder.glob("*/evaluation.json")):
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        found.setdefault(method(config["objective"]), []).append(json.loads(path.read_text())["metrics"])
    return dict(sorted(found.items()))


def explained(groups: Groups, name: str) -> float:
    """The share eta^2 of the variance of a metric that the method explains, in [0, 1]. NaN if all values are equal."""
    values = [[run[name] for run in runs] for runs in groups.values()]
    everything = [value for group in values for value in group]
    mean = statistics.mean(everything)
    between = sum(len(group) * (statistics.mean(group) - mean) ** 2 for group in values)
    whole = sum((value - mean) ** 2 for value in everything)
    return between / whole if whole else math.nan


def table(groups: Groups) -> str:
    """The Markdown table."""
    known = [name for name in COLUMNS if all(name in run for runs in groups.values() for run in runs)]
    lines = ["| method | runs | " + " | ".join(COLUMNS[name] for name in known) + " |", "|---" * (len(known) + 2) + "|"]
    for label, runs in groups.items():
        cells = []
        for name in known:
            mean, spread = (of([run[name] for run in runs]) for of in (statistics.mean, statistics.stdev))
            digits = 1 if abs(mean) >= 2 else 3
            cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
        lines.append(f"| {label} | {len(runs)} | {' | '.join(cells)} |")
    total = sum(map(len, groups.values()))
    shares = ", ".join(f"{COLUMNS[name]} {explained(groups, name):.2f}" for name in known)
    chance = (len(groups) - 1) / (total - 1)
    return "\n".join([*lines, "", f"share of the variance that the method explains (chance: {chance:.2f}): {shares}"])


def draw(groups: Groups, path: Path) -> None:
    """MIG and DCI against the squared error: a small point for each run, a large one for the mean of a method."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "mig"), (right, "dci_disentanglement")):
        for i, (label, runs) in enumerate(groups.items()):
            x, y = ([run[key] for run in runs] for key in ("squared_error", name))
            style = {"color": f"C{i}", "marker": "osD^vP*X"[i % 8], "linestyle": "none"}
            axes.plot(x, y, markersize=4, alpha=0.6, **style)
            axes.plot(
                statistics.mean(x), statistics.mean(y), markersize=11, markeredgecolor="black", **style, label=label
            )
        axes.set(xlabel="squared error of the reconstruction, per image", ylabel=COLUMNS[name])
        axes.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a sweep's folder")
    parser.add_argument("--picture", type=Path, default=Path("disentanglement.png"))
    o = parser.parse_args()
    groups = read(o.folder)
    print(table(groups))
    draw(groups, o.picture)


if __name__ == "__main__":
    main()
