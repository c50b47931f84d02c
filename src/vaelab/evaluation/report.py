"""Evaluations as text: one as a table with what each figure means, several as one table of runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vaelab.errors import UserError

NATS, PIXELS = "nats per image", "L2 over pixels in [0, 1]"
# section -> figure -> unit and meaning; figures that a model has not are left out
FIGURES = {
    "likelihood": {
        "log_likelihood": f"{NATS}, log p(x), importance-weighted over K samples",
        "exact_log_likelihood": f"{NATS}, log p(x) of a linear model in closed form",
        "bits_per_dim": "-log2 P(x) per pixel of 256 grey levels",
        "elbo": f"{NATS}, -(distortion + rate), at the same samples; train.py draws one an image",
        "rate": f"{NATS}, KL(q(z|x) || p(z)), at the same samples",
        "distortion": f"{NATS}, -E_q[log p(x|z)]",
        "ess": "effective samples of the K, the mean over images",
        "low_ess_share": "share of images with fewer than 10 of them: their log p(x) may be nats too low",
        "squared_error": "summed over pixels, of the reconstruction from the posterior's mean",
    },
    "gaps": {
        "inference_gap": f"{NATS}, log_likelihood - elbo",
        "approximation_gap": f"{NATS}, what remains of it once q(z|x) is refined for each image; below 0: raise K",
        "amortization_gap": f"{NATS}, what that refinement gains, on at most 1,000 images",
        "generalization_gap": f"{NATS}, ELBO of at most 10,000 training images - that of the test images",
    },
    "latent space": {
        "active_units": "dimensions whose posterior mean varies by more than 0.01",
        "mutual_information": f"{NATS}, I(x; z) over these images, at most the log of their number",
        "aggregate_kl": f"{NATS}, KL(q(z) || p(z)) of the aggregate posterior",
        "total_correlation": f"{NATS}, KL(q(z) || prod_j q(z_j))",
    },
    "representation": {
        "linear_accuracy": "logistic regression on codes, test images",
        "knn_accuracy": "five nearest neighbours among training codes",
        "silhouette": "of the classes in code space, -1 to 1",
    },
    "samples": {
        "sample_distance": f"{PIXELS}, median distance of a sample to its nearest training image",
        "test_distance": f"{PIXELS}, the same of a test image",
        "nearer_share": "share of samples nearer than all but 5 % of test images; above 0.05 hints at copies",
    },
}
OF_A_SEED = ("seed", "data.seed", "data.root", "resume")  # settings by which runs of several seeds may differ
COLUMNS = (
    *("log_likelihood", "exact_log_likelihood", "bits_per_dim", "elbo", "rate", "distortion", "squared_error"),
    *("active_units", "linear_accuracy", "knn_accuracy"),
)


def check_protocols(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError, which names what differs, if figures of different protocols would stand side by side."""
    (first, agreed), *others = protocols.items()
    for name, protocol in others:
        if differing := [f"{key} {agreed[key]} and {protocol[key]}" for key in agreed if agreed[key] != protocol[key]]:
            raise UserError(
                f"{first} and {name} have figures that do not compare ({', '.join(differing)}): "
                "across_protocols=true puts them into one table nevertheless"
            )


def seed_groups(configs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Names of runs whose settings, {dotted key: value}, differ by seed alone; two of them at least."""
    groups: dict[str, list[str]] = {}
    for name, config in configs.items():
        leaves = {key: value for key, value in config.items() if not isinstance(value, dict | list)}
        same = repr(sorted((key, value) for key, value in leaves.items() if key not in OF_A_SEED))
        groups.setdefault(same, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """The protocol in words."""
    return (
        "{dataset}, {test_images:,} test images ({train_images:,} trained on), binarization {binarization}, "
        "{likelihood} likelihood, K = {num_samples:,}, noise seed {seed}".format(**protocol)
    )


def table(record: Mapping[str, Any]) -> str:
    """One evaluation: figures with their standard errors over images, and why others are absent."""
    figures, errors, absent = record["figures"], record["standard_errors"], record["absent"]
    lines = [f"protocol: {protocol_line(record['protocol'])}; ± is the standard error over images"]
    for section, meanings in FIGURES.items():
        known = [name for name in meanings if name in figures]
        lines += ["", section] if known else []
        for name in known:
            error = f" ± {errors[name]:.3g}" if name in errors else ""
            lines.append(f"  {name:<22}{shown(figures[name]):>10}{error:<10}  {meanings[name]}")
    if record["rate_per_dim"]:
        ordered = sorted(enumerate(record["rate_per_dim"]), key=lambda item: -item[1])
        rates = [f"z_{d} {rate:.2f}" for d, rate in ordered[:10]]
        more = len(ordered) - len(rates)
        lines += ["", f"rate by dimension, nats: {', '.join(rates)}" + (f", {more} more" if more else "")]
    lines += ["", record["collapse"]] if record["collapse"] else []
    lines += [f"no {name}: {why}" for name, why in absent.items()]
    return "\n".join(lines)


def comparison(records: Mapping[str, Mapping[str, Any]], groups: Sequence[Sequence[str]]) -> str:
    """One line a run, and for each group of runs that differ by seed alone their mean and standard deviation."""
    protocols = {name: protocol_line(record["protocol"]) for name, record in records.items()}
    columns = [name for name in COLUMNS if any(name in record["figures"] for record in records.values())]
    rows = [["run", *columns]]
    for name, record in records.items():
        rows.append([name, *(shown(record["figures"].get(column)) for column in columns)])
    for group in groups:
        row = [f"mean ± s.d. of {len(group)} seeds, {group[0]} ..."]
        for column in columns:
            values = [records[name]["figures"][column] for name in group if column in records[name]["figures"]]
            spread = statistics.stdev(values) if len(values) == len(group) else None
            row.append("–" if spread is None else f"{shown(statistics.mean(values))} ± {spread:.2g}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in
                       enumerate(zip(row, widths, strict=True))) for row in rows]  # fmt: skip
    lines.append("")
    one, *more = set(protocols.values())
    lines += [f"protocol of {name}: {line}" for name, line in protocols.items()] if more else [f"protocol: {one}"]
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """Whole numbers as they are, others with the digits that mean something."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
