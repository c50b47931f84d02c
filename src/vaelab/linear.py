"""Closed forms of linear models: the optimal autoencoder, the optimal VAE and the exact log p(x).

    S = U diag(lambda) U',  lambda_1 >= lambda_2 >= ...,   the covariance of n-pixel images around their mean

`pca` and `ppca` return state dicts of a `VAE` with model/network=linear and a Gaussian likelihood with mean=identity.
Both compute in float64 and return float32. U_q are the first q = latent_dim columns of U.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from vaelab.errors import UserError


def pca(images: Tensor, latent_dim: int) -> dict[str, Tensor]:
    """Principal component analysis, z = U_q'(x - mean) and x' = U_q z + mean, for model/posterior=point_mass.

    On images (N, C, H, W) it has the least mean squared error of any linear autoencoder, the sum of the discarded
    eigenvalues: Baldi & Hornik 1989, https://doi.org/10.1016/0893-6080(89)90014-2. Raises UserError unless latent_dim
    is below the number of pixels.
    """
    mean, _, basis = _principal_components(images, latent_dim)
    return _state_dict(basis, mean, basis.T)


def ppca(images: Tensor, latent_dim: int) -> dict[str, Tensor]:
    """Probabilistic PCA at its maximum likelihood, for model/posterior=diagonal_gaussian and a learned scale.

        W = U_q (Lambda_q - sigma^2 I)^(1/2),   sigma^2 = mean discarded eigenvalue,   M = W'W + sigma^2 I = Lambda_q
        q(z | x) = p(z | x) = N(M^-1 W'(x - mean), sigma^2 M^-1)

    The columns of W are orthogonal, so a diagonal posterior is exact. Tipping & Bishop 1999,
    https://doi.org/10.1111/1467-9868.00196; Lucas et al. 2019, https://arxiv.org/abs/1911.02469. Raises UserError
    unless latent_dim is below the number of pixels, and if it leaves no variance for the noise.
    """
    mean, eigenvalues, basis = _principal_components(images, latent_dim)
    kept, variance = eigenvalues[:latent_dim], eigenvalues[latent_dim:].mean()
    if variance <= torch.finfo(eigenvalues.dtype).eps * eigenvalues[0]:
        wrong = f"latent_dim={latent_dim} leaves no variance for the noise of {len(images):,} images"
        raise UserError(f"{wrong}: choose a smaller one or take more images")
    decoder = basis * (kept - variance).sqrt()
    state = _state_dict(decoder, mean, (decoder / kept).T, (variance / kept).log())
    return state | {"likelihood.log_scale": 0.5 * variance.log().float()}


def ppca_log_likelihood(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The exact log p(x) of images (B, C, H, W) under a linear VAE with a learned scale, in nats, (B,)."""
    names = ("decoder.layers.0.weight", "decoder.layers.0.bias", "likelihood.log_scale")
    weight, mean, log_scale = (state[name] for name in names)
    return log_likelihood(images, mean, weight, log_scale.exp())


def log_likelihood(images: Tensor, mean: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """log p(x) = log N(x; mean, W W' + diag(scale^2)) in nats, (B,) float64, for the prior p(z) = N(0, I).

    Images are (B, C, H, W), the mean is (n,), W is (n, D), and the scale is () or (n,), all in units of x.
    """
    mean, weight, scale = mean.double(), weight.double(), scale.double()
    density = LowRankMultivariateNormal(mean, weight, scale.square().expand_as(mean))
    return density.log_prob(images.flatten(1).double())


def spectrum(images: Tensor) -> Tensor:
    """The eigenvalues of the covariance of images (N, C, H, W) with n pixels, largest first, (min(N, n),) float64.

    If there are fewer images than pixels, the other n - N eigenvalues are zero.
    """
    x = images.flatten(1)
    if len(x) < x.shape[1]:
        centred = x.double() - x.mean(0, dtype=torch.float64)
        products = centred @ centred.T / len(x)  # it has the same eigenvalues, except for zeros
    else:
        _, products = _moments(x)
    return torch.linalg.eigvalsh(products).flip(0).clamp(min=0)


def units_kept(eigenvalues: Tensor, noise: float) -> int:
    """The number of units that a linear VAE keeps at its optimum: the eigenvalues above noise = beta sigma^2.

        p(x | z) = N(W z + mean, sigma^2 I) with a fixed sigma,   loss = distortion + beta rate
        W = U_q (max(Lambda_q - beta sigma^2 I, 0))^(1/2),   rate of unit i = 1/2 log max(lambda_i / (beta sigma^2), 1)

    All other units collapse, whatever the latent dimension is. Lucas et al. 2019, https://arxiv.org/abs/1911.02469
    """
    return int((eigenvalues > noise).sum())


def principal_angle(a: Tensor, b: Tensor) -> float:
    """The largest principal angle, 0 to 90 degrees, between the column spaces of a (n, p) and b (n, q), of full rank.

    It is computed from its sine and its cosine, because each alone loses half of the digits at one end of the range.
    Bjorck & Golub 1973, https://doi.org/10.2307/2005662
    """
    wide, narrow = (torch.linalg.qr(m.double()).Q for m in sorted((a, b), key=lambda m: -m.shape[1]))
    inside = wide.T @ narrow
    cosine = torch.linalg.svdvals(inside)[-1]
    sine = torch.linalg.matrix_norm(narrow - wide @ inside, ord=2)
    return math.degrees(torch.atan2(sine, cosine))


def _principal_components(images: Tensor, latent_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (n,), all eigenvalues of the covariance (n,), largest first, and D eigenvectors (n, D), in float64."""
    x = images.flatten(1)
    pixels = x.shape[1]
    if type(latent_dim) is not int or not 0 < latent_dim < pixels:
        raise UserError(f"latent_dim={latent_dim}: a closed form needs fewer dimensions than the {pixels} pixels")
    mean, covariance = _moments(x)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return mean, eigenvalues.flip(0).clamp(min=0), vectors.flip(1)[:, :latent_dim]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (n,) and the covariance (n, n) of images (N, n), in float64."""
    mean = x.mean(0, dtype=torch.float64)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for chunk in x.split(8192):  # because all of MNIST in float64 takes 376 MB
        centred = chunk - mean
        covariance.addmm_(centred.T, centred)
    return mean, covariance / len(x)


def _state_dict(decoder: Tensor, mean: Tensor, weight: Tensor, log_variance: Tensor | None = None) -> dict[str, Tensor]:
    """The state of x' = decoder z + mean and z = weight (x - mean). All images have the same log-variance (D,)."""
    bias = -weight @ mean
    if log_variance is not None:
        weight, bias = torch.cat([weight, torch.zeros_like(weight)]), torch.cat([bias, log_variance])
    state = {
        "posterior.linear.weight": weight,
        "posterior.linear.bias": bias,
        "decoder.layers.0.weight": decoder,
        "decoder.layers.0.bias": mean,
    }
    return {name: value.float() for name, value in state.items()}
