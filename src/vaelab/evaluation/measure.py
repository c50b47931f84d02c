"""All figures of a model on test images, with the protocol without which they mean nothing."""

import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vaelab import checks
from vaelab.errors import NotOfferedError, UserError
from vaelab.evaluation.gaps import NUM_SAMPLES, STEPS, refine
from vaelab.evaluation.latent import latent_statistics
from vaelab.evaluation.likelihood import exact_log_likelihood, importance_weighted
from vaelab.evaluation.memorization import memorization, nearest
from vaelab.evaluation.representation import representation
from vaelab.trace import GenerativeModel

PROBED = 10_000  # training images that probes learn from, and whose ELBO is set against the test images'
TRAIN_SAMPLES = 100  # of each of them
REFINED = 1000  # test images whose q(z | x) is refined
LOW_ESS = 10  # effective samples, below which the log p(x) of an image is likely to be nats too low
DRAWN = 1000  # samples, and test images, whose nearest training images are looked for


class Measurement(NamedTuple):
    """What `measure` found out."""

    record: dict[str, Any]  # plain data: protocol, figures, standard errors over images, why others are absent
    codes: Tensor  # (N, D), of the test images
    pairs: Tensor | None  # (32, C, H, 2 W): the samples nearest to a training image, each beside that image


def protocol(model: GenerativeModel, data: Any, num_samples: int, num_images: int | None, seed: int) -> dict[str, Any]:
    """What the figures of two models have to share to be compared; num_images=None takes all test images.

    Raises ValueError for numbers out of range.
    """
    images = len(data.splits["test"][1])
    checks.whole(num_samples=num_samples)
    checks.whole(2, num_images=images if num_images is None else num_images)  # a standard error needs two
    checks.whole(0, seed=seed)
    if num_images is not None and num_images > images:
        raise UserError(f"num_images={num_images}, but {data.name} has {images:,} test images")
    return {
        "dataset": data.name,
        "train_images": len(data.splits["train"][1]),
        "test_images": num_images or images,
        "binarization": data.protocol["binarization"]["test"],
        "likelihood": _likelihood(model, data),
        "num_samples": num_samples,
        "seed": seed,
        "vaelab": version("vaelab"),
    }


@torch.no_grad()
def measure(
    model: GenerativeModel, data: Any, num_samples: int = 5000, num_images: int | None = None, seed: int = 0
) -> Measurement:
    """Measure a model on the first `num_images` test images of a set-up data module; bars show the time left.

    `num_samples` is the K of log p(x). A figure that a model has not is absent, with the reason.
    """
    started = time.perf_counter()
    agreed = protocol(model, data, num_samples, num_images, seed)
    x, y = _inputs(model, *data.images("test", agreed["test_images"]))
    train_x, train_y = _inputs(model, *data.images("train"))
    probed = train_x[:PROBED], None if train_y is None else train_y[:PROBED]
    classes, train_classes = data.splits["test"][1][: len(x)], data.splits["train"][1][:PROBED]

    per_image, absent = _densities(model, x, y, num_samples, seed)
    exact = exact_log_likelihood(model, x)
    if exact is not None:
        per_image["exact_log_likelihood"] = exact
    per_image["squared_error"] = _batched(
        lambda *xy: (model.reconstruct(*xy).mean - xy[0]).square().sum((1, 2, 3)), x, y
    )
    figures = {name: values.mean().item() for name, values in per_image.items()}
    errors = {name: _standard_error(values) for name, values in per_image.items()}
    if "elbo" in figures:
        with _bar("ELBO of training images", len(probed[0]), "image") as bar:
            trained = importance_weighted(model, *probed, TRAIN_SAMPLES, seed, bar.update)
        figures["generalization_gap"] = trained.elbo.mean().item() - figures["elbo"]
        errors["generalization_gap"] = math.hypot(_standard_error(trained.elbo), errors["elbo"])

    with _bar("latent space", 1, "part"):
        latent = latent_statistics(model, x, y, seed=seed)
        learned = representation(_batched(model.encode, *probed), train_classes, latent.codes, classes)
        figures = latent.figures | learned | figures
    pairs = None
    try:
        drawn, pairs = _samples(model, data, x, train_x, seed)
        figures |= drawn
    except NotOfferedError as error:
        absent["sample_distance"] = str(error)
    for name in [name for name, value in figures.items() if not math.isfinite(value)]:
        absent[name] = f"it is {figures.pop(name)}"
        errors.pop(name, None)

    record = {
        "protocol": agreed,
        "figures": figures,
        "standard_errors": errors,
        "absent": absent | latent.absent,
        "rate_per_dim": None if latent.rates is None else latent.rates.tolist(),
        "variance_per_dim": latent.variances.tolist(),
        "collapse": latent.collapse(),
        "seconds": round(time.perf_counter() - started, 1),
        "device": str(x.device),
    }
    return Measurement(record, latent.codes.cpu(), pairs)


def _densities(
    model: GenerativeModel, x: Tensor, y: Tensor | None, num_samples: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Figures of each image, (N,) or of the first so many, that need p(x, z) and q(z | x), and why some are absent."""
    try:
        with _bar("log p(x)", len(x), "image") as bar:
            estimate = importance_weighted(model, x, y, num_samples, seed, bar.update)
    except NotOfferedError as error:
        return {}, {"log_likelihood": str(error)}
    figures = {**estimate._asdict(), "inference_gap": estimate.log_likelihood - estimate.elbo}
    figures["low_ess_share"] = (estimate.ess < min(LOW_ESS, num_samples)).double()
    if getattr(_pixel_density(model, x, y), "levels", None) == 256:
        figures["bits_per_dim"] = -estimate.log_likelihood / (x[0].numel() * math.log(2))
    few = x[:REFINED], None if y is None else y[:REFINED]
    try:
        with _bar("refining q(z | x)", STEPS + NUM_SAMPLES, "step") as bar:
            before, after = refine(model, *few, seed=seed, progress=bar.update)
    except UserError as error:
        return figures, {"amortization_gap": str(error)}
    figures["amortization_gap"] = (after - before).double()
    figures["approximation_gap"] = estimate.log_likelihood[: len(after)] - after
    return figures, {}


def _samples(model: Any, data: Any, x: Tensor, train_x: Tensor, seed: int) -> tuple[dict[str, float], Tensor]:
    """How near samples lie to training images, and the 32 that lie nearest, beside that image: (32, C, H, 2 W).

    Of binary data, samples are draws from p(x | z), as the images are; of grey levels they are its means.
    """
    y = torch.arange(DRAWN, device=x.device) % model.num_classes if model.num_classes else None
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        density = model.sample(DRAWN, y)
        samples = density.mean if data.binarization == "none" else density.sample()
    distances, index = nearest(samples, train_x)
    first = distances.argsort()[:32]
    pairs = torch.cat([samples[first], train_x[index[first]]], dim=-1).cpu()
    return memorization(distances, nearest(x[:DRAWN], train_x)[0]), pairs


def _inputs(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """Images and labels on the model's device; labels for a model that is conditioned on them."""
    device = next(model.parameters()).device
    return x.to(device), y.to(device) if model.num_classes else None


def _likelihood(model: GenerativeModel, data: Any) -> str:
    """The name of p(x | z), and what else keeps its nats from comparing with those of the same name."""
    name = type(_pixel_density(model, *_inputs(model, *data.images("test", 1)))).__name__
    if name == "Bernoulli" and data.binarization == "none":
        name = "Bernoulli (on grey levels no density)"
    likelihood: Any = getattr(model, "likelihood", None)
    if getattr(likelihood, "num_parameters", 1) == 2 and hasattr(likelihood, "floor"):
        name = f"{name} (a scale per pixel, at least {likelihood.floor:.4g})"
    return f"class-conditional {name}" if model.num_classes else name


def _pixel_density(model: GenerativeModel, x: Tensor, y: Tensor | None) -> Any:
    """p(x | z) of one pixel, for what kind of density it is."""
    density = model.reconstruct(x[:1], None if y is None else y[:1])
    return getattr(density, "base_dist", density)


def _standard_error(values: Tensor) -> float:
    """Of the mean over images."""
    return (values.std() / len(values) ** 0.5).item()


def _batched(function: Callable[..., Tensor], x: Tensor, y: Tensor | None) -> Tensor:
    """A function of images and labels, 1,000 images at a time."""
    labels = [None] * len(x) if y is None else y.split(1000)
    return torch.cat([function(*batch) for batch in zip(x.split(1000), labels, strict=False)])


def _bar(name: str, total: int, unit: str) -> tqdm:
    """A bar with the time left, on a terminal."""
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=None)
