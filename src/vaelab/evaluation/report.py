"""Evaluations as text: one evaluation as a table with the meaning of each metric, several as one table of runs."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vaelab import text
from vaelab.errors import UserError

NATS, PIXELS = "nats per image", "L2 over pixels in [0, 1]"
# section -> metric -> unit and meaning, with sizes of the protocol; metrics that a model does not have are left out
METRICS = {
    "likelihood": {
        "log_likelihood": f"{NATS}, lower bound of log p(x), importance-weighted over K samples (log_likelihood)",
        "exact_log_likelihood": f"{NATS}, log p(x) of a linear model in closed form",
        "bits_per_dim": "-log2 P(x) per pixel of 256 grey levels, at most: from the IW bound, K = {num_samples:,}",
        "elbo": f"{NATS}, -(distortion + rate) at the same samples; train.py draws one sample per image",
        "rate": f"{NATS}, KL(q(z|x) || p(z)), at the same samples",
        "distortion": f"{NATS}, -E_q[log p(x|z)]",
        "ess": "effective samples among the K, mean over images",
        "low_ess_share": "share of images with fewer than 10 effective samples: their IW bound may be nats too low",
        "squared_error": "squared error of the reconstruction from the posterior mean, summed over pixels",
    },
    "closer bounds of log p(x), on the first test images": {
        "checked_bound": f"{NATS}, the IW bound of {{checked:,}} images, K = {{num_samples:,}}",
        "checked_bound_10x": f"{NATS}, the same with 10 K = {{checked_samples:,}} samples",
        "gain_10x": f"{NATS}, what 10 K samples gain",
        "ais_bound": f"{NATS}, lower bound of the same {{checked:,}} images by AIS, {{chains}} chains",
        "ais_gain": f"{NATS}, ais_bound - checked_bound",
        "refined_bound": f"{NATS}, IW bound of {{refined:,}} images, K = {{num_samples:,}}, q refined for each",
        "refined_gain": f"{NATS}, what the refined q gains on these images",
        "refined_low_ess_share": "share of these images with fewer than 10 effective samples of the refined q",
    },
    "annealed importance sampling (AIS) of images that the model draws": {
        "drawn_lower": f"{NATS}, lower bound of log p(x), {{checked:,}} images",
        "drawn_upper": f"{NATS}, upper bound, by AIS in reverse",
        "drawn_gap": f"{NATS}, drawn_upper - drawn_lower: the errors of both bounds together; near 0 is good",
    },
    "gaps": {
        "inference_gap": f"{NATS}, IW bound - elbo, K = {{num_samples:,}}; too small by what this bound lacks",
        "approximation_gap": f"{NATS}, refined_bound - ELBO of the refined q, first {{refined:,}} images",
        "amortization_gap": f"{NATS}, ELBO of the refined q - ELBO of the encoder's q, first {{refined:,}} images",
        "generalization_gap": f"{NATS}, ELBO of the first training images - ELBO of the test images",
    },
    "latent space": {
        "active_units": "dimensions with a variance of the posterior mean above 0.01",
        "mean_kl": f"{NATS}, KL(q(z|x) || p(z)) at one sample per image: mutual_information + aggregate_kl",
        "mutual_information": f"{NATS}, I(x; z) over N = {{test_images:,}} images, at most log N",
        "information_limit": "nats, log N for N = {test_images:,} images",
        "aggregate_kl": f"{NATS}, KL(q(z) || p(z)), q(z) of N = {{test_images:,}} images",
        "total_correlation": f"{NATS}, KL(q(z) || prod_j q(z_j)), q(z) of N = {{test_images:,}} images",
    },
    "representation": {
        "linear_accuracy": "accuracy on test images of a logistic regression on codes",
        "knn_accuracy": "accuracy on test images of the five nearest training codes",
        "cluster_accuracy": "accuracy on test images of the class with the largest q(y|x), classes matched one to one",
        "cluster_nmi": "normalised mutual information of these classes and the true ones, 0 to 1",
        "cluster_ari": "adjusted Rand index of these classes and the true ones, about 0 for chance, 1 at most",
        "silhouette": "how far apart the classes lie in code space, -1 to 1",
        "kmeans_accuracy": "accuracy on test images of k-means clusters, matched one to one with the classes",
        "kmeans_nmi": "normalised mutual information of these clusters and the classes, 0 to 1",
        "kmeans_ari": "adjusted Rand index of these clusters and the classes, about 0 for chance, 1 at most",
    },
    "factors of variation": {
        "mig": "gap of the information of the two best dimensions about a factor, 0 to 1, N = {test_images:,} images",
        "modularity": "how far a dimension has information about one factor only, 0 to 1, N = {test_images:,} images",
        "sap": "gap of the accuracy of the two best dimensions for a factor, SVMs of {probed:,} training images",
        "dci_disentanglement": "how far a dimension serves one factor, 0 to 1, forests of {probed:,} training images",
        "dci_completeness": "how far a factor needs one dimension, 0 to 1, the same forests",
        "dci_informativeness": "accuracy on test images of the factors that these forests predict",
        "beta_vae_score": "accuracy of a rule for the factor that pairs share, N = {test_images:,}, ± over batches",
        "factor_vae_score": "accuracy of a vote for the factor that images share, N = {test_images:,}, ± over batches",
        "udr": "agreement of dimensions with those of the other seeds, 0 to 1, N = {test_images:,} images",
    },
    "codes of a VQ-VAE": {
        "train_perplexity": "codes, exp(entropy) of their use by all training images: J if J codes are used equally",
        "test_perplexity": "codes, the same of the test images",
        "train_codes_used": "share of the codes that occur in all training images",
        "test_codes_used": "share of the codes that occur in the test images",
        "code_nats": f"{NATS}, -log p(k) of the codes k of test images, by the prior that train_prior.py has trained",
        "code_bound": f"{NATS}, lower bound of log p(x): log p(x|z) + log p(k) at the encoder's codes",
    },
    "samples": {
        "sample_distance": f"{PIXELS}, median distance of a sample to its nearest training image",
        "test_distance": f"{PIXELS}, the same distance of a test image",
        "nearer_share": "share of samples nearer than 95 % of the test images; above 0.05 hints at copies",
    },
    "quality of the samples": {
        "frechet_distance": "Fréchet distance of the features of {samples:,} samples and {test_images:,} test images",
        "kernel_distance": "MMD^2 of the same features, cubic kernel; ± is over disjoint subsets",
        "precision": "share of samples near a test image, by its 3 nearest test images",
        "recall": "share of test images near a sample, by its 3 nearest samples",
        "density": "1/5 of the number of test images near a sample, by their 5 nearest ones; real images have about 1",
        "coverage": "share of test images with a sample nearer than their 5th nearest test image",
        "confidence": "probability of the class that the classifier names, mean over samples",
        "class_kl": "nats, KL(classes of the samples || classes of the test images), as the classifier names them",
        "missing_classes": "classes with less than a tenth of the samples that are expected, if these are 20 or more",
        "classifier_accuracy": "share of the test images that the classifier puts into the right class",
    },
    "copies and posterior predictive checks": {
        "data_copying": "C_T, z-score of distances to training images; below -3: copies or smooth, above 3: too far",
        "data_copying_features": "the same in the features; below -3: copies, above 3: too far",
        "authenticity": "share of samples that are no noisy copies of a training image; 0 for copies",
        "predictive_distance": "largest difference D of a statistic of samples and of test images, 0 to 1",
        "predictive_p": "p-value of all posterior predictive checks together",
    },
}
REFERENCES = {"real": "training images", "noise": "noise", "test": "test images"}
OF_CLASSES = tuple(METRICS["representation"])  # the metrics that images without labels do not have
OF_CLUSTERS = ("cluster_accuracy", "cluster_nmi", "cluster_ari")  # of models whose codes have a class
LABELS = {"log_likelihood": "IW bound"}  # in tables, because this metric is not log p(x) itself
HEADINGS = {  # of narrow columns; a CSV file has the names of the metrics
    **LABELS, "exact_log_likelihood": "exact log p", "bits_per_dim": "bits/dim", "squared_error": "sq. error",
    "active_units": "units", "linear_accuracy": "linear", "knn_accuracy": "k-NN", "kmeans_accuracy": "k-means",
    "frechet_distance": "Fréchet", "data_copying": "C_T", "predictive_distance": "max D",
    "mig": "MIG", "dci_disentanglement": "DCI", "factor_vae_score": "FactorVAE", "udr": "UDR",
}  # fmt: skip
# Settings in which runs of several seeds may differ: data.used names the data set, whatever was asked for
OF_A_SEED = ("seed", "data.seed", "data.root", "data.dataset", "resume")
COLUMNS = (
    *("log_likelihood", "exact_log_likelihood", "bits_per_dim", "elbo", "rate", "distortion", "squared_error"),
    *("active_units", "linear_accuracy", "knn_accuracy", "kmeans_accuracy", "frechet_distance", "precision", "recall"),
    *("data_copying", "predictive_distance"),
    *("mig", "dci_disentanglement", "factor_vae_score", "udr"),
)


def check_protocols(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if the protocols differ, because their metrics do not compare. It names the differences."""
    (first, agreed), *others = protocols.items()
    for name, protocol in others:
        if differing := [f"{key} {agreed[key]} and {protocol[key]}" for key in agreed if agreed[key] != protocol[key]]:
            raise UserError(
                f"{first} and {name} have metrics that do not compare ({', '.join(differing)}): "
                "across_protocols=true puts them into one table nevertheless"
            )


def seed_groups(configs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Groups of at least two runs that differ only in the seed, and no two of them have the same seed.

    Their settings are {dotted key: value}.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, config in configs.items():
        leaves = {key: value for key, value in config.items() if not isinstance(value, dict | list)}
        kept = sorted(key for key in leaves if key not in OF_A_SEED)
        same = tuple((key, isinstance(leaves[key], bool), leaves[key]) for key in kept)  # 1 is 1.0, and true is not 1
        groups.setdefault(same, []).append(name)
    distinct = {group: len({configs[name].get("seed") for name in names}) for group, names in groups.items()}
    return [names for group, names in groups.items() if len(names) == distinct[group] > 1]


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """The protocol in words."""
    line = (
        "{dataset}, {test_images:,} test images ({train_images:,} trained on), binarization {binarization}, "
        "{likelihood} likelihood, K = {num_samples:,}, noise seed {seed}".format(**protocol)
    )
    line += f", {protocol['samples']:,} samples" if protocol.get("samples") else ""
    return line + (f", samples of density={protocol['density']}" if protocol.get("density") else "")


def meanings(
    protocol: Mapping[str, Any], names: Iterable[str], references: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, str]:
    """The unit and the meaning of metrics, with the numbers of samples and images behind them.

    `references` are the same metrics of "real" training images, of "noise" images and of "test" images.
    """
    images = protocol["test_images"]
    numbers = {"samples": 0, **protocol, **(protocol["ais"] or {})}
    numbers |= {name: min(images, protocol["sizes"][name]) for name in ("checked", "refined")}
    numbers["probed"] = min(protocol["train_images"], protocol["sizes"]["probed"])
    known = {name: text for section in METRICS.values() for name, text in section.items()}
    texts = {name: known[name].format(**numbers) for name in names if name in known}
    for name in texts:
        others = {kind: found[name] for kind, found in (references or {}).items() if name in found}
        texts[name] += "; " * bool(others) + ", ".join(
            f"{REFERENCES[kind]} {shown(each)}" for kind, each in others.items()
        )
    return texts


def table(record: Mapping[str, Any]) -> str:
    """One evaluation: metrics with their standard errors over images, and the reasons for absent metrics."""
    metrics, errors, absent = record["metrics"], record["standard_errors"], record["absent"]
    texts = meanings(record["protocol"], metrics, record.get("references"))
    labels = {"log_likelihood": f"{LABELS['log_likelihood']}, K = {record['protocol']['num_samples']:,}"}
    lines = [f"protocol: {protocol_line(record['protocol'])}; ± is the standard error over images"]
    for section, names in METRICS.items():
        known = [name for name in names if name in metrics]
        lines += ["", section] if known else []
        for name in known:
            error = f" ± {text.rounded(errors[name], 3)}" if name in errors else ""
            lines.append(f"  {labels.get(name, name):<22}{shown(metrics[name]):>10}{error:<10}  {texts[name]}")
    if record.get("predictive"):
        lines += [
            "",
            "posterior predictive checks: samples against test images, in statistics of pen strokes",
            text.table(checks(record["predictive"])),
        ]
    if record["rate_per_dim"]:
        ordered = sorted(enumerate(record["rate_per_dim"]), key=lambda item: -item[1])
        rates = [f"z_{d} {rate:.2f}" for d, rate in ordered[:10]]
        more = len(ordered) - len(rates)
        lines += ["", f"rate by dimension, nats: {', '.join(rates)}" + (f", {more} more" if more else "")]
    lines += ["", record["collapse"]] if record["collapse"] else []
    lines += ["", record["missing"]] if record.get("missing") else []
    lines += [f"no {name}: {why}" for name, why in absent.items()]
    lines += ["", *record["caveats"]] if record.get("caveats") else []
    return "\n".join(lines)


def checks(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The table of posterior predictive checks, the header first: mean ± standard deviation over images, D and p."""
    rows = [["check", "samples", "test images", "D", "p", "D of training images"]]
    for name, check in found.items():
        both = [check.get(of) for of in ("samples", "tests")]
        means = [f"{of['mean']:.3g} ± {of['sd']:.2g}" if of else "–" for of in both]
        numbers = (f"{check['distance']:.3f}", f"{check['p_value']:.3f}", f"{check['floor']:.3f}")
        rows.append([name, *means, *numbers])
    return rows


def comparison(records: Mapping[str, Mapping[str, Any]], groups: Sequence[Sequence[str]], form: str = "text") -> str:
    """One line per run, and below the runs of a group of seeds their mean and s.d., in one of text.FORMATS.

    The runs of a group are together. A CSV table keeps the order of the runs, has unrounded metrics by their names, and
    means and standard deviations as lines of their own at its end.
    """
    protocols = {name: protocol_line(record["protocol"]) for name, record in records.items()}
    columns = [name for name in COLUMNS if any(name in record["metrics"] for record in records.values())]
    exact, last = form == "csv", {name: name.rpartition("/")[2] for name in records}
    labels = last if form == "text" and len({*last.values()}) == len(records) else {name: name for name in records}
    rows = [["run", *(columns if exact else (HEADINGS.get(column, column) for column in columns))]]

    def of_seeds(group: Sequence[str]) -> list[list[str]]:
        each = [[records[name]["metrics"].get(column) for name in group] for column in columns]
        whole = [None not in values for values in each]
        means = [statistics.mean(values) if known else None for values, known in zip(each, whole, strict=True)]
        spreads = [statistics.stdev(values) if known else None for values, known in zip(each, whole, strict=True)]
        if exact:
            of = f"of {len(group)} seeds, {labels[group[0]]} ..."
            return [[f"{what} {of}", *("" if value is None else str(value) for value in numbers)]
                    for what, numbers in (("mean", means), ("s.d.", spreads))]  # fmt: skip
        cells = ("–" if spread is None else f"{shown(mean)} ± {text.rounded(spread)}"
                 for mean, spread in zip(means, spreads, strict=True))  # fmt: skip
        return [[f"mean ± s.d. of these {len(group)} seeds", *cells]]

    group_of = {name: group for group in groups for name in group}
    blocks = records if exact else dict.fromkeys(name for each in records for name in group_of.get(each, [each]))
    for name in blocks:
        values = [records[name]["metrics"].get(column) for column in columns]
        cells = ["" if value is None else str(value) for value in values] if exact else map(shown, values)
        rows.append([labels[name], *cells])
        if not exact and name == group_of.get(name, [None])[-1]:
            rows += of_seeds(group_of[name])
    for group in groups if exact else ():
        rows += of_seeds(group)
    one, *more = set(protocols.values())
    notes = [f"protocol of {name}: {line}" for name, line in protocols.items()] if more else [f"protocol: {one}"]
    notes += [f"{labels[name]}: {record['missing']}" for name, record in records.items() if record.get("missing")]
    notes += _caveats({labels[name]: record.get("caveats", ()) for name, record in records.items()})
    mark = {"latex": "% ", "csv": "# "}.get(form, "")
    if form == "text":
        rows = [[text.cut(row[0]), *row[1:]] for row in rows]
    return "\n".join([text.table(rows, form), mark.strip(), *(mark + note for note in notes)])


def _caveats(of_runs: Mapping[str, Iterable[str]]) -> list[str]:
    """The caveats of runs by name. Those that differ in their numbers alone are one, with those of the first run."""
    alike: dict[str, dict[str, list[str]]] = {}
    for name, caveats in of_runs.items():
        for caveat in caveats:
            alike.setdefault(re.sub(r"\d[\d.,]*", "", caveat), {}).setdefault(caveat, []).append(name)
    lines = []
    for texts in alike.values():
        (first, names), *others = texts.items()
        also = sum(len(each) for _, each in others)
        more = f" (also {also} other run{'s' * (also > 1)}, with other numbers)" if also else ""
        who = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
        lines.append(first if len(names) == len(of_runs) else f"{who}: {first}{more}")
    return lines


def shown(value: float | None) -> str:
    """A whole number unchanged, any other number with two or three decimal places, or – for None."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
