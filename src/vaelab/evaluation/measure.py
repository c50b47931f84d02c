"""All metrics of a model on test images, and the protocol that must be equal if the metrics are to compare."""

import math
import time
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vaelab import checks
from vaelab.errors import NotOfferedError, UserError
from vaelab.evaluation import annealing, report
from vaelab.evaluation.annealing import Annealing
from vaelab.evaluation.batches import batches
from vaelab.evaluation.codebook import codebook_statistics
from vaelab.evaluation.factors import check_factors, factor_metrics
from vaelab.evaluation.gaps import refine
from vaelab.evaluation.latent import latent_statistics
from vaelab.evaluation.likelihood import exact_log_likelihood, importance_weighted
from vaelab.evaluation.predictive import Predictive
from vaelab.evaluation.representation import agreement, representation
from vaelab.evaluation.samples import DISTANCES_ONLY, Sampling, of_samples
from vaelab.interfaces import (
    GenerativeModel,
    classes_of_codes,
    device_of,
    has_mean,
    labels,
    levels,
    likelihood_name,
    quantises,
)

MORE = 10  # times the samples, for the images that are checked
LOW_ESS = 10  # effective samples; with fewer, the estimate of log p(x) is probably several nats too low


class Sizes(NamedTuple):
    """The sizes of an evaluation, apart from the K samples of log p(x)."""

    probed: int = 10_000  # training images for the probes and for the generalisation gap
    train_samples: int = 100  # importance samples for each of them
    refined: int = 1_000  # test images for the refinement of q(z | x)
    steps: int = 1_000  # optimiser steps of the refinement
    refined_samples: int = 100  # noise samples of an ELBO before and after the refinement
    drawn: int = 1_000  # samples, and as many test images, that are compared with training images
    checked: int = 100  # test images whose log p(x) is checked with ten times the samples, and by annealing


DEFAULT = Sizes()
KNOWN = sum(map(len, report.METRICS.values()))  # metrics; a record with fewer lacks some without a reason


class Measurement(NamedTuple):
    """The result of `measure`."""

    record: dict[str, Any]  # plain data: protocol, metrics with meanings and standard errors, what is absent and why
    codes: Tensor  # (N, D), of the test images
    pairs: Tensor | None  # (32, C, H, 2 W): the samples nearest to a training image, each beside that image
    checks: Predictive | None  # posterior predictive checks of samples


def protocol(
    model: GenerativeModel,
    data: Any,
    num_samples: int,
    num_images: int | None,
    seed: int,
    sizes: Sizes = DEFAULT,
    ais: Annealing | None = None,
    sampling: Sampling = DISTANCES_ONLY,
) -> dict[str, Any]:
    """The settings that two models must share if their metrics are to compare. num_images=None takes all test images.

    Raises UserError for a setting out of its range, for annealing (`ais`) or a fitted density with a model that it is
    not defined for, and for factors of the data that are not as `check_factors` needs them.
    """
    images = len(data.splits["test"][0])
    checks.whole(num_samples=num_samples)
    checks.whole(2, num_images=images if num_images is None else num_images)  # a standard error needs two
    checks.whole(0, checks.SEEDS, seed=seed)
    checks.whole(2, **{f"sizes.{name}": size for name, size in sizes._asdict().items()})
    if num_images is not None and num_images > images:
        raise UserError(f"num_images={num_images}, but {data.name} has {images:,} test images")
    if ais:
        ais.check()
        annealing.check_model(model)
    train_images = len(data.splits["train"][0])
    sampling.check(model, min(train_images, num_images or images))
    check_factors(data)
    name = likelihood_name(model.likelihood)
    if name == "Bernoulli" and data.binarization == "none":
        name = "Bernoulli (on grey levels no density)"
    return {
        "dataset": data.name,
        "train_images": train_images,
        "test_images": num_images or images,
        "binarization": data.protocol["binarization"]["test"],
        "likelihood": f"class-conditional {name}" if model.num_classes else name,
        "num_samples": num_samples,
        "checked_samples": MORE * num_samples,
        "seed": seed,
        "sizes": sizes._asdict(),
        "ais": ais._asdict() if ais else None,
        **sampling.protocol(),
        "vaelab": version("vaelab"),
    }


@torch.no_grad()
def measure(
    model: GenerativeModel,
    data: Any,  # a data module that is set up
    num_samples: int = 5000,  # K of log p(x)
    num_images: int | None = None,  # number of test images, from the first on; None takes all
    seed: int = 0,  # of all noise
    sizes: Sizes = DEFAULT,
    ais: Annealing | None = None,  # bounds by annealed importance sampling, if given
    sampling: Sampling = DISTANCES_ONLY,  # what is measured of samples
) -> Measurement:
    """Measure a model on test images, with progress bars. The record gives the reasons for metrics that are absent.

    It does not name metrics that are only for other kinds of models or data, or for images of more than one class.

    Raises UserError as `protocol` does.
    """
    started = time.perf_counter()
    agreed = protocol(model, data, num_samples, num_images, seed, sizes, ais, sampling)
    device = device_of(model)
    x, classes = data.images("test", agreed["test_images"], device)
    few_x, few_classes = data.images("train", sizes.probed, device)
    y, probed = labels(model, classes), (few_x, labels(model, few_classes))

    per_image, absent = _densities(model, x, y, num_samples, seed, sizes)
    if ais:
        per_image |= _annealed(model, *next(batches(x, y, sizes.checked)), seed, ais)
        per_image["ais_gain"] = per_image["ais_bound"] - per_image["checked_bound"]
    exact = exact_log_likelihood(model, x)
    if exact is not None:
        per_image["exact_log_likelihood"] = exact
    if has_mean(model.likelihood):
        per_image["squared_error"] = torch.cat(
            [(model.reconstruct(*part).mean - part[0]).square().sum((1, 2, 3)) for part in batches(x, y)]
        )
    else:
        absent["squared_error"] = "E[x | z] is not known"
    used: dict[str, float] = {}
    if quantises(model):
        with _bar("use of the codes", 1, "part"):
            used, of_codes = codebook_statistics(model, data.pixels("train")[0], x)
        per_image |= of_codes
    metrics = used | {name: values.mean().item() for name, values in per_image.items()}
    errors = {name: _standard_error(values) for name, values in per_image.items()}
    if "elbo" in metrics:
        with _bar("ELBO of training images", len(probed[0]), "image") as bar:
            trained = importance_weighted(model, *probed, sizes.train_samples, seed, bar.update)
        metrics["generalization_gap"] = trained.elbo.mean().item() - metrics["elbo"]
        errors["generalization_gap"] = math.hypot(_standard_error(trained.elbo), errors["elbo"])

    with _bar("latent space", 1, "part"):
        latent = latent_statistics(model, x, y, seed=seed)
        codes = torch.cat([model.encode(*part) for part in batches(*probed)])
        metrics = latent.metrics | metrics
        if classes is None or few_classes is None:
            never = () if classes_of_codes(model) else report.OF_CLUSTERS
            names = [name for name in report.OF_CLASSES if name not in never]
            absent |= dict.fromkeys(names, "the images have no labels")
        else:
            metrics |= representation(codes, few_classes, latent.codes, classes)
            if classes_of_codes(model):
                posteriors: Any = [model.infer(*part) for part in batches(x, y)]
                clusters = torch.cat([q.mixture_distribution.logits.argmax(-1) for q in posteriors])
                agreed_with = agreement(clusters.cpu().numpy(), classes.cpu().numpy())
                metrics |= {f"cluster_{name}": value for name, value in agreed_with.items()}
        known = factor_metrics(data, codes, latent.codes, seed)
        metrics, errors, absent = metrics | known.metrics, errors | known.standard_errors, absent | known.absent
    with _bar("samples", 1, "part"):
        found = of_samples(model, data, x, seed, sizes.drawn, sampling)
    metrics, errors, absent = metrics | found.metrics, errors | found.errors, absent | found.absent
    for name in [name for name, value in metrics.items() if not math.isfinite(value)]:
        absent[name] = f"it is {metrics.pop(name)}"
        errors.pop(name, None)

    record = {
        "protocol": agreed,
        "metrics": metrics,
        "standard_errors": errors,
        "absent": absent | latent.absent,
        "rate_per_dim": None if latent.rates is None else latent.rates.tolist(),
        "variance_per_dim": latent.variances.tolist(),
        "collapse": latent.collapse(),
        "references": found.references,
        "missing": found.missing,
        "predictive": found.checks.record() if found.checks else None,
        "meanings": report.meanings(agreed, metrics, found.references),
        "known_metrics": KNOWN,
        "seconds": round(time.perf_counter() - started, 1),
        "device": str(device),
    }
    return Measurement(record, latent.codes.cpu(), found.pairs, found.checks)


def _densities(
    model: GenerativeModel, x: Tensor, y: Tensor | None, num_samples: int, seed: int, sizes: Sizes
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The metrics that need p(x, z) and q(z | x), with one value per image, and the reasons for those that are absent.

    A metric has shape (N,), (sizes.refined,) if it needs the refinement, or (sizes.checked,) if it compares K and 10 K.
    """
    try:
        with _bar("log p(x)", len(x), "image") as bar:
            estimate = importance_weighted(model, x, y, num_samples, seed, bar.update)
    except NotOfferedError as error:
        return {}, {"log_likelihood": str(error)}
    bound = estimate.log_likelihood
    metrics = {**estimate._asdict(), "inference_gap": bound - estimate.elbo}
    metrics["low_ess_share"] = _low(estimate.ess, num_samples)
    if levels(model.likelihood) == 256:
        metrics["bits_per_dim"] = -bound / (x[0].numel() * math.log(2))
    few, few_y = next(batches(x, y, sizes.checked))
    with _bar(f"log p(x), K = {MORE * num_samples:,}", len(few), "image") as bar:
        more = importance_weighted(model, few, few_y, MORE * num_samples, seed, bar.update).log_likelihood
    metrics |= {"checked_bound": bound[: len(few)], "checked_bound_10x": more, "gain_10x": more - bound[: len(few)]}
    few, few_y = next(batches(x, y, sizes.refined))
    try:
        with _bar("refining q(z | x)", sizes.steps + sizes.refined_samples, "step") as bar:
            refined = refine(model, few, few_y, sizes.steps, sizes.refined_samples, seed, progress=bar.update)
    except UserError as error:
        return metrics, dict.fromkeys(("amortization_gap", "refined_bound"), str(error))
    with _bar("log p(x), refined q(z | x)", len(few), "image") as bar:
        closer = importance_weighted(model, few, few_y, num_samples, seed, bar.update, refined.proposal())
    metrics["refined_bound"] = closer.log_likelihood
    metrics["refined_gain"] = closer.log_likelihood - bound[: len(few)]
    metrics["refined_low_ess_share"] = _low(closer.ess, num_samples)
    metrics["amortization_gap"] = (refined.after - refined.before).double()
    metrics["approximation_gap"] = closer.log_likelihood - refined.after
    return metrics, {}


def _low(ess: Tensor, num_samples: int) -> Tensor:
    """Whether images have few effective samples, as numbers 0 and 1, whose mean is a share."""
    return (ess < min(LOW_ESS, num_samples) * (1 - 1e-6)).double()  # equal weights give K but for rounding


def _annealed(model: GenerativeModel, x: Tensor, y: Tensor | None, seed: int, settings: Annealing) -> dict[str, Tensor]:
    """The lower bound of images (N, C, H, W) by annealing, and both bounds of N images that the model draws."""
    with _bar("AIS", 2 * settings.temperatures * len(x), "transition") as bar:
        bound = annealing.lower_bound(model, x, y, settings, seed, bar.update)
    with _bar("AIS of drawn images", 3 * settings.temperatures * len(x), "transition") as bar:
        _, lower, upper = annealing.sandwich(model, len(x), y, settings, seed, bar.update)
    return {"ais_bound": bound, "drawn_lower": lower, "drawn_upper": upper, "drawn_gap": upper - lower}


def _standard_error(values: Tensor) -> float:
    """The standard error of the mean over images."""
    return (values.std() / len(values) ** 0.5).item()


def _bar(name: str, total: int, unit: str) -> tqdm:
    """A progress bar with the time left. It shows on a terminal only."""
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=None)
