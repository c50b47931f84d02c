"""PixelCNN: categorical variables at the places of a map, each given those before it in the order of rows.

    p(k | c) = prod_i p(k_i | k_1, ..., k_{i-1}, c_1, ..., c_i),     i = 1, ..., h*w

Masked convolutions hide a place and all later ones. So one pass gives all factors of a map, and a sample takes one pass
for each place: van den Oord et al. 2016, https://arxiv.org/abs/1601.06759; the gates and the condition c are those of
https://arxiv.org/abs/1606.05328. There is one stack of convolutions, so some places above and far to the right stay
hidden from a place (the blind spot of the second paper). The product is still a probability of the map.
"""

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from vaelab import checks
from vaelab.distributions import at_least_float32
from vaelab.errors import UserError


class MaskedConvolution(nn.Conv2d):
    """A convolution (N, C, h, w) -> (N, C', h, w) that sees the places above, those on the left, and perhaps its own.

    Mask A hides the own place, mask B shows it. The weights have `reach` rows above the own one, and no rows below it.
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, reach: int, mask: str) -> None:
        super().__init__(in_channels, out_channels, (reach + 1, 2 * reach + 1))
        visible = torch.ones(reach + 1, 2 * reach + 1)
        visible[-1, reach + (mask == "B") :] = 0
        self.register_buffer("mask", visible, persistent=False)
        self.border = (reach, reach, reach, 0)  # left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.border), self.weight * self.mask, self.bias)


class GatedBlock(nn.Module):
    """h + W (tanh(a) * sigmoid(b)), where a and b are masked convolutions of h plus linear maps of the condition."""

    def __init__(self, channels: int, reach: int, condition: int) -> None:
        super().__init__()
        self.masked = MaskedConvolution(channels, 2 * channels, reach, "B")
        self.given = nn.Conv2d(condition, 2 * channels, 1, bias=False) if condition else None
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        gates = self.masked(h)
        if self.given is not None:
            gates = gates + self.given(condition)
        a, b = gates.chunk(2, dim=1)
        return h + self.mix(a.tanh() * b.sigmoid())


class PixelCNN(nn.Module):
    """Logits of K categories at each place: indices (N, h, w), condition (N, C, h, w) -> (N, K, h, w).

    A masked convolution with mask A comes first, then gated residual blocks. A place depends on places at most `reach`
    rows above it and `reach` columns beside it. Raises UserError for an argument out of its range.
    """

    def __init__(
        self,
        num_categories: int,  # K
        condition: int = 0,  # C, channels of the condition; 0: there is none
        channels: int = 64,  # of the hidden maps
        kernel_size: int = 7,  # of the first convolution, odd; that of the blocks is 3
        num_blocks: int = 4,
    ) -> None:
        super().__init__()
        checks.whole(2, num_categories=num_categories)
        checks.whole(0, condition=condition)
        checks.whole(channels=channels, num_blocks=num_blocks)
        checks.whole(3, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size={kernel_size}: an odd number is needed, because a place is in the middle")
        self.num_categories = num_categories
        self.reach = kernel_size // 2 + num_blocks
        self.embedding = nn.Embedding(num_categories, channels)
        self.first = MaskedConvolution(channels, channels, kernel_size // 2, "A")
        self.blocks = nn.ModuleList(GatedBlock(channels, 1, condition) for _ in range(num_blocks))
        self.output = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, num_categories, 1)
        )

    def forward(self, indices: Tensor, condition: Tensor | None = None) -> Tensor:
        return at_least_float32(self.output(self._features(indices, condition)))

    def _features(self, indices: Tensor, condition: Tensor | None) -> Tensor:
        h = self.first(self.embedding(indices).movedim(-1, 1))
        for block in self.blocks:
            h = block(h, condition)
        return h

    def log_prob(self, indices: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(k | c) of maps (N, h, w) in nats, (N,)."""
        return -F.cross_entropy(self(indices, condition), indices, reduction="none").sum((1, 2))

    @torch.no_grad()
    def sample(self, shape: Size, condition: Tensor | None = None) -> Tensor:
        """Draw maps of indices of the shape (N, h, w), one place after the other.

        Each place is computed from the places within its reach alone, which gives the same logits as whole maps.
        """
        indices = torch.zeros(shape, dtype=torch.long, device=self.embedding.weight.device)
        for row in range(shape[1]):
            rows = slice(max(row - self.reach, 0), row + 1)
            for column in range(shape[2]):
                columns = slice(max(column - self.reach, 0), column + self.reach + 1)
                given = None if condition is None else condition[:, :, rows, columns]
                features = self._features(indices[:, rows, columns], given)
                place = features[:, :, -1:, column - columns.start, None]
                logits = at_least_float32(self.output(place)).flatten(1)  # (N, K)
                indices[:, row, column] = logits.softmax(1).multinomial(1).squeeze(1)
        return indices
