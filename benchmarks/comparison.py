"""Tables of evaluated runs: likelihood and representation, then samples and copies, each figure beside its references.

    python benchmarks/comparison.py logs/A logs/B ...

A folder is that of a run or of a sweep, and its runs have their evaluation.json, made with samples=N. Runs that differ
only in the seed are one row, with mean ± standard deviation over seeds. The tables of binary and of grey images are
apart, because their figures do not compare. Below each table of samples are the figures of training images, of test
images and of noise in place of samples.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # model -> the evaluation.json of each of its runs
LIKELIHOOD = {
    "log_likelihood": "IW bound",
    "elbo": "ELBO",
    "rate": "rate",
    "squared_error": "squared error",
    "active_units": "units",
    "linear_accuracy": "linear",
    "knn_accuracy": "k-NN",
    "kmeans_accuracy": "k-means",
}
SAMPLES = {
    "frechet_distance": "Fréchet",
    "kernel_distance": "kernel",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "confidence": "confidence",
    "class_kl": "class KL",
    "predictive_distance": "max D",
    "data_copying": "C_T",
    "data_copying_features": "C_T, features",
    "authenticity": "authenticity",
}
REFERENCES = {"real": "*training images*", "test": "*test images*", "noise": "*noise*"}


def read(folders: Sequence[Path]) -> dict[str, Records]:
    """The records of all runs by binarisation of the test images and by model, in the order of the models' names."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for folder in folders:
        for path in sorted([*folder.glob("evaluation.json"), *folder.glob("*/evaluation.json")]):
            record = json.loads(path.read_text())
            name = yaml.safe_load((path.parent / "config.yaml").read_text())["name"]
            density = record["protocol"].get("density")
            label = f"{name}, density={density}" if density else name
            found.setdefault(record["protocol"]["binarization"], {}).setdefault(label, []).append(record)
    return {images: dict(sorted(models.items())) for images, models in found.items()}


def table(records: Records, columns: Mapping[str, str], references: bool) -> str:
    """A Markdown table. A dash stands for a metric that a model does not have."""
    known = [name for name in columns if any(name in run["metrics"] for runs in records.values() for run in runs)]
    lines = ["| model | seeds | " + " | ".join(columns[name] for name in known) + " |", "|---" * (len(known) + 2) + "|"]
    for label, runs in records.items():
        values = [[run["metrics"][name] for run in runs if name in run["metrics"]] for name in known]
        lines.append(f"| {label} | {len(runs)} | " + " | ".join(map(cell, values)) + " |")
    first = next(iter(records.values()))[0]
    for kind, label in REFERENCES.items() if references else ():
        values = [[each] if (each := first["references"].get(kind, {}).get(name)) is not None else [] for name in known]
        lines.append(f"| {label} | | " + " | ".join(map(cell, values)) + " |")
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """The mean, and for several seeds ± the standard deviation. Below 2 there are three digits, otherwise one."""
    if not values:
        return "–"
    mean = statistics.mean(values)
    digits = 0 if all(isinstance(value, int) for value in values) else 3 if abs(mean) < 2 else 1
    spread = f" ± {statistics.stdev(values):.{max(digits, 1)}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="runs or sweeps")
    for images, records in read(parser.parse_args().folders).items():
        print(f"## Test images: binarization {images}\n")
        print(table(records, LIKELIHOOD, references=False), table(records, SAMPLES, references=True), sep="\n\n")
        print()


if __name__ == "__main__":
    main()
