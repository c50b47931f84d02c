"""What one pass of inference and generation leaves behind: the meeting point of models and objectives.

    log w = log p(x | z) + sum_l [log p(z_l | above) - log q(z_l | x)],      ELBO = E_q[log w]

Shapes, here and in every trailing comment of the package:

    K  importance samples            D  latent dimension           (C, H, W)  image
    B  batch                         F  encoder features           P          likelihood parameters per pixel
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence


class Latent(NamedTuple):
    """One stochastic layer: a reparameterised sample z of q, with the two densities it lies between."""

    z: Tensor  # (K, B, D)
    q: Distribution  # q(z | x, layers above), batch shape broadcasts to (K, B)
    p: Distribution  # p(z | layers above), batch shape broadcasts to (K, B)
    log_q: Tensor  # (K, B), log q(z | x) of this very sample

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (1, B), or (K, B) where q or p depends on a layer above.

        Raises:
            NotImplementedError: no closed form is registered for this pair of distributions.
        """
        return torch.atleast_2d(kl_divergence(self.q, self.p))

    def kl_per_dim(self) -> Tensor:
        """KL of each latent dimension in nats, (1 or K, B, D).

        Raises:
            TypeError: q or p is not a factorised Gaussian, so its KL is no sum over dimensions.
        """
        if not (_factorised(self.q) and _factorised(self.p)):
            raise TypeError(
                f"a KL per latent dimension needs factorised Gaussians, got q = {type(self.q).__name__} and "
                f"p = {type(self.p).__name__}"
            )
        kl = kl_divergence(self.q.base_dist, self.p.base_dist)
        return kl if kl.dim() == 3 else kl.unsqueeze(0)


class Trace(NamedTuple):
    """All latents of one pass (top layer first) and the likelihood they lead to."""

    latents: tuple[Latent, ...]
    likelihood: Distribution  # p(x | z): batch (K, B), event (C, H, W)

    def log_weight(self, x: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) in nats: images x (B, C, H, W) -> (K, B)."""
        log_w = self.likelihood.log_prob(x)
        for latent in self.latents:
            log_w = log_w + latent.p.log_prob(latent.z) - latent.log_q
        return log_w


def _factorised(d: Distribution) -> bool:
    return isinstance(d, Independent) and isinstance(d.base_dist, Normal)
