"""Distributions of pixels that torch.distributions lacks, or computes with too few digits."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, constraints

from vaelab.errors import NotOfferedError

_ONE = Size()  # the shape of a single draw


class BernoulliImage(Independent):
    """Independent Bernoulli pixels: prod_i p_i^x_i (1 - p_i)^(1 - x_i), p = sigmoid(l), logits l (..., C, H, W)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum over pixels of x l - log(1 + e^l). This form is exact for black pixels and fast under torch.vmap."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.base_dist.logits
        return (value * logits - F.softplus(logits)).sum((-3, -2, -1))


class TruncatedExponential(Distribution):
    """The continuous Bernoulli: p(x) = l e^(l x) / (e^l - 1) for x in [0, 1], with logits l of any shape.

    With h = l / 2 and g(h) = log(sinh(h) / h), log p(x) = (x - 1/2) l - g(h), and the mean is 1/2 + g'(h) / 2. Torch's
    own class clamps its probabilities, which makes density, mean and samples wrong for |l| > 16.
    Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        h = self.logits / 2
        small = h.abs() < 0.5  # the closed form is a difference of large numbers there
        safe = torch.where(small, 1.0, h)
        slope = torch.where(small, h / 3 - h**3 / 45 + 2 * h**5 / 945 - h**7 / 4725, 1 / safe.tanh() - 1 / safe)
        return (0.5 + slope / 2).clamp(0, 1)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        """The inverse of the distribution function at uniform numbers, of |l|, and mirrored if l is negative."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            rate = self.logits.abs().clamp(min=1e-3)  # below, the density is uniform to three digits
            x = 1 + torch.log(uniform + (1 - uniform) * torch.exp(-rate)) / rate
            return torch.where(self.logits < 0, 1 - x, x).clamp(0, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        h = self.logits.abs() / 2
        small = h < 0.1
        safe = torch.where(small, 1.0, h)
        log_ratio = torch.where(
            small, h**2 / 6 - h**4 / 180 + h**6 / 2835, safe + torch.log1p(-torch.exp(-2 * safe)) - torch.log(2 * safe)
        )
        return (value - 0.5) * self.logits - log_ratio


_LEVELS = 256  # grey levels k / 255


class QuantizedLogistic(Distribution):
    """A logistic density of mean mu and scale s, integrated over the 256 bins of width 1/255 around k / 255.

        P(x = k / 255) = sigmoid((x - mu + 1/510) / s) - sigmoid((x - mu - 1/510) / s)

    The first bin starts at -inf and the last ends at +inf, so the 256 probabilities sum to one. `mu` and `log_scale`
    = log s have shapes that broadcast; mu and s are in units of x. This is the likelihood of Salimans et al. 2017,
    https://arxiv.org/abs/1701.05517, with one mixture component.
    """

    arg_constraints: ClassVar = {"mu": constraints.real, "log_scale": constraints.real}
    support = constraints.unit_interval

    def __init__(self, mu: Tensor, log_scale: Tensor, validate_args: bool | None = None) -> None:
        self.mu, self.log_scale = torch.broadcast_tensors(mu, log_scale)
        super().__init__(self.mu.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean of a logistic variable that is clamped to [0, 1], s log((1 + e^(mu/s)) / (1 + e^((mu-1)/s))).

        It differs from the mean over the grey levels by less than half a grey level, and much less if s > 1/255.
        """
        scale = self.log_scale.exp()
        wide = scale > 30  # there the closed form is a difference of large numbers
        safe = torch.where(wide, 1.0, scale)
        narrow = safe * (F.softplus(self.mu / safe) - F.softplus((self.mu - 1) / safe))
        return torch.where(wide, torch.sigmoid((self.mu - 0.5) / scale), narrow)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.mu.dtype, device=self.mu.device).clamp(1e-6, 1 - 1e-6)
            x = self.mu + self.log_scale.exp() * torch.logit(uniform)
            return (x.clamp(0, 1) * (_LEVELS - 1)).round() / (_LEVELS - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        half_bin = 0.5 / (_LEVELS - 1)
        precision = torch.exp(-self.log_scale)
        upper = (value - self.mu + half_bin) * precision
        lower = (value - self.mu - half_bin) * precision
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), stable in both tails
        width = (2 * half_bin * precision).expand_as(upper)
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        first, last = F.logsigmoid(upper), F.logsigmoid(-lower)
        return torch.where(value < half_bin, first, torch.where(value > 1 - half_bin, last, inside))


class AutoregressiveImage(Distribution):
    """Grey levels k / (L - 1), each given those before it: p(x) = prod_i P(x_i | x_1, ..., x_{i-1}, c), L = levels.

    `network` has the methods `log_prob(indices, c)` and `sample(shape, c)` of maps of indices k (N, H, W), and c
    (..., F, H, W) is its condition. The event is an image (1, H, W). A value between two levels has the probability 0.
    A sample takes a pass for each pixel. The mean over all images is not known.
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.unit_interval, 3)

    def __init__(self, network: Any, condition: Tensor, levels: int) -> None:
        self.network, self.condition, self.levels = network, condition, levels
        super().__init__(condition.shape[:-3], Size((1, *condition.shape[-2:])), validate_args=False)

    @property
    def mean(self) -> Tensor:
        raise NotOfferedError("the mean of autoregressive pixels is a sum over all images: draw samples instead")

    def log_prob(self, value: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        x = value.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape[1:])  # (N, H, W)
        indices = (x * (self.levels - 1)).round()
        log_p = self.network.log_prob(indices.long(), self._rows(batch))
        between = (x * (self.levels - 1) - indices).abs().amax((1, 2)) > 1e-3
        return log_p.masked_fill(between, -torch.inf).view(batch)

    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        batch = Size(sample_shape) + self.batch_shape
        indices = self.network.sample(Size((batch.numel(), *self.event_shape[1:])), self._rows(batch))
        return indices.to(self.condition.dtype).div(self.levels - 1).view(*batch, *self.event_shape)

    def _rows(self, batch: Size) -> Tensor:
        """The condition of each image of a batch, (N, F, H, W)."""
        return self.condition.expand(*batch, *self.condition.shape[-3:]).reshape(-1, *self.condition.shape[-3:])
