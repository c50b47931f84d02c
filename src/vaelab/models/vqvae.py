"""The vector-quantised autoencoder: z_q(x) = e_k, k = argmin_j ||z_e(x) - e_j||, at each place of a feature map.

    N_j <- decay N_j + (1 - decay) n_j,     m_j <- decay m_j + (1 - decay) sum_{k = j} z_e,     e_j = m_j / N_j

n_j is the number of places in the batch with k = j. These moving averages are appendix A.1 of
van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab import checks
from vaelab.models.quantized import Decoder, QuantizedAutoencoder
from vaelab.models.vae import Encoder
from vaelab.trace import Quantized


class VQVAE(QuantizedAutoencoder):
    """A VQ-VAE: each place of the encoder's feature map takes the nearest of J codes of dimension D.

    If the moving count N_j of a code is small, the code restarts at a random encoder output of the batch: Dhariwal et
    al. 2020, https://arxiv.org/abs/2005.00341. Errors are those of QuantizedAutoencoder.
    """

    usage: Tensor  # (J,), N_j, the number of places per batch

    def __init__(
        self,
        embedding_dim: int,  # D
        num_embeddings: int,  # J
        image_shape: Sequence[int],  # (C, H, W)
        encoder: Encoder,  # has a feature map `map_shape`; a 1x1 convolution changes its channels to D
        decoder: Decoder,
        likelihood: nn.Module,
        codebook: str = "ema",  # moving averages of encoder outputs, or "gradient": trained by the objective
        decay: float = 0.99,  # of the moving averages
        restart_below: float = 0.1,  # a code restarts if N_j is below this share of the mean count; 0: never
    ) -> None:
        checks.whole(embedding_dim=embedding_dim, num_embeddings=num_embeddings)
        checks.one_of(("ema", "gradient"), codebook=codebook)
        checks.share(decay=decay, restart_below=restart_below)
        super().__init__(embedding_dim, image_shape, encoder, decoder, likelihood)
        self.decay, self.restart_below = decay, restart_below
        codes = torch.randn(num_embeddings, embedding_dim)
        if codebook == "gradient":
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        self.register_buffer("usage", torch.ones(num_embeddings))

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the codes to encoder outputs at random places of 256 random images of (N, C, H, W)."""
        z = _places(self.embed(images[torch.randint(len(images), (256,), device=images.device)]))
        order = torch.randperm(len(z), device=z.device)  # it repeats below if there are more codes than places
        self.codebook.copy_(_of_first_rank(z[order[torch.arange(len(self.codebook), device=z.device) % len(z)]]))

    def forward(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Quantized:
        """Encode, quantise and generate. Training mode also updates the codebook. `num_samples` has no effect."""
        output = super().forward(x)
        if self.training and torch.is_grad_enabled():
            self._move_codes(_places(output.z_e), output.indices.flatten())
        return output

    def nearest(self, z: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            norms = self.codebook.square().sum(1)
            nearest = torch.addmm(norms, _places(z), self.codebook.T, alpha=-2).argmin(1)
        return nearest.view(z.shape[0], *z.shape[2:])

    @torch.no_grad()
    def _move_codes(self, z: Tensor, indices: Tensor) -> None:
        """Update and restart codes from encoder outputs z (N, D) and code indices (N,). All ranks get the same codes.

        m_j = N_j e_j is not stored: e_j moves by (1 - decay) (sum z_e - n_j e_j) / N_j, which is zero for unused codes.
        """
        totals = z.new_zeros(len(self.codebook), z.shape[1] + 1).index_add_(0, indices, F.pad(z, (0, 1), value=1.0))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        sums, counts = totals[:, :-1], totals[:, -1:]
        self.usage.lerp_(counts.squeeze(1), 1 - self.decay)
        if not self.codebook.requires_grad:
            step = (sums - counts * self.codebook) / self.usage.clamp(min=1e-12).unsqueeze(1)
            self.codebook.add_(step, alpha=1 - self.decay)
        restarts = _of_first_rank(z[torch.randint(len(z), (len(self.codebook),), device=z.device)])
        mean = self.usage.mean()
        dead = self.usage < self.restart_below * mean
        self.codebook.copy_(torch.where(dead.unsqueeze(1), restarts, self.codebook))
        self.usage.copy_(torch.where(dead, mean, self.usage))


def _places(z: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D)."""
    return z.movedim(1, -1).flatten(0, -2)


def _of_first_rank(z: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(z, 0)
    return z
