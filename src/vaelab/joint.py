"""Posteriors and priors of independent blocks, such as a continuous and a discrete block."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vaelab.distributions import Product
from vaelab.errors import UserError


class Joint(nn.Module):
    """A posterior or prior of independent blocks: p(z) = prod_i p_i(z_i), or the same for q(z | x).

    Its constructor takes the sizes of a posterior or of a prior, the factories `blocks` and their dimensions `dims`.
    Raises UserError unless there is one dimension for each block and their sum is the latent dimension.
    """

    def __init__(self, *sizes: int, blocks: Sequence[Callable[..., nn.Module]], dims: Sequence[int]) -> None:
        super().__init__()
        *in_features, latent_dim = sizes
        if len(dims) != len(blocks) or sum(dims) != latent_dim:
            raise UserError(f"dims={list(dims)}: {len(blocks)} sizes are needed that add up to {latent_dim=}")
        self.blocks = nn.ModuleList(block(*in_features, dim) for block, dim in zip(blocks, dims, strict=True))

    def forward(self, given: Any) -> Product:
        return Product(*(block(given) for block in self.blocks))
