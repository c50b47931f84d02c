"""Distributions that torch.distributions lacks."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints, kl_divergence
from torch.distributions.kl import register_kl

_ONE = Size()  # the shape of a single draw


class PointMass(Distribution):
    """All mass at one point: the encoder of a plain autoencoder.

    It has no density: log_prob and the KL divergence to any density are +inf, so that its ELBO is -inf, loudly.
    """

    arg_constraints: ClassVar = {"point": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, point: Tensor, validate_args: bool | None = None) -> None:
        self.point = point  # (..., D)
        super().__init__(point.shape[:-1], point.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.point

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        return self.point.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where((value == self.point).all(-1), math.inf, -math.inf)


@register_kl(PointMass, Distribution)
def _kl_point_mass(p: PointMass, q: Distribution) -> Tensor:
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return p.point.sum(-1).expand(shape) * 0 + math.inf


class DiscretizedLogistic(Distribution):
    """A logistic density of mean mu and scale s, integrated over the 256 bins of width 1/255 around k / 255.

        P(x = k / 255) = sigmoid((x - mu + 1/510) / s) - sigmoid((x - mu - 1/510) / s)

    The first bin reaches to -inf and the last to +inf, so that the 256 probabilities sum to one.
    Salimans et al. 2017, https://arxiv.org/abs/1701.05517, with one component.

    Args:
        mu, log_scale: any broadcastable shapes, in units of x in [0, 1].
    """

    arg_constraints: ClassVar = {"mu": constraints.real, "log_scale": constraints.real}
    support = constraints.unit_interval
    levels = 256

    def __init__(self, mu: Tensor, log_scale: Tensor, validate_args: bool | None = None) -> None:
        self.mu, self.log_scale = torch.broadcast_tensors(mu, log_scale)
        super().__init__(self.mu.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        return DiscretizedLogistic(self.mu.expand(batch_shape), self.log_scale.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The logistic's mean, held inside [0, 1]: for narrow scales the mean over the bins."""
        return self.mu.clamp(0, 1)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, device=self.mu.device).clamp(1e-6, 1 - 1e-6)
            x = self.mu + self.log_scale.exp() * torch.logit(uniform)
            return (x.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        half_bin = 0.5 / (self.levels - 1)
        precision = torch.exp(-self.log_scale)
        upper = (value - self.mu + half_bin) * precision
        lower = (value - self.mu - half_bin) * precision
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), stable in both tails
        width = (2 * half_bin * precision).expand_as(upper)
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        first, last = F.logsigmoid(upper), F.logsigmoid(-lower)
        return torch.where(value < half_bin, first, torch.where(value > 1 - half_bin, last, inside))


def detach(q: Distribution) -> Distribution:
    """q with its parameters held fixed: its density still depends on where it is evaluated, on nothing else.

    Raises:
        NotImplementedError: for other than Gaussian distributions.
    """
    if isinstance(q, Independent):
        return Independent(detach(q.base_dist), q.reinterpreted_batch_ndims)
    if isinstance(q, Normal):
        return Normal(q.loc.detach(), q.scale.detach())
    if isinstance(q, MultivariateNormal):
        return MultivariateNormal(q.loc.detach(), scale_tril=q.scale_tril.detach())
    raise NotImplementedError(f"path gradients hold q fixed, which is not known how to do for a {type(q).__name__}")


@register_kl(MultivariateNormal, Independent)
def _kl_full_diagonal(p: MultivariateNormal, q: Independent) -> Tensor:
    """KL between a full-covariance and a factorised Gaussian: of the mean and of each marginal, less the correlation.

    KL(N(m, S) || N(mu, D)) = 1/2 [tr(D^-1 S) + (mu - m)' D^-1 (mu - m) - d + ln det D - ln det S]
    """
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"no closed form of KL({type(p).__name__} || {q})")
    marginals = kl_divergence(Normal(p.loc, p.variance.sqrt()), q.base_dist).sum(-1)
    log_det = 2 * p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return marginals + 0.5 * (p.variance.log().sum(-1) - log_det)
