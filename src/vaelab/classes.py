"""Densities of codes that have a class y, one of C: p(y) p(z | y), with a Gaussian p(z | y) for each class.

    ClassMixture: the code is z alone              p(z) = sum_y p(y) p(z | y)
    Labelled: the code is (z, y), y one-hot        p(z, y) = p(y) p(z | y)

Both hold p(y) as `mixture_distribution`, batch shape (...), and p(z | y) as `component_distribution`, batch shape
(..., C), event shape (D,), like torch's MixtureSameFamily. An objective sums over all classes, because no gradient
reaches p(y) through a sample of y.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, constraints, kl_divergence
from torch.distributions.kl import register_kl

from vaelab import checks
from vaelab.distributions import gaussian_kl, is_factorised
from vaelab.errors import PartsError, UserError

_ONE = Size()  # the shape of a single draw


class WithClasses(Distribution):
    """What both densities have: samples of each class, and of given classes."""

    mixture_distribution: Categorical
    component_distribution: Distribution

    def code(self, z: Tensor, y: Tensor) -> Tensor:
        """The code of vectors z (..., D) and their classes y (...)."""
        return z

    def of_each_class(self) -> Tensor:
        """A code for each class, with a gradient: (C, ..., event)."""
        z = self.component_distribution.rsample().movedim(-2, 0)  # (C, ..., D)
        y = torch.arange(len(z), device=z.device).view(-1, *[1] * (z.dim() - 2))
        return self.code(z, y.expand(z.shape[:-1]))

    def of_classes(self, y: Tensor) -> Tensor:
        """A code of each class y (N,), from a density of batch shape (): (N, event)."""
        z = self.component_distribution.sample(y.shape)  # (N, C, D): all classes are drawn, and one is kept
        return self.code(z[torch.arange(len(y), device=y.device), y], y)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        """The same as `sample`. Raises PartsError where gradients are computed, because a sample has none."""
        if torch.is_grad_enabled():
            raise PartsError("a code with a class has no gradient through a sample: use objective=m2, or torch.no_grad")
        return self.sample(sample_shape)


class ClassMixture(WithClasses, MixtureSameFamily):
    """The density of z alone, a mixture: event shape (D,)."""


class Labelled(WithClasses):
    """The density of z and its class y, one-hot, as one vector (z, y): event shape (D + C,)."""

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, mixture: Categorical, components: Distribution) -> None:
        self.mixture_distribution, self.component_distribution = mixture, components
        self.sizes = [components.event_shape[0], mixture.logits.shape[-1]]  # D, C
        super().__init__(mixture.batch_shape, Size((sum(self.sizes),)), validate_args=False)

    @property
    def space(self) -> str:
        """The set that samples lie in, in words."""
        return "vectors of {} dimensions with one of {} classes".format(*self.sizes)

    @property
    def mean(self) -> Tensor:
        probs = self.mixture_distribution.probs
        return torch.cat([(probs.unsqueeze(-1) * self.component_distribution.mean).sum(-2), probs], dim=-1)

    def code(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.cat([z, F.one_hot(y, self.sizes[1]).to(z.dtype)], dim=-1)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        y = self.mixture_distribution.sample(sample_shape)  # (...)
        z = self.component_distribution.sample(sample_shape)  # (..., C, D)
        return self.code(z.gather(-2, y[..., None, None].expand(*y.shape, 1, self.sizes[0])).squeeze(-2), y)

    def log_prob(self, value: Tensor) -> Tensor:
        z, y = value.split(self.sizes, dim=-1)
        each = self.mixture_distribution.logits + self.component_distribution.log_prob(z.unsqueeze(-2))  # (..., C)
        return (y * each).sum(-1)


def kl_of_each_class(q: WithClasses, p: WithClasses) -> Tensor:
    """KL(q(z | y) || p(z | y)) in nats for each class y, (..., C)."""
    pair: tuple[Any, Any] = (q.component_distribution, p.component_distribution)
    if all(map(is_factorised, pair)):
        return gaussian_kl(*(each.base_dist for each in pair)).sum(-1)
    return kl_divergence(*pair)


@register_kl(Labelled, Labelled)
def _kl_labelled(q: Labelled, p: Labelled) -> Tensor:
    """KL(q(y) || p(y)) + sum_y q(y) KL(q(z | y) || p(z | y)), in nats."""
    log_ratio = q.mixture_distribution.logits - p.mixture_distribution.logits
    return (q.mixture_distribution.probs * (log_ratio + kl_of_each_class(q, p))).sum(-1)


def density_and_dim(latent_dim: int, num_classes: int, in_code: bool) -> tuple[type, int]:
    """The type of density of a code, and the dimensions of z. Raises UserError unless at least one is left."""
    checks.whole(num_classes=num_classes)
    checks.one_of((True, False), in_code=in_code)
    if in_code and latent_dim <= num_classes:
        least = f"latent_dim counts the {num_classes} entries of the class, so that it is at least {num_classes + 1}"
        raise UserError(f"latent_dim={latent_dim}: {least}, or in_code=false")
    return (Labelled, latent_dim - num_classes) if in_code else (ClassMixture, latent_dim)
