"""Approximate posteriors: features h of an image -> q(z | x).

Each is a module built from (in_features, latent_dim) that returns a torch.distributions.Distribution with batch
shape (B,) and the latent as its event. Densities are computed in float32, under autocast too.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from vaelab import distributions


class DiagonalGaussian(nn.Module):
    """q(z | x) = N(z; mu(h), diag(sigma^2(h))), with log sigma^2 linear in the features h (B, F).

    Kingma & Welling 2014, https://arxiv.org/abs/1312.6114
    """

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * latent_dim)

    def forward(self, h: Tensor) -> Independent:
        mean, log_variance = self.linear(h).float().chunk(2, dim=-1)  # (B, D) each
        return Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)


class FullCovarianceGaussian(nn.Module):
    """q(z | x) = N(z; mu(h), L L'), with the Cholesky factor L(h) lower triangular and exp(log sigma) on its diagonal.

    Starts as a diagonal Gaussian: the entries below the diagonal start at zero.
    """

    below: Tensor

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * latent_dim)
        self.correlation = nn.Linear(in_features, latent_dim * (latent_dim - 1) // 2)
        nn.init.zeros_(self.correlation.weight)
        nn.init.zeros_(self.correlation.bias)
        self.register_buffer("below", torch.tril_indices(latent_dim, latent_dim, offset=-1), persistent=False)

    def forward(self, h: Tensor) -> MultivariateNormal:
        mean, log_variance = self.linear(h).float().chunk(2, dim=-1)  # (B, D) each
        factor = torch.diag_embed(torch.exp(0.5 * log_variance))
        factor[..., self.below[0], self.below[1]] = self.correlation(h).float()
        return MultivariateNormal(mean, scale_tril=factor)


class PointMass(nn.Module):
    """q(z | x) puts all mass on one point, linear in the features h: the encoder of a plain autoencoder."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, latent_dim)

    def forward(self, h: Tensor) -> distributions.PointMass:
        return distributions.PointMass(self.linear(h).float())
