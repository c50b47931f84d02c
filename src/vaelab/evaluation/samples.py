"""All that is measured of a model's samples: their quality, and their distances to training images.

The samples are of p(z), or of a density that is fitted to codes.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelab import checks
from vaelab.errors import NotOfferedError, UserError
from vaelab.evaluation import densities
from vaelab.evaluation.batches import batches
from vaelab.evaluation.classifier import Classifier, lacking
from vaelab.evaluation.memorization import FEW, copying, memorization, nearest
from vaelab.evaluation.predictive import Predictive, largest, predictive
from vaelab.evaluation.quality import LEAST, quality
from vaelab.evaluation.report import METRICS
from vaelab.interfaces import GenerativeModel, device_of, has_mean, labels
from vaelab.noise import fixed_noise


class Sampling(NamedTuple):
    """What is measured of samples, apart from their distances to training images."""

    samples: int = 0  # the number of samples whose quality is measured
    density: str | None = None  # a name in densities.DENSITIES: samples are of a density fitted to codes, not of p(z)
    classifier: Classifier | None = None  # gives the features; None only if there can be none for these images

    def check(self, model: GenerativeModel, images: int) -> None:
        """Raise UserError for a setting out of its range, also with the smaller number of training and test images."""
        checks.one_of((None, *densities.DENSITIES), density=self.density)
        if self.density:
            densities.check_model(model)
        checks.whole(0, samples=self.samples)
        if self.samples and min(self.samples, images) < LEAST:
            raise UserError(
                f"samples={self.samples}: quality is measured with at least {LEAST} samples, training and test images"
            )

    def protocol(self) -> dict[str, Any]:
        """The settings that two models must share if the metrics of their samples are to compare."""
        name = self.classifier.name if self.classifier else None
        return {"samples": self.samples, "density": self.density, "classifier": name}


DISTANCES_ONLY = Sampling()


class OfSamples(NamedTuple):
    """What is found out about samples."""

    metrics: dict[str, float]
    errors: dict[str, float]
    absent: dict[str, str]
    references: dict[
        str, dict[str, float]
    ]  # the same metrics of "real" training images, of "noise" and of "test" images
    missing: str | None  # a sentence that names the classes that samples lack
    pairs: Tensor | None
    checks: Predictive | None = None


def of_samples(model: GenerativeModel, data: Any, x: Tensor, seed: int, drawn: int, sampling: Sampling) -> OfSamples:
    """All metrics of samples, of p(z) or of a fitted density, with test images x (N, C, H, W)."""
    prior, training = model.prior, data.pixels("train")[0]
    try:
        if sampling.density:
            model.prior = densities.fit(sampling.density, model, data.train_dataloader(), seed)
        samples = draw(model, data, max(drawn, sampling.samples), seed)
    except NotOfferedError as error:
        names = ("sample_distance", *(["frechet_distance"] if sampling.samples else []))
        return OfSamples({}, {}, dict.fromkeys(names, str(error)), {}, None, None)
    finally:
        model.prior = prior
    metrics, pairs = _copies(samples[:drawn], x, training)
    if not sampling.samples:
        return OfSamples(metrics, {}, {}, {}, None, pairs)
    samples = samples[: sampling.samples]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))  # files can be sorted by class
    real = training[order[: len(samples)].to(training.device)].to(x.device).float().div(255)
    features = partial(_features, sampling.classifier.to(x.device)) if sampling.classifier else None
    copied, held = copying(samples, x, training, features, drawn)
    checks = predictive(samples, x, real, seed=seed)
    metrics |= copied | {"predictive_distance": largest(checks.distances), "predictive_p": checks.p_value}
    empty = [name for name, value in copied.items() if math.isnan(value)]
    metrics = {name: value for name, value in metrics.items() if name not in empty}
    absent = dict.fromkeys(empty, f"no cell has more than {FEW} samples, a test image and a training image")
    others = {"real": {"predictive_distance": largest(checks.floor)}, "noise": {}, "test": held}
    errors, missing = {}, None
    if sampling.classifier:
        found = quality(samples, x, real, sampling.classifier, seed)
        metrics, errors, missing = found.metrics | metrics, found.errors, found.sentence()
        metrics["classifier_accuracy"] = _accuracy(sampling.classifier, x, data.splits["test"][1][: len(x)])
        others["real"], others["noise"] = found.real | others["real"], found.noise
    else:
        names = (*METRICS["quality of the samples"], "data_copying_features")
        absent |= dict.fromkeys(names, f"there is no classifier, because {lacking(data)}")
    references = {
        kind: {name: value for name, value in values.items() if math.isfinite(value)} for kind, values in others.items()
    }
    return OfSamples(metrics, errors, absent, references, missing, pairs, checks)


def draw(model: GenerativeModel, data: Any, count: int, seed: int, size: int = 1000) -> Tensor:
    """Samples (count, C, H, W), `size` of them at a time. A conditional model draws all classes in turn.

    If the data are binary, samples are draws from p(x | z). If they are grey levels, samples are means of p(x | z), or
    draws if the mean is not known.
    """
    device, parts = device_of(model), []
    means = data.binarization == "none" and has_mean(model.likelihood)
    y = labels(model, torch.arange(count, device=device) % max(model.num_classes, 1))
    with fixed_noise(device, seed):
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            density = model.sample(part.stop - start, None if y is None else y[part])
            parts.append(density.mean if means else density.sample())
    return torch.cat(parts)


@torch.no_grad()
def _features(classifier: Classifier, images: Tensor) -> Tensor:
    """The classifier's features (N, D) of images (N, C, H, W), in [0, 1] or uint8, on its own device."""
    device = classifier.linear.weight.device
    return torch.cat([classifier.features(part.to(device)) for part, _ in batches(images, None)])


@torch.no_grad()
def _accuracy(classifier: Classifier, x: Tensor, y: Tensor) -> float:
    """The share of images x (N, C, H, W) whose class y (N,) is the classifier's."""
    named = torch.cat([classifier(part).argmax(1) for part, _ in batches(x, None)])
    return (named.cpu() == y.cpu()).float().mean().item()


def _copies(samples: Tensor, x: Tensor, training: Tensor) -> tuple[dict[str, float], Tensor]:
    """Distances of samples to training images, and the 32 nearest pairs of sample and image, (32, C, H, 2 W)."""
    distances, index = nearest(samples, training)
    first = distances.argsort()[:32]
    pairs = torch.cat([samples[first].cpu(), training[index[first].cpu()].float().div(255)], dim=-1)
    return memorization(distances, nearest(x[: len(samples)], training)[0]), pairs
