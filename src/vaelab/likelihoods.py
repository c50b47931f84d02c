"""Likelihoods: decoder outputs `parameters` (..., P*C, H, W) -> p(x | z), batch shape (...), event shape (C, H, W).

`num_parameters` is P. Log-probabilities are sums over pixels and are computed in float32, also under autocast.
Constructors raise UserError for an argument out of its range.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vaelab import checks, distributions, pixels
from vaelab.errors import UserError


class Bernoulli(nn.Module):
    """Bernoulli pixels: p(x | z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i), with p = sigmoid(parameters).

    This is a probability of binary pixels only. On grey levels, -log p(x | z) cannot fall below the entropy of the
    pixels (45.5 nats for an MNIST test image), and it does not compare with other likelihoods.
    """

    num_parameters = 1
    compares_as = "Bernoulli"  # also for BernoulliAtMean, because its probabilities are Bernoulli, too

    def forward(self, parameters: Tensor) -> Distribution:
        return pixels.BernoulliImage(td.Bernoulli(logits=distributions.at_least_float32(parameters)), 3)


class BernoulliAtMean(Bernoulli):
    """Bernoulli pixels with a fixed offset of the logits: the logit of the mean training image, clipped to .001-.999.

    It has the same effect as a decoder output bias that starts at this logit. It gains 0.9 nats in the protocol of
    Burda et al. 2016, https://arxiv.org/abs/1509.00519
    """

    offset: Tensor  # (C, H, W), in logits

    def __init__(self, image_shape: Sequence[int]) -> None:  # (C, H, W)
        super().__init__()
        self.register_buffer("offset", torch.zeros(*image_shape))

    def initialize(self, images: Tensor) -> None:
        """Compute the offset from training images (N, C, H, W) in [0, 1]."""
        self.offset.copy_(images.mean(0).clamp(0.001, 0.999).logit())

    def forward(self, parameters: Tensor) -> Distribution:
        return super().forward(distributions.at_least_float32(parameters) + self.offset)


class ContinuousBernoulli(nn.Module):
    """Continuous Bernoulli pixels in [0, 1]: prod_i C(p_i) p_i^x_i (1 - p_i)^(1 - x_i), p = sigmoid(parameters).

    The constant C(p) makes it a density of grey levels, unlike Bernoulli. Its mean is not p. At a large logit l, the
    density falls off like e^(-l x): its scale, in units of x, is 1 / |l|, and at least `floor`. Without a floor, the
    likelihood of a black or white pixel is unbounded. Raises UserError if the floor is out of its range.
    Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    num_parameters = 1

    def __init__(self, floor: float = 1 / 256) -> None:
        super().__init__()
        checks.positive(floor=floor)
        self.floor = floor

    @property
    def compares_as(self) -> str:
        """The floor limits the density of black and white pixels, so it is part of the name."""
        return f"ContinuousBernoulli (a scale of at least {self.floor:.4g})"

    def forward(self, parameters: Tensor) -> Distribution:
        logits = distributions.at_least_float32(parameters).clamp(-1 / self.floor, 1 / self.floor)
        return Independent(pixels.TruncatedExponential(logits), 3)


class DiscretizedLogistic(nn.Module):
    """Probabilities P(x | z) of the 256 grey levels k / 255: a logistic density, integrated over the bin of each level.

    The mean is sigmoid(first parameter). The log scale is the second parameter, at least `min_log_scale`. For n pixels,
    -log P / (n ln 2) is in bits per dimension. Kingma et al. 2016, https://arxiv.org/abs/1606.04934
    """

    num_parameters = 2
    levels = 256

    def __init__(self, min_log_scale: float = -7.0) -> None:
        super().__init__()
        checks.finite(min_log_scale=min_log_scale)
        self.min_log_scale = min_log_scale

    def forward(self, parameters: Tensor) -> Distribution:
        mu, log_scale = distributions.at_least_float32(parameters).chunk(2, dim=-3)
        log_scale = log_scale.clamp(min=self.min_log_scale)
        return Independent(pixels.QuantizedLogistic(mu.sigmoid(), log_scale), 3)


class Autoregressive(nn.Module):
    """Pixels that depend on those before them: p(x | z) = prod_i P(x_i | x_1, ..., x_{i-1}, z), row by row.

    `network` is a factory (categories, channels of the condition) -> network such as PixelCNN, and the condition is the
    decoder's output with `features` channels. There is no E[x | z], so pictures show draws. If the network sees many
    pixels, it needs no code, and the posterior collapses: the variational lossy autoencoder of Chen et al. 2017,
    https://arxiv.org/abs/1611.02731. Raises UserError for images of several channels.
    """

    has_mean = False

    def __init__(
        self,
        image_shape: Sequence[int],  # (1, H, W)
        network: Callable[[int, int], nn.Module],
        features: int = 8,
        levels: int = 2,  # grey levels k / (levels - 1); 2: binary pixels
    ) -> None:
        super().__init__()
        checks.whole(features=features)
        checks.whole(2, levels=levels)
        checks.widths(3, image_shape=image_shape)
        if image_shape[0] != 1:
            raise UserError(
                f"autoregressive pixels have one channel, and image_shape={list(image_shape)}: choose others"
            )
        self.num_parameters, self.levels = features, levels
        self.network = network(levels, features)

    @property
    def compares_as(self) -> str:
        """Binary pixels compare with a Bernoulli likelihood, because both are probabilities of the same images."""
        return "Bernoulli" if self.levels == 2 else f"Autoregressive ({self.levels} grey levels)"

    def forward(self, parameters: Tensor) -> Distribution:
        return pixels.AutoregressiveImage(self.network, distributions.at_least_float32(parameters), self.levels)


class _LocationScale(nn.Module):
    """A location-scale family. The mean is one parameter per pixel ("identity"), or its "sigmoid".

    The scale, in units of x, is a number, "learned" (one trained scalar that starts at 1) or "per_pixel" (the softplus
    of a second parameter per pixel, plus `floor`). Without a floor, the likelihood of a constant pixel is unbounded.
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
        """The class name. It includes the floor, if there is one, because the floor limits the density of a pixel."""
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
    """Gaussian pixels: p(x | z) = N(x; mean, scale^2 I), with mean = parameters or sigmoid(parameters).

    With scale = sqrt(1/2) and n pixels, -log p(x | z) is the summed squared error plus (n/2) log pi. `scale` is a
    number, "learned" or "per_pixel" (above `floor`); `mean` is "identity" or "sigmoid".
    """

    family = Normal


class Laplace(_LocationScale):
    """Laplace pixels: p(x | z) = prod_i exp(-|x_i - mean_i| / scale) / (2 scale). Arguments are those of Gaussian."""

    family = td.Laplace
