"""Approximate posteriors: features h (B, F) of images -> q(z | x), batch shape (B,), event shape (D,).

Each is a module that is built from (in_features, latent_dim), F and D. Densities are computed in float32, also under
autocast. Constructors raise UserError for an argument out of its range.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vaelab import checks, classes, distributions, flows
from vaelab.errors import UserError


class DiagonalGaussian(nn.Module):
    """A factorised Gaussian: q(z | x) = N(z; mu(h), diag(sigma^2(h))), with mu and log sigma^2 linear in h.

    `log_variance` is the range to which log sigma^2 is clamped, without a gradient outside. Kingma & Welling 2014,
    https://arxiv.org/abs/1312.6114
    """

    def __init__(self, in_features: int, latent_dim: int, log_variance: Sequence[float] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * latent_dim)
        self.range = tuple(log_variance or ())
        checks.finite(**{f"log_variance.{i}": end for i, end in enumerate(self.range)})
        if log_variance is not None and (len(self.range) != 2 or self.range[0] >= self.range[1]):
            raise UserError(f"log_variance={log_variance}: the least and the most are needed, such as [-6,2]")

    def forward(self, h: Tensor) -> Independent:
        mean, log_variance = distributions.at_least_float32(self.linear(h)).chunk(2, dim=-1)  # (B, D) each
        log_variance = log_variance.clamp(*self.range) if self.range else log_variance
        return Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)


class FullCovarianceGaussian(nn.Module):
    """A Gaussian with full covariance: q(z | x) = N(z; mu(h), L L'), with a lower triangular matrix L(h).

    Training starts with a diagonal covariance: the entries of L below the diagonal are zero at first.
    """

    below: Tensor

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * latent_dim)
        self.correlation = nn.Linear(in_features, latent_dim * (latent_dim - 1) // 2)
        nn.init.zeros_(self.correlation.weight)
        nn.init.zeros_(self.correlation.bias)
        self.register_buffer("below", torch.tril_indices(latent_dim, latent_dim, offset=-1), persistent=False)

    def forward(self, h: Tensor) -> MultivariateNormal:
        mean, log_variance = distributions.at_least_float32(self.linear(h)).chunk(2, dim=-1)  # (B, D) each
        factor = torch.diag_embed(torch.exp(0.5 * log_variance))
        factor[..., self.below[0], self.below[1]] = distributions.at_least_float32(self.correlation(h))
        return MultivariateNormal(mean, scale_tril=factor)


class PointMass(nn.Module):
    """A point mass, the posterior of a plain autoencoder: z = W h + b. It has no density."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, latent_dim)

    def forward(self, h: Tensor) -> distributions.Delta:
        return distributions.Delta(distributions.at_least_float32(self.linear(h)))


class FlowPosterior(nn.Module):
    """A normalising flow: z is a sample of N(mu(h), diag(sigma^2(h))) after transforms that are conditional on h.

    Rezende & Mohamed 2015, https://arxiv.org/abs/1505.05770. Without transforms, q(z | x) is the diagonal Gaussian.
    """

    def __init__(
        self,
        in_features: int,
        latent_dim: int,
        kind: str = "iaf",  # or "maf" or "spline", explained in `vaelab.flows.transforms`
        num_transforms: int = 2,  # one after the other
        hidden: Sequence[int] = (64, 64),  # widths of each transform's masked network
    ) -> None:
        super().__init__()
        self.base = DiagonalGaussian(in_features, latent_dim)
        self.transforms = flows.transforms(kind, latent_dim, in_features, num_transforms, hidden)

    def forward(self, h: Tensor) -> Distribution:
        return flows.flow(self.transforms, self.base(h), distributions.at_least_float32(h))


class Categorical(nn.Module):
    """N categorical variables, one-hot and flattened: q(z | x) = prod_n Categorical(z_n; softmax(W_n h + b_n)).

    D = N * num_categories. Samples are relaxed at `temperature` in training mode and one-hot in evaluation mode: Jang
    et al. 2017, https://arxiv.org/abs/1611.01144
    """

    temperature: Tensor

    def __init__(self, in_features: int, latent_dim: int, num_categories: int = 10, temperature: float = 0.5) -> None:
        super().__init__()
        self.sizes = distributions.categorical_sizes(latent_dim, num_categories)
        checks.positive(temperature=temperature)
        self.linear = nn.Linear(in_features, latent_dim)
        self.register_buffer("temperature", torch.tensor(float(temperature)), persistent=False)

    def forward(self, h: Tensor) -> distributions.Categoricals:
        logits = distributions.at_least_float32(self.linear(h)).unflatten(-1, self.sizes)  # (B, N, C)
        return distributions.Categoricals(logits, self.temperature if self.training else None)


class Hyperspherical(nn.Module):
    """A power spherical density on the unit sphere of R^D, D > 1: mu(h) = Wh / |Wh|, kappa(h) = 1 + softplus(w'h).

    De Cao & Aziz 2020, https://arxiv.org/abs/2006.04437. It does not need the rejection sampler of the first
    hyperspherical VAE: Davidson et al. 2018, https://arxiv.org/abs/1804.00891
    """

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        checks.whole(2, latent_dim=latent_dim)
        self.direction, self.concentration = nn.Linear(in_features, latent_dim), nn.Linear(in_features, 1)

    def forward(self, h: Tensor) -> distributions.PowerSpherical:
        mu = F.normalize(distributions.at_least_float32(self.direction(h)), dim=-1)
        return distributions.PowerSpherical(
            mu, 1 + F.softplus(distributions.at_least_float32(self.concentration(h)).squeeze(-1))
        )


class ClassPosterior(nn.Module):
    """A class y and a Gaussian for each class: q(y | x) q(z | x, y), each with a hidden layer a = softplus of its own.

        q(y | x) = softmax(V a(U h)),    q(z | x, y) = N(z; mu, diag(sigma^2)), mu and log sigma^2 linear in a(W [h, y])

    With `in_code` the code is (z, y), y one-hot, and z has latent_dim - num_classes dimensions. Otherwise the code is
    z alone, and q(z | x) is a mixture. Raises UserError if no dimension is left for z. Kingma et al. 2014,
    https://arxiv.org/abs/1406.5298
    """

    def __init__(
        self,
        in_features: int,
        latent_dim: int,
        num_classes: int = 10,  # C
        width: int = 500,  # of both hidden layers
        in_code: bool = True,
    ) -> None:
        super().__init__()
        checks.whole(width=width)
        self.density, dim = classes.density_and_dim(latent_dim, num_classes, in_code)
        self.classifier = nn.Sequential(nn.Linear(in_features, width), nn.Softplus(), nn.Linear(width, num_classes))
        self.hidden = nn.Linear(in_features + num_classes, width)  # its last columns are those of the one-hot class
        self.gaussian = DiagonalGaussian(width, dim)

    def forward(self, h: Tensor) -> classes.WithClasses:
        logits = distributions.at_least_float32(self.classifier(h))  # (B, C)
        of_image, of_class = self.hidden.weight.tensor_split([h.shape[-1]], dim=1)
        shared = F.linear(h, of_image, self.hidden.bias).unsqueeze(-2)  # (B, 1, width): once for all classes
        each = self.gaussian(F.softplus(shared + of_class.T))  # (B, C), event (D,)
        return self.density(torch.distributions.Categorical(logits=logits), each)
