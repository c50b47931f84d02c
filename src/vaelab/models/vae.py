"""The variational autoencoder with one stochastic layer, and checks of its networks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from vaelab import checks
from vaelab.classes import WithClasses
from vaelab.errors import UserError
from vaelab.interfaces import made_of_posteriors
from vaelab.trace import Trace, draw, point_estimate

Encoder = Callable[[Size], nn.Module]  # (C, H, W) -> module: (B, C, H, W) -> (B, F), has .out_features
Decoder = Callable[[int, Size], nn.Module]  # D, (P*C, H, W) -> module: (N, D) -> (N, P*C, H, W)
Posterior = Callable[[int, int], nn.Module]  # F, D -> module: (B, F) -> Distribution
Prior = Callable[[int], nn.Module]  # D -> module: infer -> Distribution


class VAE(nn.Module):
    """A VAE with one stochastic layer: p(x, z) = p(x | z) p(z), with the approximate posterior q(z | x).

    The parts are factories, and the model computes their sizes from `latent_dim` and `image_shape`. If `num_classes` is
    above 0, the one-hot label is appended to the encoder's features and to the code. Raises UserError if the output of
    a network has the wrong shape, or if a prior made of posteriors would need labels. Kingma & Welling 2014,
    https://arxiv.org/abs/1312.6114; Rezende et al. 2014, https://arxiv.org/abs/1401.4082
    """

    def __init__(
        self,
        latent_dim: int,  # D, dimensions of the code z
        image_shape: Sequence[int],  # (C, H, W)
        encoder: Encoder,
        posterior: Posterior,
        prior: Prior,
        decoder: Decoder,
        likelihood: nn.Module,
        num_classes: int = 0,  # 0 for an unconditional model; otherwise labels y (B,) are integers below num_classes
    ) -> None:
        super().__init__()
        checks.whole(latent_dim=latent_dim)
        checks.whole(0, num_classes=num_classes)
        checks.widths(3, image_shape=image_shape)
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.image_shape = Size(image_shape)
        self.encoder = encoder(self.image_shape)
        features: int = self.encoder.out_features  # type: ignore[assignment]
        self.posterior = posterior(features + num_classes, latent_dim)
        self.prior = prior(latent_dim)
        if num_classes and made_of_posteriors(self.prior):
            raise UserError(f"{type(self.prior).__name__} has no labels for its pseudo-inputs: use num_classes=0")
        parameters = parameter_shape(likelihood, self.image_shape)
        self.decoder = decoder(latent_dim + num_classes, parameters)
        self.likelihood = likelihood
        check_shape(self.encoder, self.image_shape, Size((features,)))
        check_shape(self.decoder, Size((latent_dim + num_classes,)), parameters)

    def forward(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace:
        """Infer, draw K = `num_samples` codes for each image x (B, C, H, W), and generate."""
        latents = draw(self.infer(x, y), self.prior(self.infer), Size((num_samples,)))
        z = latents[0].z if len(latents) == 1 else torch.cat([latent.z for latent in latents], dim=-1)  # (K, B, D)
        return Trace(latents, self.decode(z, y))

    def infer(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z | x), batch shape (B,)."""
        return self.posterior(self._with_label(self.encoder(x), y))

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """A point estimate of the code, (B, D): the posterior mean, or the mean of 64 samples at fixed noise."""
        return point_estimate(self.infer(x, y), x.device)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z) at the point estimate of z, batch shape (B,)."""
        return self.decode(self.encode(x, y), y)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z) of codes (..., D), batch shape (...). Labels y broadcast to this shape."""
        code = self._with_label(z, y)
        parameters = self.decoder(code.flatten(0, -2))  # (N, P*C, H, W)
        return self.likelihood(parameters.unflatten(0, z.shape[:-1]))

    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution:
        """p(x | z) at `num_samples` draws z ~ p(z), batch shape (num_samples,).

        If the codes have a class, y (num_samples,) are the classes to draw.
        """
        p = self.prior(self.infer)
        if y is not None and isinstance(p, WithClasses):
            return self.decode(p.of_classes(y))
        return self.decode(p.sample(Size((num_samples,))), y)

    def _with_label(self, code: Tensor, y: Tensor | None) -> Tensor:
        if self.num_classes == 0 and y is None:
            return code
        if self.num_classes == 0:
            raise UserError("labels were given to a model without class conditioning (num_classes=0): leave them out")
        if y is None:
            raise UserError(f"this model is conditioned on {self.num_classes} classes: give it labels y")
        one_hot = F.one_hot(y, self.num_classes).to(code.dtype)
        return torch.cat([code, one_hot.expand(*code.shape[:-1], -1)], dim=-1)


def parameter_shape(likelihood: Any, image_shape: Size) -> Size:
    """The shape (P*C, H, W) of a decoder's output."""
    return Size((likelihood.num_parameters * image_shape[0], *image_shape[1:]))


@torch.no_grad()
def check_shape(network: nn.Module, in_shape: Size, out_shape: Size) -> None:
    """Run one blank input through a network. Raises UserError if the output has the wrong shape."""
    name = type(network).__name__
    network.eval()
    try:
        got = network(torch.zeros(1, *in_shape)).shape[1:]
    except Exception as error:
        error.add_note(f"This happened when {name} got one blank input of shape {tuple(in_shape)}.")
        raise
    network.train()
    if got != out_shape:
        wrong = f"{name} turns an input of shape {tuple(in_shape)} into {tuple(got)}"
        raise UserError(f"{wrong}, but the model needs {tuple(out_shape)}")
