"""Priors p(z): modules built from latent_dim that return a distribution with batch shape () and the latent as event.

A prior is handed the model's `infer` when it is called: a prior made of posteriors needs the encoder, and the encoder
stands once in the state dict.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from vaelab import checks, distributions, flows


class StandardNormal(nn.Module):
    """p(z) = N(z; 0, scale^2 I): standard with scale = 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        checks.positive(scale=scale)
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("std", torch.full((latent_dim,), float(scale)), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> Independent:
        return Independent(Normal(self.mean, self.std), 1)


class GaussianMixture(nn.Module):
    """p(z) = sum_c pi_c N(z; mu_c, diag(sigma_c^2)), all learned. Weights start equal, means as draws from N(0, I)."""

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        checks.whole(num_components=num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.mean = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_std = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, infer: Callable[..., Distribution]) -> MixtureSameFamily:
        components = Independent(Normal(self.mean, self.log_std.exp()), 1)
        return MixtureSameFamily(Categorical(logits=self.logits), components)


class VampPrior(nn.Module):
    """p(z) = 1/C sum_c q(z | u_c): the model's own posteriors at C = num_components learned images u_c in [0, 1].

    Pseudo-inputs start as training images. Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120
    """

    made_of_posteriors = True  # of q(z | u) for an image alone: no labels, no layers below

    def __init__(self, latent_dim: int, image_shape: Sequence[int], num_components: int = 500) -> None:
        super().__init__()
        checks.whole(num_components=num_components)
        self.pseudo_inputs = nn.Parameter(torch.rand(num_components, *image_shape))

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Start at a random choice of training images (N, C, H, W) in [0, 1]."""
        choice = torch.randint(len(images), (len(self.pseudo_inputs),), device=images.device)
        self.pseudo_inputs.copy_(images[choice])

    def forward(self, infer: Callable[..., Distribution]) -> MixtureSameFamily:
        u = self.pseudo_inputs.clamp(0, 1)
        return MixtureSameFamily(Categorical(logits=u.new_zeros(len(u))), infer(u), validate_args=False)


class FlowPrior(nn.Module):
    """p(z): a standard normal sample carried through learned transforms. Chen et al. 2017, https://arxiv.org/abs/1611.02731

    Arguments as for the posterior. The density takes one pass of a "maf", two of a "spline", D of an "iaf".
    """

    def __init__(
        self, latent_dim: int, kind: str = "maf", num_transforms: int = 2, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.base = StandardNormal(latent_dim)
        self.transforms = flows.transforms(kind, latent_dim, 0, num_transforms, hidden)

    def forward(self, infer: Callable[..., Distribution]) -> Distribution:
        return flows.flow(self.transforms, self.base(infer))


class UniformCategorical(nn.Module):
    """p(z) = C^-N over N one-hot vectors of C categories, with N * C the latent dimension."""

    logits: Tensor

    def __init__(self, latent_dim: int, num_categories: int = 10) -> None:
        super().__init__()
        sizes = distributions.categorical_sizes(latent_dim, num_categories)
        self.register_buffer("logits", torch.zeros(sizes), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> distributions.Categoricals:
        return distributions.Categoricals(self.logits)


class UniformSphere(nn.Module):
    """p(z) = 1 / area on the unit sphere of R^D, D > 1: Davidson et al. 2018, https://arxiv.org/abs/1804.00891"""

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        checks.whole(2, latent_dim=latent_dim)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> distributions.HypersphericalUniform:
        return distributions.HypersphericalUniform(self.zero)
