"""Approximate posteriors: features h of an image -> q(z | x).

Each is a module built from (in_features, latent_dim) that returns a torch.distributions.Distribution with batch
shape (B,) and the latent as its event. Densities are computed in float32, under autocast too.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal


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
