"""What autoencoders with quantised codes share: at each place of a feature map, a code is one of J vectors of R^D.

z_q(x) = e_k,     k = k(x), a map of indices,     p(x) = sum_k p(x | e_k) p(k) >= p(x | z_q(x)) p(k(x))
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

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


class QuantizedAutoencoder(nn.Module):
    """The base class of autoencoders with quantised codes. A subclass has a `codebook` and finds `nearest` codes.

    `prior` is None, because a code is no vector with a density. `code_prior` is p(k) over maps of indices, a module
    with `log_prob` and `sample`, or None until train_prior.py has trained one. Raises UserError if the output of a
    network has the wrong shape, or if the encoder has no feature map.
    """

    prior = None
    num_classes = 0
    codebook: Tensor  # (J, D)

    def __init__(
        self,
        embedding_dim: int,  # D
        image_shape: Sequence[int],  # (C, H, W)
        encoder: Encoder,  # has a feature map `map_shape`; a 1x1 convolution changes its channels to D
        decoder: Decoder,
        likelihood: nn.Module,
    ) -> None:
        super().__init__()
        checks.widths(3, image_shape=image_shape)
        self.image_shape = Size(image_shape)
        self.encoder = encoder(self.image_shape)
        map_shape = feature_map(self.encoder)
        if map_shape is None:
            flattens = hasattr(self.encoder, "map_shape")  # with dense layers, which its setting `hidden` adds
            needed = "model.encoder.hidden=[]" if flattens else "model/network=conv with model.encoder.hidden=[]"
            name = type(self.encoder).__name__ + " with dense layers" * flattens
            raise UserError(f"{type(self).__name__} quantises a feature map, which {name} lacks: take {needed}")
        self.map_shape, self.code_shape = map_shape, Size((embedding_dim, *map_shape[1:]))
        self.latent_dim = self.code_shape.numel()
        self.project = nn.Conv2d(map_shape[0], embedding_dim, 1)
        parameters = parameter_shape(likelihood, self.image_shape)
        self.decoder = decoder(self.code_shape, parameters)
        self.likelihood = likelihood
        self.code_prior: Any = None
        check_shape(self.encoder, self.image_shape, Size((map_shape.numel(),)))
        check_shape(self.decoder, self.code_shape, parameters)

    def nearest(self, z: Tensor) -> Tensor:
        """The indices (B, h, w) of the codes that take the place of z (B, D, h, w)."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Quantized:
        """Encode, quantise and generate. `num_samples` has no effect."""
        z_e = self.embed(x)
        z_q, indices = self.quantize(z_e)
        straight_through = z_q.detach() + (z_e - z_e.detach())  # the value of z_q, the gradient to z_e
        return Quantized(z_e, z_q, indices, self.decode(straight_through.flatten(1)), self.codebook)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The code at each place of z (B, D, h, w), of the same shape, and the indices (B, h, w)."""
        indices = self.nearest(z)
        return self.codes(indices), indices

    def codes(self, indices: Tensor) -> Tensor:
        """The codes (B, D, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def indices(self, x: Tensor) -> Tensor:
        """k(x), the indices (B, h, w) of the codes of images (B, C, H, W)."""
        return self.nearest(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """z_e(x), (B, D, h, w), before it is quantised."""
        return at_least_float32(self.project(self.encoder(x).unflatten(1, self.map_shape)))

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The quantised code, (B, D*h*w)."""
        return self.quantize(self.embed(x))[0].flatten(1)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z_q), batch shape (B,)."""
        return self.decode(self.encode(x))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z) of codes (..., D*h*w), batch shape (...)."""
        parameters = self.decoder(z.reshape(-1, *self.code_shape))  # (N, P*C, H, W)
        return self.likelihood(parameters.unflatten(0, z.shape[:-1]))

    def infer(self, x: Tensor, y: Tensor | None = None) -> NoReturn:
        raise NotOfferedError("a VQ-VAE has no q(z | x): its code is a point, which encode returns")

    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution:
        """p(x | z) at `num_samples` maps of codes from the prior over codes. Raises NotOfferedError without one."""
        if self.code_prior is None:
            why = "a VQ-VAE has nothing to sample from until a prior over its codes is learned"
            raise NotOfferedError(f"{why}: python train_prior.py run=logs/RUN trains one")
        indices = self.code_prior.sample(Size((num_samples, *self.code_shape[1:])))
        return self.decode(self.codes(indices).flatten(1))
