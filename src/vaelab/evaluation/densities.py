"""Densities fitted to the codes of a trained model. They give an autoencoder a prior that it can be sampled from.

    p(z) ~ q(z) = 1/N sum_n q(z | x_n),   the aggregate posterior

Ghosh et al. 2020, https://arxiv.org/abs/1903.12436
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vaelab import flows
from vaelab.distributions import Product
from vaelab.errors import UserError
from vaelab.interfaces import GenerativeModel, device_of, labels, lies_on_vectors, space
from vaelab.noise import fixed_noise


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
    from tqdm import tqdm

    device, dim = codes.device, codes.shape[-1]
    mean, std = codes.mean(0), codes.std(0).clamp(min=1e-6)
    z = (codes - mean) / std
    with fixed_noise(device, seed):
        transforms = flows.transforms("maf", dim, 0, 5, (128, 128)).to(device)
        base = Independent(Normal(torch.zeros(dim, device=device), torch.ones(dim, device=device)), 1)
        optimizer = torch.optim.Adam(transforms.parameters(), lr=2e-3)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        bar = tqdm(range(steps), desc="fitting a flow", unit="step", disable=None)
        for step in bar:
            loss = -flows.flow(transforms, base).log_prob(z[torch.randint(len(z), (batch_size,), device=device)]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            if step % 50 == 0:
                bar.set_postfix_str(f"{loss.item() + std.log().sum().item():.2f} nats per code")
    return TransformedDistribution(flows.flow(transforms.requires_grad_(False), base), AffineTransform(mean, std, 1))


DENSITIES: dict[
    str, tuple[str, Callable[..., Distribution]]
] = {  # the choices of density=, each with its name in words
    "gmm": ("a Gaussian mixture", gmm),
    "flow": ("a flow", flow),
}


def fit(name: str, model: GenerativeModel, batches: Iterable[tuple[Tensor, Any]], seed: int = 0) -> Fitted:
    """A prior: the density of this name, fitted to codes of the batches. Raises UserError as `codes` does."""
    with torch.enable_grad():  # an evaluation runs without gradients
        return Fitted(DENSITIES[name][1](codes(model, batches, seed), seed))
