"""Codes of independent blocks, p(z) = prod_i p_i(z_i), such as continuous and discrete ones side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vaelab.distributions import Product
from vaelab.errors import UserError


class Joint(nn.Module):
    """A posterior of posteriors or a prior of priors: built and called as they are, it hands on what it is given.

    Of each block it takes a factory and its dimensions, which add up to the latent dimension.
    """

    def __init__(self, *sizes: int, blocks: Sequence[Callable[..., nn.Module]], dims: Sequence[int]) -> None:
        super().__init__()
        *in_features, latent_dim = sizes
        if len(dims) != len(blocks) or sum(dims) != latent_dim:
            raise UserError(f"dims={list(dims)}: {len(blocks)} sizes are needed that add up to {latent_dim=}")
        self.blocks = nn.ModuleList(block(*in_features, dim) for block, dim in zip(blocks, dims, strict=True))

    def forward(self, given: Any) -> Product:
        return Product(*(block(given) for block in self.blocks))
