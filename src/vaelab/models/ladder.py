"""The VAE with several stochastic layers."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Size, Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vaelab import checks
from vaelab.errors import NotOfferedError, UserError
from vaelab.interfaces import made_of_posteriors
from vaelab.models.vae import Decoder, Encoder, Prior, parameter_shape
from vaelab.posteriors import DiagonalGaussian
from vaelab.trace import Latent, Trace, draw


class LadderVAE(nn.Module):
    """L stochastic layers: p(x, z) = p(x | z_1) p(z_1 | z_2) ... p(z_L), with diagonal Gaussians between layers.

    * top_down: q(z | x) = q(z_L | x) prod_l q(z_l | z_{l+1}, x). Each q(z_l | z_{l+1}, x) is the normalised product of
      p(z_l | z_{l+1}) and a Gaussian that depends on x: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282
    * bottom_up: q(z | x) = q(z_1 | x) q(z_2 | z_1) ... Only the KL of the top layer has a closed form:
      Burda et al. 2016, https://arxiv.org/abs/1509.00519

    Raises UserError for a prior made of posteriors with bottom_up: that prior needs q(z_L | x).
    """

    num_classes = 0

    def __init__(
        self,
        latent_dims: Sequence[int],  # (D_L, ..., D_1), the top layer first, as in a Trace
        image_shape: Sequence[int],  # (C, H, W)
        encoder: Encoder,  # from the image to the features of the lowest layer
        step: Encoder,  # between two layers, both up and down: (n,) -> module: (N, n) -> (N, F), has .out_features
        prior: Prior,  # of the top layer
        decoder: Decoder,
        likelihood: nn.Module,
        inference: str = "top_down",
    ) -> None:
        super().__init__()
        checks.widths(1, latent_dims=latent_dims)
        checks.widths(3, image_shape=image_shape)
        checks.one_of(("top_down", "bottom_up"), inference=inference)
        self.latent_dim, self.image_shape, self.inference = latent_dims[0], Size(image_shape), inference
        dims = list(reversed(latent_dims))  # D_1, ..., D_L
        self.encoder = encoder(self.image_shape)
        features: list[int] = [self.encoder.out_features]  # type: ignore[list-item]
        self.up, self.down, self.conditionals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for below, above in pairwise(dims):
            self.up.append(step(Size((features[-1] if inference == "top_down" else below,))))
            features.append(self.up[-1].out_features)  # type: ignore[arg-type]
            self.down.append(step(Size((above,))))
            self.conditionals.append(DiagonalGaussian(self.down[-1].out_features, below))  # type: ignore[arg-type]
        self.posteriors = nn.ModuleList(DiagonalGaussian(f, d) for f, d in zip(features, dims, strict=True))
        self.prior = prior(self.latent_dim)
        if inference == "bottom_up" and len(dims) > 1 and made_of_posteriors(self.prior):
            name = f"{type(self.prior).__name__} is made of q(z | image) of the top layer"
            raise UserError(f"{name}, which inference=bottom_up does not have: use inference=top_down")
        self.decoder = decoder(dims[0], parameter_shape(likelihood, self.image_shape))
        self.likelihood = likelihood

    def forward(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace:
        """Infer, draw `num_samples` codes of each layer for each image x (B, C, H, W), and generate."""
        shape = Size((num_samples,))
        latents = self._top_down(x, shape) if self.inference == "top_down" else self._bottom_up(x, shape)
        return Trace(latents, self._likelihood(latents[-1].z))

    def _top_down(self, x: Tensor, shape: Size) -> tuple[Latent, ...]:
        features = self._features(x)
        latents = [*draw(self.posteriors[-1](features[-1]), self.prior(self.infer), shape)]
        for level in reversed(range(len(self.up))):
            p = self._conditional(level, latents[-1].z)
            q = _product(self.posteriors[level](features[level]), p)
            latents += draw(q, p, Size())
        return tuple(latents)

    def _bottom_up(self, x: Tensor, shape: Size) -> tuple[Latent, ...]:
        q = [self.posteriors[0](self.encoder(x))]
        z = [q[0].rsample(shape)]  # (K, B, D_1)
        for up, posterior in zip(self.up, self.posteriors[1:], strict=True):
            q.append(posterior(_rows(up, z[-1])))
            z.append(q[-1].rsample())
        p = [*(self._conditional(level, above) for level, above in enumerate(z[1:])), self.prior(self.infer)]
        top = len(z) - 1
        return tuple(Latent(z[i], q[i], p[i], given_above=i == top) for i in reversed(range(len(z))))

    def _features(self, x: Tensor) -> list[Tensor]:
        """The features of the image for the posterior of each layer, lowest layer first, (B, F) each."""
        features = [self.encoder(x)]
        for up in self.up:
            features.append(up(features[-1]))
        return features

    def _conditional(self, level: int, above: Tensor) -> Distribution:
        """p(z_l | z_{l+1}) for codes z_{l+1} (..., D), batch shape (...)."""
        return self.conditionals[level](_rows(self.down[level], above))

    def _likelihood(self, z: Tensor) -> Distribution:
        return self.likelihood(_rows(self.decoder, z))

    def infer(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z_L | x), batch shape (B,). Raises NotOfferedError for several layers with inference=bottom_up."""
        if self.inference == "bottom_up" and len(self.posteriors) > 1:
            why = "inference=bottom_up has no density of the top code given the image alone"
            raise NotOfferedError(f"{why}: inference=top_down has one")
        return self.posteriors[-1](self._features(x)[-1])

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The posterior mean of the top code, (B, D_L). In bottom_up it is given the means of the layers below."""
        if self.inference == "top_down":
            return self.infer(x).mean
        z = self.posteriors[0](self.encoder(x)).mean
        for up, posterior in zip(self.up, self.posteriors[1:], strict=True):
            z = posterior(up(z)).mean
        return z

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z_1) at the posterior means of all layers, batch shape (B,)."""
        features = self._features(x) if self.inference == "top_down" else [self.encoder(x)]
        z = self.posteriors[len(features) - 1](features[-1]).mean
        for level in reversed(range(len(features) - 1)):
            z = _product(self.posteriors[level](features[level]), self._conditional(level, z)).mean
        return self._likelihood(z)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z) of top codes (..., D_L), batch shape (...). The layers below are at their conditional means."""
        return self._descend(z, lambda p: p.mean)

    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution:
        """p(x | z) at `num_samples` draws of all layers, batch shape (num_samples,)."""
        return self._descend(self.prior(self.infer).sample(Size((num_samples,))), lambda p: p.sample())

    def _descend(self, z: Tensor, choose: Callable[[Distribution], Tensor]) -> Distribution:
        for level in reversed(range(len(self.down))):
            z = choose(self._conditional(level, z))
        return self._likelihood(z)


def _rows(network: nn.Module, z: Tensor) -> Tensor:
    """Apply a network for codes (N, D) to codes (..., D)."""
    return network(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def _product(a: Distribution, b: Distribution) -> Independent:
    """The normalised product of two diagonal Gaussians: precisions add, and they are the weights of the means."""
    precision = a.variance.reciprocal() + b.variance.reciprocal()
    mean = (a.mean / a.variance + b.mean / b.variance) / precision
    return Independent(Normal(mean, precision.rsqrt()), 1)
