"""The maximum mean discrepancy (MMD) between the aggregate posterior q(z) = E_x q(z | x) and the prior p(z).

MMD^2(q, p) = E k(z, z') - 2 E k(z, w) + E k(w, w'),   z, z' ~ q(z) and w, w' ~ p(z) independent
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaelab import checks
from vaelab.errors import UserError
from vaelab.objectives.objective import Objective, defined_terms, only_latent
from vaelab.trace import Trace


def rbf(squared_distance: Tensor, bandwidth: Tensor | float) -> Tensor:
    """The Gaussian kernel exp(-|a - b|^2 / bandwidth)."""
    return (-squared_distance / bandwidth).exp()


def imq(squared_distance: Tensor, bandwidth: Tensor | float) -> Tensor:
    """Inverse multiquadratic kernel: the mean of c / (c + |a - b|^2) over c = bandwidth * (.1, .2, .5, 1, 2, 5, 10)."""
    scales = [bandwidth * factor for factor in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    return torch.stack([scale / (scale + squared_distance) for scale in scales]).mean(0)


Kernel = Callable[[Tensor, Tensor | float], Tensor]
KERNELS: dict[str, Kernel] = {"rbf": rbf, "imq": imq}


def mmd(z: Tensor, w: Tensor, kernel: Kernel, bandwidth: Tensor | float) -> Tensor:
    """The unbiased estimate of MMD^2 from (B, D): Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html"""

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # matrix products lose digits
        return kernel(distance.square(), bandwidth)

    def within(a: Tensor) -> Tensor:
        k = similarity(a, a)
        return (k.sum() - k.diagonal().sum()) / max(len(a) * (len(a) - 1), 1)

    return within(z) + within(w) - 2 * similarity(z, w).mean()


class MMD(Objective):
    """The InfoVAE: loss = distortion + (1 - alpha) * rate + (alpha + weight - 1) * MMD^2(q(z), p(z)).

    The distortion is the reconstruction term and the rate the KL term. Zhao et al. 2019,
    https://arxiv.org/abs/1706.02262. With alpha = 1 it is the Wasserstein autoencoder of Tolstikhin et al. 2018,
    https://arxiv.org/abs/1711.01558, and the posterior may be a point mass. `weight` is the paper's lambda, in nats.
    `kernel` is "rbf" or "imq". `bandwidth` is the squared length scale of the kernel; None is 2 D, the mean |w - w'|^2
    of a standard normal prior. Raises PartsError for several latents.
    """

    alpha: Tensor
    weight: Tensor
    bandwidth: Tensor

    def __init__(
        self, alpha: float = 0.0, weight: float = 1000.0, kernel: str = "rbf", bandwidth: float | None = None
    ) -> None:
        super().__init__()
        checks.one_of(tuple(KERNELS), kernel=kernel)
        checks.number(weight=weight)
        checks.positive(bandwidth=1 if bandwidth is None else bandwidth)
        if not (isinstance(alpha, int | float) and alpha <= 1 and alpha + weight >= 1):
            raise UserError(f"alpha={alpha} and weight={weight}: alpha <= 1 and alpha + weight >= 1 are needed")
        self.hold(alpha=alpha, weight=weight, **({} if bandwidth is None else {"bandwidth": bandwidth}))
        self.kernel, self.has_bandwidth, self.has_rate = KERNELS[kernel], bandwidth is not None, alpha < 1

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        latent = only_latent(trace, self)
        z = latent.z[0]  # (B, D)
        bandwidth = self.bandwidth if self.has_bandwidth else 2.0 * z.shape[-1]
        distance = mmd(z, latent.sample_prior(len(z)), self.kernel, bandwidth)
        terms = defined_terms(trace, x)
        loss = terms["distortion"]
        if self.has_rate:
            loss = loss + (1 - self.alpha) * terms.get("rate", math.inf)  # the rate of a point mass is infinite
        return {"loss": loss + (self.alpha + self.weight - 1) * distance, **terms, "mmd": distance.expand(len(x))}
