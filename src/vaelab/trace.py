"""The result of one pass of inference and generation. It is the only interface between models and objectives.

    log w = log p(x | z) + sum_l [log p(z_l | layers above) - log q(z_l | x)],      ELBO = E_q[log w]

The shape comments of the whole package use these symbols:

    K  importance samples            D  latent dimension           (C, H, W)  image
    B  batch                         F  encoder features           P          likelihood parameters per pixel
"""

from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, MixtureSameFamily, Normal, kl_divergence

from vaelab.distributions import Product, gaussian_kl, is_factorised
from vaelab.errors import NotOfferedError, PartsError
from vaelab.interfaces import draws_with_density, space
from vaelab.noise import fixed_noise


class Latent(NamedTuple):
    """One stochastic layer or independent block: a sample z of q, and the densities q and p."""

    z: Tensor  # (K, B, D), reparameterised
    q: Distribution  # q(z | x, other layers), batch shape broadcasts to (K, B)
    p: Distribution  # p(z | layers above), batch shape broadcasts to (K, B)
    known_log_q: Tensor | None = None  # (K, B), if q gives it together with z: a flow computes it slowly afterwards
    given_above: bool = True  # False if the layers above were drawn from this z; its KL then has no closed form

    @property
    def log_q(self) -> Tensor:
        """log q(z | x) of this sample, (K, B)."""
        return self.q.log_prob(self.z) if self.known_log_q is None else self.known_log_q

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (1, B), or (K, B) if q or p depends on another layer.

        Flows and mixtures have no closed form. For them the result is log q(z) - log p(z) of this sample, (K, B), which
        is an unbiased estimate. Any other pair without a closed form raises NotOfferedError.
        """
        if not self.given_above or _estimated(self.q) or _estimated(self.p):
            return self.log_q - self.p.log_prob(self.z)
        q: Any = self.q
        p: Any = self.p
        if is_factorised(q) and is_factorised(p):
            return torch.atleast_2d(gaussian_kl(q.base_dist, p.base_dist).sum(-1))
        try:
            return torch.atleast_2d(kl_divergence(q, p))
        except NotImplementedError:
            pair = f"KL({type(self.q).__name__} || {type(self.p).__name__})"
            raise NotOfferedError(f"{pair} has no closed form here: kl=sample estimates it") from None

    def sample_prior(self, count: int) -> Tensor:
        """Samples of p without a gradient, (count, D) for a prior that depends on no other layer.

        They come from `rsample` where p has it. `Normal.sample` looks at values on the CPU, which a CUDA graph forbids.
        """
        with torch.no_grad():
            return self.p.rsample(Size((count,))) if self.p.has_rsample else self.p.sample(Size((count,)))

    def gaussians(self) -> tuple[Normal, Normal]:
        """The factors of q and p, Normals that broadcast to (K, B, D). Raises PartsError if there are none."""
        densities: Any = (self.q, self.p)
        q, p = densities
        if not (is_factorised(q) and is_factorised(p) and self.given_above):
            got = f"q = {type(q).__name__} and p = {type(p).__name__}"
            drawn = "" if self.given_above else ", and the layer above was drawn from this one: use inference=top_down"
            raise PartsError(f"a KL per latent dimension needs factorised Gaussians, got {got}{drawn}")
        return q.base_dist, p.base_dist

    def kl_per_dim(self) -> Tensor:
        """The KL of each latent dimension in nats, (1 or K, B, D). Raises PartsError as `gaussians` does."""
        kl = gaussian_kl(*self.gaussians())
        return kl if kl.dim() == 3 else kl.unsqueeze(0)


def draw(q: Distribution, p: Distribution, shape: Size) -> tuple[Latent, ...]:
    """Draw z ~ q with the sample shape `shape`. The result is one Latent, or one for each block of a Product.

    Raises PartsError if q and p lie on different spaces or consist of different blocks.
    """
    if isinstance(q, Product) and isinstance(p, Product) and q.sizes == p.sizes:
        return tuple(latent for pair in zip(q.factors, p.factors, strict=True) for latent in draw(*pair, shape))
    if space(q) != space(p):
        raise PartsError(f"the posterior lies on {space(q)}, but the prior on {space(p)}: choose both together")
    if isinstance(q, Product):
        raise PartsError("a posterior of blocks needs a prior of the same blocks, such as model/prior=joint")
    if draws_with_density(q):
        z, log_q = q.rsample_and_log_prob(shape)  # type: ignore[attr-defined]
        return (Latent(z, q, p, log_q),)
    return (Latent(q.rsample(shape), q, p),)


def point_estimate(q: Distribution, device: torch.device) -> Tensor:
    """The mean of q, (B, D), or the mean of 64 samples at fixed noise if q has no mean in closed form."""
    try:
        return q.mean
    except NotImplementedError:
        with fixed_noise(device):
            return q.sample(Size((64,))).mean(0)


def _estimated(distribution: Distribution) -> bool:
    """Whether a distribution is a mixture or a flow. Neither has a KL in closed form."""
    return isinstance(distribution, MixtureSameFamily) or draws_with_density(distribution)


class Trace(NamedTuple):
    """All latents of one pass, the top layer first, and the likelihood p(x | z)."""

    latents: tuple[Latent, ...]
    likelihood: Distribution  # p(x | z): batch (K, B), event (C, H, W)

    def log_weight(self, x: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) in nats: images x (B, C, H, W) -> (K, B)."""
        log_w = self.likelihood.log_prob(x)
        for latent in self.latents:
            log_w = log_w + latent.p.log_prob(latent.z) - latent.log_q
        return log_w


class Quantized(NamedTuple):
    """The result of one pass of a vector-quantised autoencoder. It replaces a Trace, because the loss needs z_e."""

    z_e: Tensor  # (B, D, h, w), the encoder's feature map
    z_q: Tensor  # (B, D, h, w), the nearest codes; its gradient reaches the codebook, not the encoder
    indices: Tensor  # (B, h, w), the rows of the codebook that z_q consists of
    likelihood: Distribution  # p(x | z_q): batch (B,), event (C, H, W); its gradient skips z_q and goes to z_e
    codebook: Tensor  # (J, D), all codes; requires a gradient unless the codebook learns by moving averages
