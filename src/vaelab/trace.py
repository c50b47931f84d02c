"""What one pass of inference and generation leaves behind: the meeting point of models and objectives.

    log w = log p(x | z) + sum_l [log p(z_l | above) - log q(z_l | x)],      ELBO = E_q[log w]

Shapes, here and in every trailing comment of the package:

    K  importance samples            D  latent dimension           (C, H, W)  image
    B  batch                         F  encoder features           P          likelihood parameters per pixel
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, Normal, kl_divergence

from vaelab.distributions import Product
from vaelab.errors import NotOfferedError, PartsError


class Latent(NamedTuple):
    """One stochastic layer or independent block: a sample z of q, with the two densities it lies between."""

    z: Tensor  # (K, B, D), reparameterised
    q: Distribution  # q(z | x, other layers), batch shape broadcasts to (K, B)
    p: Distribution  # p(z | layers above), batch shape broadcasts to (K, B)
    known_log_q: Tensor | None = None  # (K, B) where drawing z gave it: an autoregressive flow inverts slowly
    given_above: bool = True  # False if layers above were drawn from this z: then its KL has no closed form

    @property
    def log_q(self) -> Tensor:
        """log q(z | x) of this very sample, (K, B)."""
        return self.q.log_prob(self.z) if self.known_log_q is None else self.known_log_q

    def kl(self) -> Tensor:
        """KL(q || p) in nats, (1, B), or (K, B) where q or p depends on another layer.

        For flows and mixtures it is the estimate log q(z) - log p(z) at this sample, (K, B), whose mean over samples
        it is; any other pair without a closed form is a NotImplementedError, never an estimate.
        """
        if not self.given_above or _estimated(self.q) or _estimated(self.p):
            return self.log_q - self.p.log_prob(self.z)
        try:
            return torch.atleast_2d(kl_divergence(self.q, self.p))
        except NotImplementedError:
            pair = f"KL({type(self.q).__name__} || {type(self.p).__name__})"
            raise NotOfferedError(f"{pair} has no closed form here: kl=sample estimates it") from None

    def gaussians(self) -> tuple[Normal, Normal]:
        """The factors of q and p, batch shapes broadcast to (K, B, D); TypeError if one is no factorised Gaussian."""
        densities: Any = (self.q, self.p)
        q, p = densities
        factorised = all(isinstance(d, Independent) and isinstance(d.base_dist, Normal) for d in densities)
        if not (factorised and self.given_above):
            got = f"q = {type(q).__name__} and p = {type(p).__name__}"
            drawn = "" if self.given_above else " of a layer above that was drawn from it"
            raise PartsError(f"a KL per latent dimension needs factorised Gaussians, got {got}{drawn}")
        return q.base_dist, p.base_dist

    def kl_per_dim(self) -> Tensor:
        """KL of each latent dimension in nats, (1 or K, B, D). Raises TypeError as `gaussians` does."""
        kl = kl_divergence(*self.gaussians())
        return kl if kl.dim() == 3 else kl.unsqueeze(0)


def draw(q: Distribution, p: Distribution, shape: Size) -> tuple[Latent, ...]:
    """Sample z ~ q with `shape` in front of q's batch shape: one Latent, or one for each block of a Product.

    Raises TypeError if q and p lie on different spaces, or consist of different blocks.
    """
    if isinstance(q, Product) and isinstance(p, Product) and q.sizes == p.sizes:
        return tuple(latent for pair in zip(q.factors, p.factors, strict=True) for latent in draw(*pair, shape))
    if _space(q) != _space(p):
        raise PartsError(f"the posterior lies on {_space(q)}, but the prior on {_space(p)}: choose both together")
    if isinstance(q, Product):
        raise PartsError("a posterior of blocks needs a prior of the same blocks, such as model/prior=joint")
    if hasattr(q, "rsample_and_log_prob"):
        z, log_q = q.rsample_and_log_prob(shape)
        return (Latent(z, q, p, log_q),)
    return (Latent(q.rsample(shape), q, p),)


def point_estimate(q: Distribution) -> Tensor:
    """The mean of q, or where it has no closed form, that of 64 samples at noise that is the same each time."""
    try:
        return q.mean
    except NotImplementedError:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(0)
            return q.sample(Size((64,))).mean(0)


def _estimated(distribution: Distribution) -> bool:
    """Mixtures and flows: the densities whose KL has no closed form."""
    return isinstance(distribution, MixtureSameFamily) or hasattr(distribution, "rsample_and_log_prob")


def _space(distribution: Distribution) -> str:
    """Where samples lie: densities on different spaces compare with nothing."""
    if isinstance(distribution, MixtureSameFamily):
        return _space(distribution.component_distribution)
    if isinstance(distribution, Product):
        return f"blocks of {' + '.join(map(str, distribution.sizes))} dimensions"
    return getattr(distribution, "space", f"R^{distribution.event_shape[-1]}")


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
    decoder: torch.nn.Module

    def __call__(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace: ...
    def infer(self, x: Tensor, y: Tensor | None = None) -> Distribution: ...
    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor: ...
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution: ...
    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution: ...
    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution: ...
    def parameters(self) -> Iterator[torch.nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
