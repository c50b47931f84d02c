"""Importance-weighted bounds, with log w_k = log p(x, z_k) - log q(z_k | x) for K samples z_k ~ q:

    ELBO = E[mean_k log w_k]  <=  E[log mean_k w_k]  <=  log p(x)

The bound in the middle rises with K. Each objective has loss = -bound and also reports `elbo`, `rate` (the KL term) and
`distortion` (the reconstruction term) of the same samples.
"""

import math

import torch
from torch import Tensor

from vaelab import checks
from vaelab.distributions import path_log_prob
from vaelab.errors import UserError
from vaelab.objectives.objective import Objective, only_latent
from vaelab.trace import Trace


def log_mean_exp(log_w: Tensor, dim: int) -> Tensor:
    """The logarithm of the mean of exp(log_w) over the axis `dim`."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


class IWAE(Objective):
    """The IWAE: bound = log 1/K sum_k w_k, K = num_samples. Burda et al. 2016, https://arxiv.org/abs/1509.00519"""

    def __init__(self, num_samples: int = 50) -> None:
        super().__init__()
        checks.whole(num_samples=num_samples)
        self.num_samples = num_samples

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        log_w = self.log_weight(trace, x)  # (K, B)
        bound = self.bound(log_w)
        elbo, distortion = log_w.detach().mean(0), -trace.likelihood.log_prob(x).detach().mean(0)
        return {"loss": -bound, "bound": bound, "elbo": elbo, "rate": -elbo - distortion, "distortion": distortion}

    def log_weight(self, trace: Trace, x: Tensor) -> Tensor:
        """log w_k of each image, (K, B)."""
        return trace.log_weight(x)

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound of each image, (B,), from log w (K, B)."""
        return log_mean_exp(log_w, 0)


class DReG(IWAE):
    """The IWAE bound with the doubly reparameterised gradient of q's parameters, sum_k v_k^2 dlog w_k/dz_k dz_k/dphi.

    v_k = w_k / sum_j w_j. The signal-to-noise ratio of this gradient grows with K, but that of IWAE falls. Raises
    UserError for several stochastic layers, where it is biased. Tucker et al. 2019, https://arxiv.org/abs/1810.04152
    """

    def log_weight(self, trace: Trace, x: Tensor) -> Tensor:
        if len(trace.latents) > 1:
            raise UserError(f"DReG is biased for the {len(trace.latents)} layers of this model: use objective=iwae")
        z, q, p = trace.latents[0][:3]
        log_w = trace.likelihood.log_prob(x) + p.log_prob(z) - path_log_prob(q, z)
        if z.requires_grad:
            v = log_w.detach().softmax(0).unsqueeze(-1)  # (K, B, 1)
            z.register_hook(lambda gradient: gradient * v)
        return log_w


class MIWAE(IWAE):
    """The mean of M = num_bounds IWAE bounds of K = num_samples samples each: bound = 1/M sum_m log 1/K sum_k w_mk.

    Rainforth et al. 2018, https://arxiv.org/abs/1802.04537
    """

    def __init__(self, num_bounds: int = 8, num_samples: int = 8) -> None:
        checks.whole(num_bounds=num_bounds, num_samples=num_samples)
        super().__init__(num_bounds * num_samples)
        self.num_bounds = num_bounds

    def bound(self, log_w: Tensor) -> Tensor:
        return log_mean_exp(log_w.unflatten(0, (self.num_bounds, -1)), 1).mean(0)


class PIWAE(MIWAE):
    """PIWAE trains the decoder like IWAE with M * K samples, and the encoder like MIWAE with M bounds of K samples.

    `bound` is that of IWAE. A bound over 60 nats below the best has too small a gradient, due to the range of float32.
    Raises PartsError for several latents. Rainforth et al. 2018, https://arxiv.org/abs/1802.04537
    """

    bound = IWAE.bound

    def log_weight(self, trace: Trace, x: Tensor) -> Tensor:
        """log w, (K, B). The gradient of the IWAE bound of these log w is that of MIWAE for q's parameters.

        The MIWAE weight of a sample is its IWAE weight times a ratio, which is equal within its group of K samples. A
        hook multiplies the gradient through z by the ratio; a factor multiplies the direct gradient of log q.
        """
        z, q, p = only_latent(trace, self)[:3]
        if not z.requires_grad:
            return trace.log_weight(x)
        with torch.no_grad():
            groups = trace.log_weight(x).unflatten(0, (self.num_bounds, -1))  # (M, K, B)
        log_ratio = groups.flatten(0, 1).logsumexp(0) - groups.logsumexp(1, keepdim=True) - math.log(self.num_bounds)
        # Above e^60, the IWAE weight is almost zero in float32, and so is the product
        ratio = log_ratio.clamp(max=60).exp().expand_as(groups).flatten(0, 1)  # (M*K, B)
        z.register_hook(lambda gradient: gradient * ratio.unsqueeze(-1))
        own = q.log_prob(z.detach())
        log_q = path_log_prob(q, z) + ratio * (own - own.detach())
        return trace.likelihood.log_prob(x) + p.log_prob(z) - log_q


class CIWAE(IWAE):
    """CIWAE: bound = beta ELBO + (1 - beta) IWAE. Rainforth et al. 2018, https://arxiv.org/abs/1802.04537"""

    beta: Tensor

    def __init__(self, beta: float = 0.05, num_samples: int = 64) -> None:
        super().__init__(num_samples)
        checks.share(beta=beta)
        self.hold(beta=beta)

    def bound(self, log_w: Tensor) -> Tensor:
        return self.beta * log_w.mean(0) + (1 - self.beta) * log_mean_exp(log_w, 0)


class Renyi(IWAE):
    """The Rényi bound 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha): Li & Turner 2016, https://arxiv.org/abs/1602.02311

    alpha = 0 is IWAE, alpha -> 1 is the sampled ELBO; 1 itself raises UserError. If alpha < 0, it is not a lower bound.
    """

    alpha: Tensor

    def __init__(self, alpha: float = 0.5, num_samples: int = 50) -> None:
        super().__init__(num_samples)
        checks.finite(alpha=alpha)
        if alpha == 1:
            raise UserError("alpha=1: a number other than 1 is needed; 1 is objective=elbo objective.kl=sample")
        self.hold(alpha=alpha)

    def bound(self, log_w: Tensor) -> Tensor:
        return log_mean_exp((1 - self.alpha) * log_w, 0) / (1 - self.alpha)
