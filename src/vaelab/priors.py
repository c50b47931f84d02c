"""Priors p(z): modules built from latent_dim that return a distribution with batch shape () and the latent as event.

A prior is handed the model's `infer` when it is called: a prior made of posteriors needs the encoder, and the encoder
stands once in the state dict.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal


class StandardNormal(nn.Module):
    """p(z) = N(z; 0, scale^2 I).

    Raises:
        ValueError: the scale is not above zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"the prior's scale must be above zero, got {scale}")
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("std", torch.full((latent_dim,), float(scale)), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> Independent:  # noqa: ARG002
        return Independent(Normal(self.mean, self.std), 1)
