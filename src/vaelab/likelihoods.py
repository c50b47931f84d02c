"""Likelihoods: decoder parameters (..., P*C, H, W) -> p(x | z) with batch shape (...) and event shape (C, H, W).

`num_parameters` is P. Log-probabilities are summed over pixels and computed in float32, under autocast too.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vaelab import checks, distributions


class Bernoulli(nn.Module):
    """p(x | z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i), with p = sigmoid(parameters).

    A density for binary pixels only. On grey levels its "nats" have an entropy floor (45.5 per MNIST test image) and
    compare with no other likelihood's.
    """

    num_parameters = 1
    compares_as = "Bernoulli"  # whatever its logits start at

    def forward(self, parameters: Tensor) -> Distribution:
        return distributions.BernoulliImage(td.Bernoulli(logits=distributions.at_least_float32(parameters)), 3)


class BernoulliAtMean(Bernoulli):
    """A Bernoulli whose logits start at those of the training images' mean, clipped to .001-.999.

    As good as an output bias of the decoder that starts there, and worth 0.9 nat in the protocol of Burda et al. 2016,
    https://arxiv.org/abs/1509.00519
    """

    offset: Tensor  # (C, H, W), in logits

    def __init__(self, image_shape: Sequence[int]) -> None:  # (C, H, W)
        super().__init__()
        self.register_buffer("offset", torch.zeros(*image_shape))

    def initialize(self, images: Tensor) -> None:
        """Start at the mean of the training images (N, C, H, W) in [0, 1]."""
        self.offset.copy_(images.mean(0).clamp(0.001, 0.999).logit())

    def forward(self, parameters: Tensor) -> Distribution:
        return super().forward(distributions.at_least_float32(parameters) + self.offset)


class ContinuousBernoulli(nn.Module):
    """p(x | z) = prod_i C(p_i) p_i^x_i (1 - p_i)^(1 - x_i) on [0, 1], with p = sigmoid(parameters).

    The constant C makes it a density for grey levels, where a Bernoulli is none; its mean is not p.
    Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    num_parameters = 1

    def forward(self, parameters: Tensor) -> Distribution:
        # torch's own limits leave the mean 0.003 off at p = 0.501, a difference of large numbers; these 1e-5
        return Independent(
            td.ContinuousBernoulli(logits=distributions.at_least_float32(parameters), lims=(0.48, 0.52)), 3
        )


class DiscretizedLogistic(nn.Module):
    """P(x | z) of the 256 grey levels k / 255: a logistic density per pixel, integrated over each level's bin.

    Mean mu = sigmoid(first parameter), log scale = second parameter, at least `min_log_scale`. A probability, not a
    density: -log P / (n ln 2) is bits per dimension. Kingma et al. 2016, https://arxiv.org/abs/1606.04934
    """

    num_parameters = 2
    levels = 256

    def __init__(self, min_log_scale: float = -7.0) -> None:
        super().__init__()
        self.min_log_scale = min_log_scale

    def forward(self, parameters: Tensor) -> Distribution:
        mu, log_scale = distributions.at_least_float32(parameters).chunk(2, dim=-3)
        log_scale = log_scale.clamp(min=self.min_log_scale)
        return Independent(distributions.QuantizedLogistic(mu.sigmoid(), log_scale), 3)


class _LocationScale(nn.Module):
    """A location-scale family. The mean is a parameter per pixel, as it is or through a sigmoid.

    The scale, in units of x, is a number, "learned" for one trained scalar that starts at 1, or "per_pixel": a second
    parameter per pixel, through a softplus, above `floor`; without one, constant pixels have unbounded likelihood.
    """

    family: ClassVar[type[Any]]

    def __init__(self, scale: float | str = 1.0, mean: str = "identity", floor: float = 1 / 256) -> None:
        super().__init__()
        checks.one_of(("identity", "sigmoid"), mean=mean)
        if isinstance(scale, str):
            checks.one_of(("a number above zero", "learned", "per_pixel"), scale=scale)
        else:
            checks.positive(scale=scale)
        checks.positive(floor=floor)
        self.mean, self.floor = mean, floor
        self.num_parameters = 2 if scale == "per_pixel" else 1
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.zeros(()))
        elif not isinstance(scale, str):
            self.register_buffer("log_scale", torch.tensor(float(scale)).log(), persistent=False)

    @property
    def compares_as(self) -> str:
        """The floor decides how high the density of a constant pixel can become, so it is part of the name."""
        per_pixel = f" (a scale per pixel, at least {self.floor:.4g})" if self.num_parameters == 2 else ""
        return type(self).__name__ + per_pixel

    def forward(self, parameters: Tensor) -> Distribution:
        parameters = distributions.at_least_float32(parameters)
        if self.num_parameters == 2:
            parameters, raw = parameters.chunk(2, dim=-3)
            scale = F.softplus(raw) + self.floor
        else:
            scale = self.log_scale.exp()
        mean = parameters if self.mean == "identity" else torch.sigmoid(parameters)
        return Independent(self.family(mean, scale), 3)


class Gaussian(_LocationScale):
    """p(x | z) = N(x; mean, scale^2 I), with mean = parameters or sigmoid(parameters).

    With scale = sqrt(1/2), -log p(x | z) is the summed squared error plus (n/2) log pi for n pixels. `scale` is a
    number, "learned" or "per_pixel" (above `floor`), `mean` "identity" or "sigmoid".
    """

    family = Normal


class Laplace(_LocationScale):
    """p(x | z) = prod_i exp(-|x_i - mean_i| / scale) / (2 scale): summed absolute error; arguments as for Gaussian."""

    family = td.Laplace
