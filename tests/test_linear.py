"""Closed forms against the project's own model, on images of a known spectrum and on MNIST."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Normal

from train import train
from vaelab import linear, runs
from vaelab.data import MNISTDataModule, files
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO, Reconstruction
from vaelab.posteriors import DiagonalGaussian, PointMass
from vaelab.priors import StandardNormal
from vaelab.training import ClosedForm

SHAPE, D = (1, 4, 5), 3
EIGENVALUES = torch.tensor([4.0, 2.0, 1.0, *torch.linspace(0.3, 0.1, 17)], dtype=torch.float64)


@pytest.fixture
def images() -> Tensor:
    """500 images whose covariance has these very eigenvalues."""
    white = torch.randn(500, 20, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(0)).Q * math.sqrt(500)
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    return (0.5 + white * EIGENVALUES.sqrt() @ basis.T).float().view(-1, *SHAPE)


def linear_vae(state: dict[str, Tensor]) -> VAE:
    """model/network=linear, with these weights."""
    learned = "likelihood.log_scale" in state
    encoder, decoder = (partial(network, hidden=[]) for network in (MLPEncoder, MLPDecoder))
    posterior, scale = (DiagonalGaussian, "learned") if learned else (PointMass, math.sqrt(0.5))
    vae = VAE(D, SHAPE, encoder, posterior, StandardNormal, decoder, Gaussian(scale, mean="identity"))
    vae.load_state_dict(state)
    return vae


# Principal component analysis ----------------------------------------------------------------------------------------


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


# Probabilistic PCA ---------------------------------------------------------------------------------------------------


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
    """Without noise: log p(x | z) is quadratic in z, so its mean over q is that over 2 D cubature points."""
    points = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).unsqueeze(1)  # (2 D, 1, D)
    monkeypatch.setattr(Normal, "rsample", lambda q, _: q.loc + q.scale * points)
    vae = linear_vae(linear.ppca(images, D))
    terms = ELBO(num_samples=2 * D)(vae, images)
    log_p = linear.ppca_log_likelihood(vae.state_dict(), images)
    torch.testing.assert_close(terms["elbo"].double(), log_p, atol=1e-4, rtol=1e-5)
    for gradient in torch.autograd.grad(terms["loss"].mean(), list(vae.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=5e-5, rtol=0)


def test_noise_needs_variance() -> None:
    few = torch.randn(3, *SHAPE)  # around their mean they span two dimensions
    with pytest.raises(ValueError, match="latent_dim=2 leaves no variance for the noise of 3 images"):
        linear.ppca(few, 2)


# Principal angles ----------------------------------------------------------------------------------------------------


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


# MNIST ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_mnist() -> tuple[Tensor, Tensor]:
    """All 60,000 training and 10,000 test images in [0, 1]."""
    if not all((ROOT / "data" / "MNIST" / "raw" / name).is_file() for name in files.FILES):
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


# Callbacks -----------------------------------------------------------------------------------------------------------


WHOLE = ["trainer.limit_train_batches=null", "trainer.limit_test_batches=null", "data.val_size=0"]


def written(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "metrics.json").read_text())


def small_mnist(data_root: Path) -> tuple[Tensor, Tensor]:
    """Training and test images."""
    data = MNISTDataModule(str(data_root), val_size=0, binarization="none")
    data.setup()
    return data.images("train")[0], data.images("test")[0]


def test_pca_experiment_reports_the_closed_form(config: Compose, tmp_path: Path, data_root: Path) -> None:
    """Nothing is trained, pictures are drawn, and the test error is that of the optimum over the training images."""
    cfg = config("experiment=pca", *WHOLE, "model.latent_dim=5", "trainer.max_epochs=0")
    assert train(cfg, tmp_path) == written(tmp_path)["test"]["loss"]
    images, tests = small_mnist(data_root)
    mean, basis = images.flatten(1).mean(0), torch.linalg.eigh(torch.cov(images.flatten(1).double().T))[1][:, -5:]
    centred = (tests.flatten(1) - mean).double()
    expected = (centred - centred @ basis @ basis.T).square().sum(1).mean()
    assert written(tmp_path)["test"]["squared_error"] == pytest.approx(float(expected), rel=1e-5)
    assert "train" not in written(tmp_path)
    assert (tmp_path / "pictures" / "reconstructions.png").is_file()
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in linear.pca(images, 5).items())


def test_ppca_experiment_reports_the_log_likelihood(config: Compose, tmp_path: Path, data_root: Path) -> None:
    train(config("experiment=ppca", *WHOLE, "model.latent_dim=5", "trainer.max_epochs=0"), tmp_path)
    images, tests = small_mnist(data_root)
    expected = linear.ppca_log_likelihood(linear.ppca(images, 5), tests).mean()
    assert written(tmp_path)["test"]["elbo"] == pytest.approx(float(expected), rel=1e-5)


def test_a_closed_form_is_where_a_run_starts_and_not_where_it_resumes(config: Compose, tmp_path: Path) -> None:
    train(config("experiment=pca", "optimizer.lr=1e-2", "trainer.max_epochs=1"), tmp_path)
    first = torch.load(tmp_path / "weights.pt", weights_only=True)
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=2", "optimizer.lr=0"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert all(torch.equal(last["state_dict"][f"model.{name}"], value) for name, value in first.items())


def test_principal_angle_is_zero_at_pca_and_survives_resuming(config: Compose, tmp_path: Path) -> None:
    angle = "+callbacks.principal_angle._target_=vaelab.training.PrincipalAngle"
    train(config("experiment=pca", angle, "optimizer.lr=0.0", "trainer.max_epochs=1"), tmp_path)
    assert written(tmp_path)["train"]["principal_angle"] < 1e-3
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=2", "optimizer.lr=1e-2"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert 1 < written(tmp_path)["train"]["principal_angle"] <= 90
    assert (tmp_path / "train.log").read_text().count("degrees from the subspace of PCA") == 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["experiment=pca", "model/network=mlp"], "with method=pca needs model/network=linear, model/posterior=point_"),
        (["experiment=pca", "model.likelihood.mean=sigmoid"], "gaussian with mean=identity and a number as its scale"),
        (["experiment=pca", "callbacks.closed_form.method=ppca"], "model/posterior=diagonal_gaussian.* scale=learned"),
        (["experiment=ppca", "model/likelihood=laplace"], "with method=ppca needs .* model/likelihood=gaussian"),
        (["experiment=ppca", "model/prior=mixture"], "with method=ppca needs .* model/prior=standard_normal"),
        (["experiment=ppca", "model.prior.scale=2.0"], "with method=ppca needs .* of scale 1 and model/likelihood"),
        (["experiment=ppca", "data.binarization=dynamic"], "redraws the images; a closed form needs fixed"),
        (["experiment=linear_autoencoder", "model/network=mlp"], "looks at the columns of one matrix"),
        (["experiment=linear_autoencoder", "model.num_classes=10"], "one likelihood parameter per pixel and no labels"),
    ],
)
def test_a_callback_names_the_model_that_it_needs(
    config: Compose, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(config(*overrides), tmp_path)


def test_there_are_two_closed_forms() -> None:
    with pytest.raises(ValueError, match="method=ica: choose one of pca, ppca"):
        ClosedForm("ica")
