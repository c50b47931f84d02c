"""Priors p(z): modules that are built from latent_dim and return a distribution of batch shape (), event shape (D,).

The model passes its method `infer` to its prior, because a prior made of posteriors needs the encoder. The prior does
not own the encoder. Constructors raise UserError for an argument out of its range.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from vaelab import checks, classes, distributions, flows


class StandardNormal(nn.Module):
    """A Gaussian with a fixed scale: p(z) = N(z; 0, scale^2 I). With scale = 1 it is the standard normal."""

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
    """A learned mixture p(z) = sum_c pi_c N(z; mu_c, diag(sigma_c^2)). It starts with equal pi_c and mu_c ~ N(0, I)."""

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
    """A mixture of posteriors: p(z) = 1/C sum_c q(z | u_c), at C = num_components learned images u_c in [0, 1].

    These pseudo-inputs start as training images. Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120
    """

    made_of_posteriors = True  # q(z | u) depends on an image u alone, not on labels or on layers below

    def __init__(self, latent_dim: int, image_shape: Sequence[int], num_components: int = 500) -> None:
        super().__init__()
        checks.whole(num_components=num_components)
        self.pseudo_inputs = nn.Parameter(torch.rand(num_components, *image_shape))

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the pseudo-inputs to random training images (N, C, H, W) in [0, 1]."""
        choice = torch.randint(len(images), (len(self.pseudo_inputs),), device=images.device)
        self.pseudo_inputs.copy_(images[choice])

    def forward(self, infer: Callable[..., Distribution]) -> MixtureSameFamily:
        u = self.pseudo_inputs.clamp(0, 1)
        return MixtureSameFamily(Categorical(logits=u.new_zeros(len(u))), infer(u), validate_args=False)


class FlowPrior(nn.Module):
    """A normalising flow: z is a standard normal sample after learned transforms.

    Arguments are those of FlowPosterior. The density takes one pass of a "maf", two of a "spline" or D of an "iaf".
    Chen et al. 2017, https://arxiv.org/abs/1611.02731
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
    """The uniform distribution of N one-hot vectors of C = num_categories entries: p(z) = C^-N, latent_dim = N * C."""

    logits: Tensor

    def __init__(self, latent_dim: int, num_categories: int = 10) -> None:
        super().__init__()
        sizes = distributions.categorical_sizes(latent_dim, num_categories)
        self.register_buffer("logits", torch.zeros(sizes), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> distributions.Categoricals:
        return distributions.Categoricals(self.logits)


class UniformSphere(nn.Module):
    """The uniform density 1 / area on the unit sphere, D > 1: Davidson et al. 2018, https://arxiv.org/abs/1804.00891"""

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        checks.whole(2, latent_dim=latent_dim)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> distributions.HypersphericalUniform:
        return distributions.HypersphericalUniform(self.zero)


class ClassPrior(nn.Module):
    """A class y and a Gaussian for each class: p(y) = 1 / C, p(z | y) = N(z; mu_y, diag(sigma_y^2)).

    These are N(0, I) for all classes, or with `learned` they start at mu_y ~ N(0, I) and sigma_y = 1. With `in_code`
    the code is (z, y), y one-hot, otherwise z alone, whose prior is a mixture. Raises UserError as ClassPosterior does.
    """

    logits: Tensor
    mean: Tensor
    log_std: Tensor

    def __init__(self, latent_dim: int, num_classes: int = 10, in_code: bool = True, learned: bool = False) -> None:
        super().__init__()
        checks.one_of((True, False), learned=learned)
        self.density, dim = classes.density_and_dim(latent_dim, num_classes, in_code)
        self.num_classes = num_classes
        self.register_buffer("logits", torch.zeros(num_classes), persistent=False)
        if learned:
            self.mean = nn.Parameter(torch.randn(num_classes, dim))
            self.log_std = nn.Parameter(torch.zeros(num_classes, dim))
        else:
            self.register_buffer("mean", torch.zeros(num_classes, dim), persistent=False)
            self.register_buffer("log_std", torch.zeros(num_classes, dim), persistent=False)

    def forward(self, infer: Callable[..., Distribution]) -> Distribution:
        return self.density(Categorical(logits=self.logits), Independent(Normal(self.mean, self.log_std.exp()), 1))
