"""What one pass of inference and generation leaves behind: the meeting point of models and objectives.

    log w = log p(x | z) + sum_l [log p(z_l | above) - log q(z_l | x)],      ELBO = E_q[log w]

Shapes, here and in every trailing comment of the package:

    K  importance samples            D  latent dimension           (C, H, W)  image
    B  batch                         F  encoder features           P          likelihood parameters per pixel
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, Normal, kl_divergence

# Densities whose KL has no closed form: it is estimated at the very sample that was drawn. Any other pair without one
# is an error, never an estimate.
ESTIMATED = (MixtureSameFamily,)


class Latent(NamedTuple):
    """One stochastic layer: a reparameterised sample z of q, with the two densities it lies between."""

    z: Tensor  # (K, B, D)
    q: Distribution  # q(z | x, layers above), batch shape broadcasts to (K, B)
    p: Distribution  # p(z | layers above), batch shape broadcasts to (K, B)
    log_q: Tensor  # (K, B), log q(z | x) of this very sample

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (1, B), or (K, B) where q or p depends on a layer above.

        For mixtures it is the estimate log q(z) - log p(z) at this sample, (K, B), whose mean over samples it is.

        Raises:
            NotImplementedError: no closed form is registered for this pair of distributions.
        """
        if isinstance(self.q, ESTIMATED) or isinstance(self.p, ESTIMATED):
            return self.log_q - self.p.log_prob(self.z)
        try:
            return torch.atleast_2d(kl_divergence(self.q, self.p))
        except NotImplementedError:
            pair = f"KL({type(self.q).__name__} || {type(self.p).__name__})"
            raise NotImplementedError(f"{pair} has no closed form here: kl=sample estimates it") from None

    def kl_per_dim(self) -> Tensor:
        """KL of each latent dimension in nats, (1 or K, B, D).

        Raises:
            TypeError: q or p is not a factorised Gaussian, so its KL is no sum over dimensions.
        """
        q, p = self.q, self.p
        if not (isinstance(q, Independent) and isinstance(q.base_dist, Normal)) or not (
            isinstance(p, Independent) and isinstance(p.base_dist, Normal)
        ):
            raise TypeError(
                f"a KL per latent dimension needs factorised Gaussians, got q = {type(q).__name__} and "
                f"p = {type(p).__name__}"
            )
        kl = kl_divergence(q.base_dist, p.base_dist)
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


class Quantized(NamedTuple):
    """One pass of a vector-quantised autoencoder, in place of a Trace: its commitment needs the unquantised code."""

    z_e: Tensor  # (B, D, h, w), the encoder's map
    z_q: Tensor  # (B, D, h, w), the nearest codes; a gradient reaches the codebook, not the encoder
    indices: Tensor  # (B, h, w), of these codes
    likelihood: Distribution  # p(x | z_q): batch (B,), event (C, H, W); its gradient goes straight through to z_e
    codebook: Tensor  # all codes, one a row; requires a gradient unless it learns by moving averages


class GenerativeModel(Protocol):
    """The public face of every model: what objectives, figures and training may know of it."""

    latent_dim: int
    image_shape: torch.Size  # (C, H, W)
    num_classes: int  # 0 for a model without labels
    prior: Callable[..., Distribution]

    def __call__(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace: ...
    def infer(self, x: Tensor, y: Tensor | None = None) -> Distribution: ...
    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor: ...
    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution: ...
    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
