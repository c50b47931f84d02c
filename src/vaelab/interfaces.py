"""The optional attributes and methods of models, parts, distributions and data, declared in one place.

A part can be any nn.Module, and a density can be any torch.distributions.Distribution. No attribute in this table is
required. The rest of the package reads each one through the function beside it.

| attribute | of | meaning | function |
|---|---|---|---|
| `initialize(images)` | parts, objectives | sets state from the training images, before the first step | `learners` |
| `made_of_posteriors` | priors | p(z) is a mixture of q(z | u) over images u | `made_of_posteriors` |
| `map_shape` | encoders | (D, h, w) of the feature map that the encoder flattens | `feature_map` |
| `compares_as` | likelihoods | a name; nats compare only between equal names | `likelihood_name` |
| `space` | distributions | the set that samples lie in, in words; R^D by default | `space` |
| `rsample_and_log_prob` | distributions | draws a sample together with its log density | `draws_with_density` |
| `levels` | likelihoods | the number of grey levels, if P(x) is a probability of grey levels | `levels` |
| `has_mean` | likelihoods | False if E[x | z] is not known; pictures then show draws of p(x | z) | `has_mean` |
| `indices(images)` | models | the index of the code at each place, (B, h, w), if codes are quantised | `quantises` |
| `code_prior` | models | p(k) of maps of these indices, or None until train_prior.py has trained it | `code_prior` |
| `num_classes` | priors | the number of classes y of the codes, if they have a class | `classes_of_codes` |
| `factors` | data modules | by split, the factors (N, F) that made the images, whole numbers | `true_factors` |
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, MixtureSameFamily

UNSEEN = -1  # in a training batch, the label of an image whose label training does not see


class GenerativeModel(Protocol):
    """The public interface of every model. Objectives, evaluation, pictures and training use nothing else."""

    latent_dim: int  # D
    image_shape: Size  # (C, H, W)
    num_classes: int  # 0 for a model without labels
    prior: Any  # a function infer -> p(z), or None for a model without a prior
    decoder: nn.Module
    likelihood: nn.Module

    def __call__(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Any: ...  # a Trace or Quantized
    def infer(self, x: Tensor, y: Tensor | None = None) -> Distribution: ...
    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor: ...
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution: ...
    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution: ...
    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...


def labels(model: GenerativeModel, y: Tensor | None) -> Tensor | None:
    """The labels y (B,) if the model takes labels, otherwise None."""
    return y if model.num_classes else None


def classes_of_codes(model: GenerativeModel) -> int:
    """The number of classes that a model's own codes have, or 0. Such a model draws codes of a class without labels."""
    return getattr(model.prior, "num_classes", 0)


def device_of(model: GenerativeModel) -> torch.device:
    """The device of the model's weights."""
    return next(model.parameters()).device


def learners(module: nn.Module) -> list[Any]:
    """The parts of a module with a method `initialize(images)`, images (N, C, H, W) in [0, 1].

    Training calls the method once, before the first step. The state that it sets must be in the part's state dict.
    """
    return [part for part in module.modules() if hasattr(part, "initialize")]


def made_of_posteriors(prior: Any) -> bool:
    """Whether p(z) is a mixture of posteriors q(z | u) of images u alone."""
    return getattr(prior, "made_of_posteriors", False)


def feature_map(encoder: nn.Module) -> Size | None:
    """(D, h, w) of the feature map that an encoder flattens, or None if it has none."""
    return getattr(encoder, "map_shape", None)


def likelihood_name(likelihood: nn.Module) -> str:
    """The name of p(x | z). The nats of two models compare only if their names are equal."""
    return getattr(likelihood, "compares_as", type(likelihood).__name__)


def space(distribution: Distribution) -> str:
    """The set that samples lie in, in words. Densities on different sets do not compare."""
    if isinstance(distribution, MixtureSameFamily):
        return space(distribution.component_distribution)
    return getattr(distribution, "space", f"R^{distribution.event_shape[-1]}")


def lies_on_vectors(distribution: Distribution) -> bool:
    """Whether samples can be any vector of R^D, unlike one-hot vectors or points of a sphere."""
    return space(distribution).startswith("R^")


def draws_with_density(distribution: Distribution) -> bool:
    """Whether a distribution draws a sample together with its log density. Flows do: it is slow to compute later."""
    return hasattr(distribution, "rsample_and_log_prob")


def levels(likelihood: nn.Module) -> int | None:
    """The number of grey levels, or None if p(x) is a density or x is binary."""
    return getattr(likelihood, "levels", None)


def has_mean(likelihood: nn.Module) -> bool:
    """Whether E[x | z] is known."""
    return getattr(likelihood, "has_mean", True)


def image_of(model: GenerativeModel, density: Distribution) -> Tensor:
    """The image that a picture shows of p(x | z): E[x | z], or a draw if the mean is not known."""
    return density.mean if has_mean(model.likelihood) else density.sample()


def name_of_image(model: GenerativeModel, given: str = "") -> str:
    """What `image_of` returns, in words for the title of a picture. `given` is what the density has beside z."""
    return f"E[x | z{given}]" if has_mean(model.likelihood) else f"a draw of p(x | z{given})"


def quantises(model: GenerativeModel) -> bool:
    """Whether the codes of a model are rows of a codebook."""
    return hasattr(model, "indices")


def code_prior(model: GenerativeModel) -> Any:
    """The prior over maps of indices that train_prior.py has trained, or None."""
    return getattr(model, "code_prior", None)


def draws_samples(model: GenerativeModel) -> bool:
    """Whether `model.sample` is offered: the model has a prior over codes or over their indices."""
    return model.prior is not None or code_prior(model) is not None


def true_factors(data: Any, split: str, count: int | None = None) -> Tensor | None:
    """The factors (count, F) of the first images of a split, or of all, or None if they are not known."""
    found = getattr(data, "factors", {}).get(split)
    return None if found is None else found[:count]
