"""The vector-quantised autoencoder: z_q(x) = e_k, k = argmin_j ||z_e(x) - e_j||, at each place of a feature map.

    N_j <- decay N_j + (1 - decay) n_j,     m_j <- decay m_j + (1 - decay) sum_{k = j} z_e,     e_j = m_j / N_j

n_j is the number of places in the batch with k = j. These moving averages are appendix A.1 of
van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
"""

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from vaelab import checks
from vaelab.distributions import at_least_float32
from vaelab.errors import NotOfferedError, UserError
from vaelab.interfaces import feature_map
from vaelab.models.vae import Encoder, check_shape, parameter_shape
from vaelab.trace import Quantized

Decoder = Callable[[Size, Size], nn.Module]  # (D, h, w), (P*C, H, W) -> module: (N, D, h, w) -> (N, P*C, H, W)


class VQVAE(nn.Module):
    """A VQ-VAE: each place of the encoder's feature map takes the nearest of J codes of dimension D.

    If the moving count N_j of a code is small, the code restarts at a random encoder output of the batch: Dhariwal et
    al. 2020, https://arxiv.org/abs/2005.00341. There is no prior: `prior` is None. Raises UserError if the output of a
    network has the wrong shape, or if the encoder has no feature map.
    """

    prior = None
    num_classes = 0
    codebook: Tensor  # (J, D)
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
        super().__init__()
        checks.whole(embedding_dim=embedding_dim, num_embeddings=num_embeddings)
        checks.one_of(("ema", "gradient"), codebook=codebook)
        checks.share(decay=decay, restart_below=restart_below)
        checks.widths(3, image_shape=image_shape)
        self.image_shape, self.decay, self.restart_below = Size(image_shape), decay, restart_below
        self.encoder = encoder(self.image_shape)
        map_shape = feature_map(self.encoder)
        if map_shape is None:
            needed = "model/network=conv with model.encoder.hidden=[]"
            raise UserError(f"VQVAE quantises a feature map, which {type(self.encoder).__name__} lacks: take {needed}")
        self.map_shape, self.code_shape = map_shape, Size((embedding_dim, *map_shape[1:]))
        self.latent_dim = self.code_shape.numel()
        self.project = nn.Conv2d(map_shape[0], embedding_dim, 1)
        parameters = parameter_shape(likelihood, self.image_shape)
        self.decoder = decoder(self.code_shape, parameters)
        self.likelihood = likelihood
        codes = torch.randn(num_embeddings, embedding_dim)
        if codebook == "gradient":
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        self.register_buffer("usage", torch.ones(num_embeddings))
        check_shape(self.encoder, self.image_shape, Size((map_shape.numel(),)))
        check_shape(self.decoder, self.code_shape, parameters)

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the codes to encoder outputs at random places of 256 random images of (N, C, H, W)."""
        z = _places(self._embed(images[torch.randint(len(images), (256,), device=images.device)]))
        order = torch.randperm(len(z), device=z.device)  # it repeats below if there are more codes than places
        self.codebook.copy_(_of_first_rank(z[order[torch.arange(len(self.codebook), device=z.device) % len(z)]]))

    def forward(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Quantized:
        """Encode, quantise and generate. `num_samples` has no effect. Training mode also updates the codebook."""
        z_e = self._embed(x)
        z_q, indices = self.quantize(z_e)
        straight_through = z_q.detach() + (z_e - z_e.detach())  # the value of z_q, the gradient to z_e
        likelihood = self.decode(straight_through.flatten(1))
        if self.training and torch.is_grad_enabled():
            self._move_codes(_places(z_e), indices.flatten())
        return Quantized(z_e, z_q, indices, likelihood, self.codebook)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code to each place of z (B, D, h, w), of the same shape, and the indices (B, h, w)."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            norms = self.codebook.square().sum(1)
            nearest = torch.addmm(norms, _places(z), self.codebook.T, alpha=-2).argmin(1)
        indices = nearest.view(z.shape[0], *z.shape[2:])
        return F.embedding(indices, self.codebook).movedim(-1, 1), indices

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The quantised code, (B, D*h*w)."""
        return self.quantize(self._embed(x))[0].flatten(1)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z_q), batch shape (B,)."""
        return self.decode(self.encode(x))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z) of codes (..., D*h*w), batch shape (...)."""
        parameters = self.decoder(z.reshape(-1, *self.code_shape))  # (N, P*C, H, W)
        return self.likelihood(parameters.unflatten(0, z.shape[:-1]))

    def infer(self, x: Tensor, y: Tensor | None = None) -> NoReturn:
        raise NotOfferedError("a VQ-VAE has no q(z | x): its code is a point, which encode returns")

    def sample(self, num_samples: int, y: Tensor | None = None) -> NoReturn:
        raise NotOfferedError("a VQ-VAE has nothing to sample from until a prior over its codes is learned")

    def _embed(self, x: Tensor) -> Tensor:
        """z_e(x), (B, D, h, w)."""
        return at_least_float32(self.project(self.encoder(x).unflatten(1, self.map_shape)))

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
