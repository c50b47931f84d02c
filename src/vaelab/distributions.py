"""Distributions that torch.distributions does not have."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import (
    Beta,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
)
from torch.distributions.kl import register_kl

from vaelab.errors import NotOfferedError, UserError

_ONE = Size()  # the shape of a single draw


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision, which autocast returns, to float32 for densities. Float32 and float64 do not change."""
    return x.float() if x.dtype.itemsize < 4 else x


class _Vector(Distribution):
    """A distribution over vectors. It does not validate its arguments, because its callers do."""

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, batch_shape: Size, dim: int) -> None:
        super().__init__(batch_shape, Size((dim,)), validate_args=False)


class Delta(_Vector):
    """All mass at one point (..., D): the posterior of a plain autoencoder.

    It has no density. Its log_prob at the point and its KL divergence to any density are +inf, so its ELBO is -inf.
    """

    has_rsample = True

    def __init__(self, point: Tensor) -> None:
        self.point = point  # (..., D)
        super().__init__(point.shape[:-1], point.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.point

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        return self.point.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where((value == self.point).all(-1), math.inf, -math.inf)


@register_kl(Delta, Distribution)
def _kl_point_mass(p: Delta, q: Distribution) -> Tensor:
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return p.point.sum(-1).expand(shape) * 0 + math.inf


class Categoricals(_Vector):
    """N independent categorical variables of C categories each, one-hot and flattened: event (N*C,).

    With a temperature, samples are relaxed, softmax((logits + Gumbel noise) / temperature). They are differentiable,
    but have no probability: log_prob raises NotOfferedError. Without a temperature, samples are one-hot vectors. The
    KL divergence is that of the one-hot vectors in both cases.
    Jang et al. 2017, https://arxiv.org/abs/1611.01144; Maddison et al. 2017, https://arxiv.org/abs/1611.00712
    """

    def __init__(self, logits: Tensor, temperature: Tensor | float | None = None) -> None:
        self.logits, self.temperature = logits.log_softmax(-1), temperature  # (..., N, C)
        super().__init__(logits.shape[:-2], logits.shape[-2:].numel())

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.temperature is not None

    @property
    def space(self) -> str:
        """The set that samples lie in, in words."""
        return "{} one-hot vectors of {} categories".format(*self.logits.shape[-2:])

    @property
    def mean(self) -> Tensor:
        return self.logits.exp().flatten(-2)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        logits = self.logits.expand(Size(sample_shape) + self.logits.shape)
        noise = -torch.empty_like(logits).exponential_().log()
        if self.temperature is None:
            return F.one_hot((logits + noise).argmax(-1), logits.shape[-1]).to(logits.dtype).flatten(-2)
        return ((logits + noise) / self.temperature).softmax(-1).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self.temperature is not None:
            raise NotOfferedError("a relaxed categorical sample has no probability: use objective=elbo, kl=analytic")
        return (value.unflatten(-1, self.logits.shape[-2:]) * self.logits).sum((-2, -1))


@register_kl(Categoricals, Categoricals)
def _kl_categoricals(p: Categoricals, q: Categoricals) -> Tensor:
    return (p.logits.exp() * (p.logits - q.logits)).sum((-2, -1))


def categorical_sizes(latent_dim: int, num_categories: int) -> tuple[int, int]:
    """(N, C) with N * C = latent_dim. Raises UserError unless C is at least 2 and divides latent_dim."""
    if type(num_categories) is not int or num_categories < 2 or latent_dim % num_categories:
        raise UserError(f"num_categories={num_categories}: a divisor of latent_dim={latent_dim}, at least 2, is needed")
    return latent_dim // num_categories, num_categories


class HypersphericalUniform(_Vector):
    """The uniform density on the unit sphere of R^D, D > 1: p(z) = 1 / area, with area = 2 pi^(D/2) / Gamma(D/2)."""

    space = "the unit sphere"

    def __init__(self, zero: Tensor) -> None:
        self.zero = zero  # (D,), the mean; it also sets D, the dtype and the device
        super().__init__(zero.shape[:-1], zero.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.zero

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.zero.dtype, device=self.zero.device)
        return F.normalize(noise, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        half = self.zero.shape[-1] / 2
        return value[..., 0] * 0 + (math.lgamma(half) - math.log(2) - half * math.log(math.pi))


class PowerSpherical(_Vector):
    """A density around mu on the unit sphere of R^D, D > 1. Sampling needs no rejection.

        p(z) = (1 + mu'z)^kappa / Z,   Z = 2^(a + b) pi^b Gamma(a) / Gamma(a + b),   a = b + kappa,   b = (D - 1) / 2

    `mu` (..., D) is a unit vector and `kappa` (...) is the concentration, above zero. De Cao & Aziz 2020,
    https://arxiv.org/abs/2006.04437
    """

    space = HypersphericalUniform.space
    has_rsample = True

    def __init__(self, mu: Tensor, kappa: Tensor) -> None:
        self.mu, self.kappa = mu, kappa
        self.b = torch.full_like(kappa, (mu.shape[-1] - 1) / 2)
        self.a = self.b + kappa
        super().__init__(kappa.shape, mu.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.mu * ((self.a - self.b) / (self.a + self.b)).unsqueeze(-1)

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        t = 2 * Beta(self.a, self.b).rsample(sample_shape).unsqueeze(-1) - 1  # mu'z
        noise = torch.randn(*shape[:-1], shape[-1] - 1, dtype=self.mu.dtype, device=self.mu.device)
        tangent = F.normalize(noise, dim=-1)
        z = torch.cat([t, (1 - t.square()).clamp(min=1e-12).sqrt() * tangent], dim=-1)  # around the first axis
        first = F.one_hot(torch.zeros((), dtype=torch.long, device=self.mu.device), shape[-1])
        u = F.normalize(first - self.mu, dim=-1)  # the Householder reflection that takes the first axis to mu
        return z - 2 * (z * u).sum(-1, keepdim=True) * u

    def log_prob(self, value: Tensor) -> Tensor:
        return self.kappa * torch.log1p((self.mu * value).sum(-1).clamp(min=-1 + 1e-6)) - self._log_normalizer()

    def entropy(self) -> Tensor:
        a, b = self.a, self.b
        return self._log_normalizer() - self.kappa * (math.log(2) + torch.digamma(a) - torch.digamma(a + b))

    def _log_normalizer(self) -> Tensor:
        a, b = self.a, self.b
        return (a + b) * math.log(2) + b * math.log(math.pi) + torch.lgamma(a) - torch.lgamma(a + b)


@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    return -p.entropy() - q.log_prob(p.mu)


class Product(_Vector):
    """Independent blocks: log p(z) = sum_i log p_i(z_i), where z = (z_1, z_2, ...) concatenates the blocks."""

    def __init__(self, *factors: Distribution) -> None:
        self.factors = factors
        self.sizes = [factor.event_shape[0] for factor in factors]
        super().__init__(factors[0].batch_shape, sum(self.sizes))

    @property
    def space(self) -> str:
        """The set that samples lie in, in words: the sizes of the blocks."""
        return f"blocks of {' + '.join(map(str, self.sizes))} dimensions"

    @property
    def mean(self) -> Tensor:
        return torch.cat([factor.mean for factor in self.factors], dim=-1)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        return torch.cat([factor.sample(sample_shape) for factor in self.factors], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = zip(self.factors, value.split(self.sizes, dim=-1), strict=True)
        return torch.stack([factor.log_prob(part) for factor, part in parts]).sum(0)


def is_factorised(distribution: Any) -> bool:
    """Whether a distribution is a factorised Gaussian, an Independent of Normals."""
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal)


def gaussian_kl(q: Normal, p: Normal) -> Tensor:
    """KL(q || p) = log(s_p / s_q) + (s_q^2 + (mu_q - mu_p)^2) / (2 s_p^2) - 1/2 of each dimension, in nats.

    Torch's own takes the logarithm of s_q^2, which is zero in float32 if log s_q^2 is below -87.
    """
    ratio = q.scale / p.scale
    return 0.5 * (ratio.square() + ((q.loc - p.loc) / p.scale).square() - 1) - ratio.log()


def path_log_prob(q: Distribution, z: Tensor) -> Tensor:
    """log q(z) with a gradient through z only: the parameters of q are held fixed.

    This is the path gradient of Roeder et al. 2017, https://arxiv.org/abs/1703.09194. If z requires no gradient, the
    result is the ordinary log q(z).
    """
    if not z.requires_grad:
        return q.log_prob(z)
    leaf = z.detach().requires_grad_()
    log_q = q.log_prob(leaf)
    (slope,) = torch.autograd.grad(log_q.sum(), leaf)
    return log_q.detach() + (slope * (z - leaf.detach())).sum(-1)


@register_kl(MultivariateNormal, Independent)
def _kl_full_diagonal(p: MultivariateNormal, q: Independent) -> Tensor:
    if not isinstance(q.base_dist, Normal):
        raise NotOfferedError(f"KL({type(p).__name__} || {q}) has no closed form")
    return kl_divergence(p, MultivariateNormal(q.mean, scale_tril=torch.diag_embed(q.stddev)))
