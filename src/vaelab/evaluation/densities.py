"""Densities fitted to the codes of a trained model. They give an autoencoder a prior that it can be sampled from.

    p(z) ~ q(z) = 1/N sum_n q(z | x_n),   the aggregate posterior

Ghosh et al. 2020, https://arxiv.org/abs/1903.12436; two stages: Dai & Wipf 2019, https://arxiv.org/abs/1903.05789
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Size, Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
)
from tqdm import tqdm

from vaelab import flows
from vaelab.distributions import Product, gaussian_kl
from vaelab.errors import NotOfferedError, UserError
from vaelab.interfaces import GenerativeModel, device_of, labels, lies_on_vectors, space
from vaelab.noise import fixed_noise

_ONE = Size()  # the shape of a single draw


class Fitted(nn.Module):
    """A prior that is one fixed density p(z)."""

    def __init__(self, density: Distribution) -> None:
        super().__init__()
        self.density = density

    def forward(self, infer: Callable[..., Distribution]) -> Distribution:
        return self.density


def check_model(model: GenerativeModel) -> None:
    """Raise UserError for codes that are not vectors of R^D: quantised, categorical or spherical codes."""
    if model.prior is None:
        raise UserError("the codes of a VQ-VAE are maps of indices: no density of vectors fits them")
    p = model.prior(model.infer)
    for block in p.factors if isinstance(p, Product) else (p,):
        if not lies_on_vectors(block):
            raise UserError(f"the codes of this model lie on {space(block)}, not in R^D: use a model with codes in R^D")


@torch.no_grad()
def codes(model: GenerativeModel, batches: Iterable[tuple[Tensor, Any]], seed: int = 0) -> Tensor:
    """One draw z ~ q(z | x) for each image of the batches (x, y), (N, D). Raises UserError as `check_model` does."""
    check_model(model)
    device = device_of(model)
    with fixed_noise(device, seed):
        draws = []
        for x, y in batches:
            given = labels(model, y)
            draws.append(model.infer(x.to(device), None if given is None else given.to(device)).sample())
    return torch.cat(draws).float()


def gmm(codes: Tensor, seed: int = 0, num_components: int = 10) -> Distribution:
    """A mixture sum_c pi_c N(z; mu_c, Sigma_c) with full covariances, fitted to codes (N, D) by EM from k-means."""
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(num_components, random_state=seed).fit(codes.double().cpu().numpy())
    weights, means, factors = (
        torch.tensor(part, dtype=torch.float32, device=codes.device)
        for part in (fit.weights_, fit.means_, np.linalg.cholesky(fit.covariances_))  # float32 could make this fail
    )
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, scale_tril=factors))


def flow(codes: Tensor, seed: int = 0, steps: int = 2000, batch_size: int = 256) -> Distribution:
    """A flow: a standard normal after five masked autoregressive transforms, fitted to codes (N, D) by Adam.

    The fit is to standardised codes. The returned density is on the scale of the original codes.
    """
    device, dim = codes.device, codes.shape[-1]
    z, mean, std = _standardised(codes)
    with fixed_noise(device, seed):
        transforms = flows.transforms("maf", dim, 0, 5, (128, 128)).to(device)
        base = Independent(Normal(torch.zeros(dim, device=device), torch.ones(dim, device=device)), 1)
        bar = tqdm(range(steps), desc="fitting a flow", unit="step", disable=None)
        _fit(transforms, lambda batch: -flows.flow(transforms, base).log_prob(batch), z, std, bar, batch_size)
    return TransformedDistribution(flows.flow(transforms.requires_grad_(False), base), AffineTransform(mean, std, 1))


def two_stage(codes: Tensor, seed: int = 0, steps: int = 2000, batch_size: int = 256) -> Distribution:
    """A second, small VAE with codes (N, D) as its images, fitted by Adam. It can only be sampled.

    The fit is to standardised codes. Dai & Wipf 2019, https://arxiv.org/abs/1903.05789, have wider layers with a
    connection around them, and draw the code of an image anew each time.
    """
    z, mean, std = _standardised(codes)
    with fixed_noise(codes.device, seed):
        vae = _SecondVAE(codes.shape[-1]).to(codes.device)
        bar = tqdm(range(steps), desc="fitting a second VAE", unit="step", disable=None)
        _fit(vae, vae, z, std, bar, batch_size)
        with torch.no_grad():
            _, error = vae.parts(z)
    return SecondStage(vae.decoder.requires_grad_(False), error.square().mean().sqrt(), mean, std)


class _SecondVAE(nn.Module):
    """-ELBO of codes z (B, D), (B,): p(u) = N(0, I), p(z | u) = N(m(u), gamma^2 I), q(u | z) a diagonal Gaussian.

    gamma^2 is at its optimum, the mean squared error of the batch: Rybkin et al. 2021, https://arxiv.org/abs/2006.13202
    """

    def __init__(self, dim: int, width: int = 256) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            nn.Sequential(
                nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
            )
            for outputs in (2 * dim, dim)
        )

    def forward(self, z: Tensor) -> Tensor:
        rate, error = self.parts(z)
        scale = error.square().mean().sqrt()  # gamma
        return (rate - Normal(torch.zeros_like(error), scale).log_prob(error)).sum(-1)

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The KL term of each dimension and z - m(u) at one draw u of q(u | z), (B, D) each."""
        mean, log_std = self.encoder(z).chunk(2, dim=-1)
        q = Normal(mean, log_std.exp())
        u = q.rsample()
        return gaussian_kl(q, Normal(torch.zeros_like(u), torch.ones_like(u))), z - self.decoder(u)


class SecondStage(Distribution):
    """The codes that a second VAE generates: p(z) = E_u[N(z; m(u), gamma^2 I)], u ~ N(0, I), in other units.

    It has samples, but no density in closed form: `log_prob` raises NotOfferedError.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, decoder: nn.Module, scale: Tensor, offset: Tensor, unit: Tensor) -> None:
        self.decoder, self.scale = decoder, scale  # m and gamma
        self.offset, self.unit = offset, unit  # (D,) each
        super().__init__(Size(), offset.shape, validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Any = _ONE) -> Tensor:
        u = torch.randn(*sample_shape, *self.event_shape, device=self.offset.device)
        return self.offset + self.unit * (self.decoder(u) + self.scale * torch.randn_like(u))

    def log_prob(self, value: Tensor) -> NoReturn:
        raise NotOfferedError("log p(z) of a two-stage VAE has no closed form, it has samples only: use gmm or flow")


def _standardised(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (N, D) with mean 0 and standard deviation 1 in each dimension, and the means and deviations before."""
    mean, std = codes.mean(0), codes.std(0).clamp(min=1e-6)
    return (codes - mean) / std, mean, std


def _fit(
    module: nn.Module, loss: Callable[[Tensor], Tensor], z: Tensor, std: Tensor, steps: "tqdm[int]", batch_size: int
) -> None:
    """Minimise the loss (B,) of batches of standardised codes z (N, D) by Adam. `std` gives the unit of the bar."""
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    for step in steps:
        mean = loss(z[torch.randint(len(z), (batch_size,), device=z.device)]).mean()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        decay.step()
        if step % 50 == 0:
            steps.set_postfix_str(f"{mean.item() + std.log().sum().item():.2f} nats per code")


DENSITIES: dict[
    str, tuple[str, Callable[..., Distribution]]
] = {  # the choices of density=, each with its name in words
    "gmm": ("a Gaussian mixture", gmm),
    "flow": ("a flow", flow),
    "two_stage": ("a second VAE", two_stage),
}


def fit(name: str, model: GenerativeModel, batches: Iterable[tuple[Tensor, Any]], seed: int = 0) -> Fitted:
    """A prior: the density of this name, fitted to codes of the batches. Raises UserError as `codes` does."""
    with torch.enable_grad():  # an evaluation runs without gradients
        return Fitted(DENSITIES[name][1](codes(model, batches, seed), seed))
