"""A ladder of L stochastic layers, diagonal Gaussians in between: p(x, z) = p(x | z_1) p(z_1 | z_2) ... p(z_L)."""

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
    """A hierarchy of codes, inferred in one of two ways.

    * top_down: q(z | x) = q(z_L | x) prod_l q(z_l | z_{l+1}, x), where each factor is the product of a Gaussian read
      from x and of p(z_l | z_{l+1}), renormalised: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282
    * bottom_up: q(z | x) = q(z_1 | x) q(z_2 | z_1) ..., of which only the top layer's KL has a closed form:
      Burda et al. 2016, https://arxiv.org/abs/1509.00519

    Raises ValueError for a prior made of posteriors of the top layer given the image alone, which bottom_up has not.
    """

    num_classes = 0

    def __init__(
        self,
        latent_dims: Sequence[int],  # (D_L, ..., D_1), the top layer first, as in a Trace
        image_shape: Sequence[int],  # (C, H, W)
        encoder: Encoder,  # from the image to the lowest layer
        step: Encoder,  # between two layers, either way: (n,) -> module: (N, n) -> (N, F), has .out_features
        prior: Prior,  # of the top layer
        decoder: Decoder,
        likelihood: nn.Module,
        inference: str = "top_down",
    ) -> None:
        super().__init__()
        checks.widths(1, latent_dims=latent_dims)
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
            raise UserError(f"{name}, given lower layers in bottom_up: inference=top_down goes with it")
        self.decoder = decoder(dims[0], parameter_shape(likelihood, self.image_shape))
        self.likelihood = likelihood

    def forward(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace:
        """Infer, draw `num_samples` codes of each layer an image, generate: (B, C, H, W) -> Trace, top layer first."""
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
        """What each layer's posterior sees of the image on the way up, (B, F) each."""
        features = [self.encoder(x)]
        for up in self.up:
            features.append(up(features[-1]))
        return features

    def _conditional(self, level: int, above: Tensor) -> Distribution:
        """p(z_l | z_{l+1}), batch shape that of the codes above (..., D)."""
        return self.conditionals[level](_rows(self.down[level], above))

    def _likelihood(self, z: Tensor) -> Distribution:
        return self.likelihood(_rows(self.decoder, z))

    def infer(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z_L | x), batch shape (B,); NotImplementedError for several layers inferred bottom_up, which have none."""
        if self.inference == "bottom_up" and len(self.posteriors) > 1:
            raise NotOfferedError("inference=bottom_up has no density of the top code given the image alone")
        return self.posteriors[-1](self._features(x)[-1])

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The top code, (B, D_L): its posterior's mean, at the means of the layers below where it depends on them."""
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
        """p(x | z) of top codes (..., D_L), batch shape (...), with the layers below at their conditional means."""
        return self._descend(z, lambda p: p.mean)

    def sample(self, num_samples: int, y: Tensor | None = None) -> Distribution:
        """p(x | z) at `num_samples` draws of all layers, batch shape (num_samples,)."""
        return self._descend(self.prior(self.infer).sample(Size((num_samples,))), lambda p: p.sample())

    def _descend(self, z: Tensor, choose: Callable[[Distribution], Tensor]) -> Distribution:
        for level in reversed(range(len(self.down))):
            z = choose(self._conditional(level, z))
        return self._likelihood(z)


def _rows(network: nn.Module, z: Tensor) -> Tensor:
    """Apply a network of (N, D) to (..., D)."""
    return network(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def _product(a: Distribution, b: Distribution) -> Independent:
    """The normalised product of two diagonal Gaussians: precisions add, means are weighted by them."""
    precision = a.variance.reciprocal() + b.variance.reciprocal()
    mean = (a.mean / a.variance + b.mean / b.variance) / precision
    return Independent(Normal(mean, precision.rsqrt()), 1)
