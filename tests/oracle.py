"""A model with closed forms: p(z) = N(0, I), p(x | z) = N(W z + b, sigma^2 I).

    p(x) = N(b, W W' + sigma^2 I),   p(z | x) = N(M^-1 W' (x - b) / sigma^2, M^-1),   M = I + W' W / sigma^2

W has orthogonal columns, so M is diagonal and the project's own parts can represent the exact posterior.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal


@dataclass
class LinearGaussian:
    """The exact model over images of shape (1, 2, 3) with a code of two dimensions."""

    sigma: float = 0.7
    shape: tuple[int, int, int] = (1, 2, 3)
    latent_dim: int = 2

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        n = torch.Size(self.shape).numel()
        basis = torch.linalg.qr(torch.randn(n, self.latent_dim, generator=generator)).Q
        self.W = basis * torch.tensor([2.0, 0.8])
        self.b = torch.randn(n, generator=generator)
        self.M = torch.eye(self.latent_dim) + self.W.T @ self.W / self.sigma**2

    def marginal(self) -> MultivariateNormal:
        n = len(self.b)
        return MultivariateNormal(self.b, self.W @ self.W.T + self.sigma**2 * torch.eye(n))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of images (B, C, H, W): (B,)."""
        return self.marginal().log_prob(x.flatten(1))

    def posterior(self, x: Tensor) -> Distribution:
        mean = torch.linalg.solve(self.M, self.W.T @ (x.flatten(1) - self.b).T / self.sigma**2).T
        return Independent(Normal(mean, self.M.diagonal().rsqrt().expand_as(mean)), 1)

    def images(self, count: int = 50) -> Tensor:
        torch.manual_seed(1)
        return self.marginal().sample((count,)).view(count, *self.shape)

    def vae(self, exact: bool) -> VAE:
        """The model with its exact posterior, or with a random one."""
        torch.manual_seed(2)
        vae = VAE(
            self.latent_dim,
            self.shape,
            encoder=partial(MLPEncoder, hidden=[]),
            posterior=DiagonalGaussian,
            prior=StandardNormal,
            decoder=partial(MLPDecoder, hidden=[]),
            likelihood=Gaussian(scale=self.sigma),
        )
        with torch.no_grad():
            linear = vae.decoder.layers[0]
            linear.weight.copy_(self.W)
            linear.bias.copy_(self.b)
            if exact:
                weight = torch.linalg.solve(self.M, self.W.T / self.sigma**2)
                vae.posterior.linear.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
                vae.posterior.linear.bias.copy_(torch.cat([-weight @ self.b, -self.M.diagonal().log()]))
        return vae
