"""Finite scalar quantisation: each of D channels is squashed to L_d levels and rounded, without a codebook to learn.

    b = tanh(z + s) (L_d - 1)(1 - eps) / 2 - o,     o = 1/2 for even L_d and 0 for odd L_d,     b = 0 at z = 0
    z_q = round(b) / floor(L_d / 2),     k = sum_d (round(b_d) + floor(L_d / 2)) L_1 ... L_{d-1}

The gradient passes the rounding unchanged. There are J = L_1 ... L_D codes, which are all in reach:
Mentzer et al. 2023, https://arxiv.org/abs/2309.15505
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vaelab import checks
from vaelab.errors import UserError
from vaelab.models.quantized import Decoder, QuantizedAutoencoder
from vaelab.models.vae import Encoder

MOST_CODES = 2**16  # the largest number of codes in the paper
EPS = 1e-3  # keeps b away from the values that would round to one level more


class FSQVAE(QuantizedAutoencoder):
    """An autoencoder with finite scalar quantisation: each place of the feature map has D rounded numbers.

    `levels` (L_1, ..., L_D) are whole numbers of at least 3. The objective needs no term for the codes. Raises
    UserError for more than 65,536 codes. Other errors are those of QuantizedAutoencoder.
    """

    sizes: Tensor  # (D,), L_d
    strides: Tensor  # (D,), L_1 ... L_{d-1}

    def __init__(
        self,
        levels: Sequence[int],
        image_shape: Sequence[int],  # (C, H, W)
        encoder: Encoder,  # has a feature map `map_shape`; a 1x1 convolution changes its channels to D
        decoder: Decoder,
        likelihood: nn.Module,
    ) -> None:
        checks.widths(1, levels=levels)
        checks.whole(3, **{f"levels[{i}]": level for i, level in enumerate(levels)})
        count = math.prod(levels)
        if count > MOST_CODES:
            raise UserError(f"levels={list(levels)} make {count:,} codes, and {MOST_CODES:,} are the most: use fewer")
        super().__init__(len(levels), image_shape, encoder, decoder, likelihood)
        sizes = torch.tensor(levels)
        strides = torch.cat([torch.ones(1, dtype=torch.long), sizes.cumprod(0)[:-1]])
        steps = torch.arange(count).unsqueeze(1) // strides % sizes - sizes // 2  # (J, D), whole numbers
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("codebook", steps / (sizes // 2), persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        """b / floor(L_d / 2), (B, D, h, w), which is rounded next. It carries the gradient to the encoder."""
        z = super().embed(x).movedim(1, -1)
        half = (self.sizes - 1) * (1 - EPS) / 2
        offset = 0.5 * (self.sizes % 2 == 0)
        bounded = torch.tanh(z + (offset / half).atanh()) * half - offset
        return (bounded / (self.sizes // 2)).movedim(-1, 1)

    def nearest(self, z: Tensor) -> Tensor:
        half = self.sizes // 2
        return ((z.movedim(1, -1) * half).round().long() + half).mul(self.strides).sum(-1)
