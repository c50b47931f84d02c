"""Closed forms agree with the project's own model, on images with known eigenvalues and on MNIST."""

import math
from functools import partial

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Normal

from vaelab import linear
from vaelab.data import MNISTDataModule
from vaelab.evaluation.latent import latent_statistics
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO, Reconstruction
from vaelab.posteriors import DiagonalGaussian, PointMass
from vaelab.priors import StandardNormal

SHAPE, D = (1, 4, 5), 3


EIGENVALUES = torch.tensor([4.0, 2.0, 1.0, *torch.linspace(0.3, 0.1, 17)], dtype=torch.float64)


@pytest.fixture
def images() -> Tensor:
    """500 images with a covariance that has exactly the eigenvalues above."""
    white = torch.randn(500, 20, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(0)).Q * math.sqrt(500)
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    return (0.5 + white * EIGENVALUES.sqrt() @ basis.T).float().view(-1, *SHAPE)


def linear_vae(state: dict[str, Tensor]) -> VAE:
    """A VAE with model/network=linear and these weights."""
    learned = "likelihood.log_scale" in state
    encoder, decoder = (partial(network, hidden=[]) for network in (MLPEncoder, MLPDecoder))
    posterior, scale = (DiagonalGaussian, "learned") if learned else (PointMass, math.sqrt(0.5))
    vae = VAE(D, SHAPE, encoder, posterior, StandardNormal, decoder, Gaussian(scale, mean="identity"))
    vae.load_state_dict(state)
    return vae


def test_squared_error_of_pca_is_the_sum_of_the_discarded_eigenvalues(images: Tensor) -> None:
    squared_error = Reconstruction()(linear_vae(linear.pca(images, D)), images)["squared_error"]
    assert squared_error.double().mean().item() == pytest.approx(float(EIGENVALUES[D:].sum()), rel=1e-6)


def test_pca_is_a_stationary_point_of_reconstruction(images: Tensor) -> None:
    vae = linear_vae(linear.pca(images, D))
    for gradient in torch.autograd.grad(Reconstruction()(vae, images)["loss"].mean(), list(vae.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=2e-5, rtol=0)
    with torch.no_grad():
        vae.decoder.layers[0].weight *= 1.1
    gradients = torch.autograd.grad(Reconstruction()(vae, images)["loss"].mean(), list(vae.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0.1


@pytest.mark.parametrize("latent_dim", [0, 20, 21, 2.0])
@pytest.mark.parametrize("method", [linear.pca, linear.ppca])
def test_fewer_dimensions_than_pixels(images: Tensor, method: object, latent_dim: int) -> None:
    with pytest.raises(ValueError, match=f"latent_dim={latent_dim}: a closed form needs fewer .* the 20 pixels"):
        method(images, latent_dim)


def test_every_log_weight_at_the_optimum_is_the_log_likelihood(images: Tensor) -> None:
    state = linear.ppca(images, D)
    log_p = linear.ppca_log_likelihood(state, images)
    log_w = linear_vae(state)(images, num_samples=4).log_weight(images)  # (K, B)
    torch.testing.assert_close(log_w.double(), log_p.expand(4, -1), atol=1e-4, rtol=1e-5)


def test_log_likelihood_at_the_optimum_follows_from_the_eigenvalues(images: Tensor) -> None:
    log_p = linear.ppca_log_likelihood(linear.ppca(images, D), images).mean()
    kept, variance, n = EIGENVALUES[:D], EIGENVALUES[D:].mean(), len(EIGENVALUES)
    expected = -0.5 * (n * math.log(2 * math.pi) + kept.log().sum() + (n - D) * variance.log() + n)
    assert float(log_p) == pytest.approx(float(expected), rel=1e-6)


def test_log_likelihood_is_that_of_the_marginal_anywhere(images: Tensor) -> None:
    state = linear.ppca(images, D)
    state = {name: value + 0.3 * torch.randn_like(value) for name, value in state.items()}
    weight, mean = state["decoder.layers.0.weight"].double(), state["decoder.layers.0.bias"].double()
    covariance = weight @ weight.T + (2 * state["likelihood.log_scale"].double()).exp() * torch.eye(20)
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(images.flatten(1).double())
    torch.testing.assert_close(linear.ppca_log_likelihood(state, images), expected)


def test_ppca_is_a_stationary_point_of_the_elbo(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of log p(x | z), quadratic in z, is exact with 2 D cubature points instead of noise."""
    points = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).unsqueeze(1)  # (2 D, 1, D)
    monkeypatch.setattr(Normal, "rsample", lambda q, _: q.loc + q.scale * points)
    vae = linear_vae(linear.ppca(images, D))
    terms = ELBO(num_samples=2 * D)(vae, images)
    log_p = linear.ppca_log_likelihood(vae.state_dict(), images)
    torch.testing.assert_close(terms["elbo"].double(), log_p, atol=1e-4, rtol=1e-5)
    for gradient in torch.autograd.grad(terms["loss"].mean(), list(vae.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=5e-5, rtol=0)


def test_noise_needs_variance() -> None:
    few = torch.randn(3, *SHAPE)  # three images span two dimensions around their mean
    with pytest.raises(ValueError, match="latent_dim=2 leaves no variance for the noise of 3 images"):
        linear.ppca(few, 2)


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 30.0, 60.0, 90.0 - 1e-7, 90.0])
def test_angle_between_planes(degrees: float) -> None:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    plane = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    turned = torch.tensor([[1.0, 0.0], [0.0, cosine], [0.0, sine]], dtype=torch.float64)
    mixed = turned @ torch.tensor([[2.0, 1.0], [-1.0, 3.0]], dtype=torch.float64)  # other columns, the same plane
    assert linear.principal_angle(plane, mixed) == pytest.approx(degrees, abs=1e-12)
    line = turned[:, 1:]
    assert linear.principal_angle(line, plane) == pytest.approx(degrees, abs=1e-12)
    assert linear.principal_angle(plane, line) == pytest.approx(degrees, abs=1e-12)


@pytest.fixture(scope="module")
def full_mnist() -> tuple[Tensor, Tensor]:
    """All 60,000 training and 10,000 test images in [0, 1]."""
    if not all((ROOT / "data" / "MNIST" / "raw" / name).is_file() for name in MNISTDataModule.names):
        pytest.skip("the table is that of the full MNIST, which is not in data/MNIST/raw")
    md5 = OmegaConf.load(ROOT / "configs" / "data" / "mnist.yaml").md5
    data = MNISTDataModule(str(ROOT / "data"), val_size=0, binarization="none", allow_subset=False, md5=md5)
    data.setup()
    train_images, test_images = (data.splits[split][0].float().div_(255) for split in ("train", "test"))
    return train_images, test_images


@pytest.mark.parametrize(
    ("latent_dim", "variance", "train_log_p", "test_log_p", "test_error"),
    [
        (2, 0.056096, 12.428, 14.360, 0.055669),
        (10, 0.034867, 182.155, 186.024, 0.034074),
        (20, 0.024597, 299.758, 306.549, 0.023538),
        (50, 0.012596, 507.905, 517.603, 0.011485),
    ],
)
def test_mnist(
    full_mnist: tuple[Tensor, Tensor],
    latent_dim: int,
    variance: float,
    train_log_p: float,
    test_log_p: float,
    test_error: float,
) -> None:
    train_images, test_images = full_mnist
    state = linear.ppca(train_images, latent_dim)
    assert float((2 * state["likelihood.log_scale"]).exp()) == pytest.approx(variance, abs=5e-7)
    for images, expected in ((train_images, train_log_p), (test_images, test_log_p)):
        log_p = torch.cat([linear.ppca_log_likelihood(state, chunk) for chunk in images.split(10_000)])
        assert float(log_p.mean()) == pytest.approx(expected, abs=5e-4)
    basis = linear.pca(train_images, latent_dim)["decoder.layers.0.weight"]
    centred = test_images.flatten(1) - state["decoder.layers.0.bias"]
    error = (centred - centred @ basis @ basis.T).square().mean()
    assert float(error) == pytest.approx(test_error, abs=5e-7)


# Collapse -------------------------------------------------------------------------------------------------------------


def test_the_spectrum_of_few_and_of_many_images(images: Tensor) -> None:
    torch.testing.assert_close(linear.spectrum(images), EIGENVALUES, rtol=1e-4, atol=1e-5)
    few = images[:7]
    expected = torch.linalg.eigvalsh(torch.cov(few.flatten(1).double().T, correction=0)).flip(0)[:7]
    torch.testing.assert_close(linear.spectrum(few), expected, rtol=1e-6, atol=1e-12)


def test_units_kept_are_eigenvalues_above_the_noise() -> None:
    assert [linear.units_kept(EIGENVALUES, noise) for noise in (5, 3, 1.5, 0.5, 0)] == [0, 1, 2, 3, 20]


def test_units_kept_on_mnist(full_mnist: tuple[Tensor, Tensor]) -> None:
    eigenvalues = linear.spectrum(full_mnist[0])
    assert float(eigenvalues.sum()) == pytest.approx(52.73, abs=0.005)
    counts = [linear.units_kept(eigenvalues, noise) for noise in (392, 5, 2, 1, 0.5, 0.25, 0.1, 0.05)]
    assert counts == [0, 1, 6, 12, 23, 39, 69, 102]


@pytest.mark.parametrize(("variance", "beta"), [(0.5, 1.0), (0.5, 3.0), (1.5, 1.0), (5.0, 1.0), (0.5, 10.0)])
def test_a_trained_linear_vae_keeps_the_units_that_the_spectrum_foretells(
    images: Tensor, variance: float, beta: float
) -> None:
    """Five units learn from random weights. Those that are kept have the closed form's scales and rates."""
    linear_parts = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    likelihood = Gaussian(math.sqrt(variance), mean="identity")
    vae = VAE(5, SHAPE, linear_parts[0], DiagonalGaussian, StandardNormal, linear_parts[1], likelihood)
    objective = ELBO(beta=beta)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        objective(vae, images)["loss"].mean().backward()
        optimizer.step()
        schedule.step()
    found, noise = latent_statistics(vae.eval(), images), beta * variance
    kept = linear.units_kept(EIGENVALUES, noise)
    assert found.metrics["active_units"] == kept
    columns = torch.linalg.svdvals(vae.decoder.layers[0].weight.double()).square()
    torch.testing.assert_close(columns[:kept], EIGENVALUES[:kept] - noise, rtol=0.1, atol=0)
    assert (columns[kept:] < 0.05).all()
    rate = 0.5 * (EIGENVALUES[:kept] / noise).log().sum().item()
    assert found.rates is not None
    assert found.rates.sum().item() == pytest.approx(rate, abs=0.05)
