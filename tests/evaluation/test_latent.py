"""Latent statistics agree with quadrature and enumeration, and dead units are found."""

import itertools
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from conftest import ROOT, compose_config
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vaelab import posteriors, priors
from vaelab.distributions import Categoricals, Delta, HypersphericalUniform, PowerSpherical, Product
from vaelab.evaluation import latent
from vaelab.evaluation.latent import latent_statistics
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.training.module import rehearse


def model_of(posterior: Any, prior: Distribution) -> Any:
    """A model with the given posteriors: the pixel of an image (N, 1, 1, 1) is the index of its posterior."""

    def infer(x: Tensor, y: Tensor | None = None) -> Distribution:
        return posterior((x if y is None else y).flatten().long())

    def encode(x: Tensor, y: Tensor | None = None) -> Tensor:
        return infer(x, y).mean

    return SimpleNamespace(infer=infer, encode=encode, prior=lambda _: prior)


def numbers(n: int) -> Tensor:
    return torch.arange(n).float().view(n, 1, 1, 1)


def gaussians(mean: Tensor, std: Tensor, scale: float = 1.0) -> Any:
    """Factorised Gaussians (N, D) under the prior N(0, scale^2 I)."""
    prior = Independent(Normal(torch.zeros(mean.shape[1]), scale), 1)
    return model_of(lambda n: Independent(Normal(mean[n], std[n]), 1), prior)


def normal_density(z: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    return np.exp(-0.5 * ((z - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, so five images and their codes need several blocks and the last ones are smaller."""
    monkeypatch.setattr(latent, "BATCH", 2)
    monkeypatch.setattr(latent, "CHUNK", 3000)


# Mean KL = mutual information + aggregate KL -------------------------------------------------------------------------


@pytest.mark.usefixtures("_small_blocks")
def test_one_dimension_against_quadrature() -> None:
    mean, std, scale = torch.tensor([-2.0, -1.5, 0.0, 0.1, 1.7]), torch.tensor([0.3, 0.8, 0.5, 1.2, 0.2]), 1.5
    z, step = np.linspace(-12, 12, 100_001, retstep=True)
    q = normal_density(z, mean.double().numpy()[:, None], std.double().numpy()[:, None])  # (N, points)
    p, aggregate = normal_density(z, 0, scale), q.mean(0)
    information = (q * np.log(q / aggregate, where=q > 0, out=np.zeros_like(q))).sum(1).mean() * step
    divergence = (aggregate * np.log(aggregate / p)).sum() * step

    x = numbers(5)
    metrics = latent_statistics(gaussians(mean[:, None], std[:, None], scale), x, num_samples=20_000).metrics
    assert metrics["mutual_information"] == pytest.approx(information, abs=0.01)  # 4 standard errors
    assert metrics["aggregate_kl"] == pytest.approx(divergence, abs=0.01)
    assert metrics["mean_kl"] == pytest.approx(information + divergence, abs=0.01)
    assert metrics["mean_kl"] == pytest.approx(metrics["mutual_information"] + metrics["aggregate_kl"], abs=1e-6)
    assert metrics["total_correlation"] == pytest.approx(0, abs=1e-6)  # a single dimension has none


@pytest.mark.usefixtures("_small_blocks")
def test_two_dimensions_against_quadrature() -> None:
    mean = torch.tensor([[-1.0, -1.2], [0.5, 0.9], [1.0, 0.7], [-0.5, 0.3], [2.0, 1.0]])
    std = torch.tensor([[0.4, 0.7], [0.5, 0.3], [0.9, 0.5], [0.3, 0.6], [0.3, 0.3]])
    z, step = np.linspace(-6, 6, 1201, retstep=True)
    first, second = (
        normal_density(z, m[:, None], s[:, None]) for m, s in zip(mean.T.numpy(), std.T.numpy(), strict=True)
    )
    q = first[:, :, None] * second[:, None, :]  # (N, points, points)
    aggregate, p = q.mean(0), np.outer(normal_density(z, 0, 1), normal_density(z, 0, 1))
    independent = np.outer(first.mean(0), second.mean(0))

    def integral(density: np.ndarray, ratio: np.ndarray) -> float:
        return (density * np.log(np.where(density > 0, ratio, 1))).sum() * step**2

    with np.errstate(divide="ignore", invalid="ignore"):
        expected = {
            "mutual_information": np.mean([integral(one, one / aggregate) for one in q]),
            "aggregate_kl": integral(aggregate, aggregate / p),
            "total_correlation": integral(aggregate, aggregate / independent),
        }
    metrics = latent_statistics(gaussians(mean, std), numbers(5), num_samples=20_000).metrics
    assert expected["total_correlation"] > 0.3
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=0.015), name


@pytest.mark.usefixtures("_small_blocks")
def test_categoricals_against_enumeration() -> None:
    logits, prior_logits = 2 * torch.randn(5, 2, 3), torch.randn(2, 3)
    model = model_of(lambda n: Categoricals(logits[n]), Categoricals(prior_logits))
    codes = torch.stack([torch.eye(3)[[i, j]].flatten() for i, j in itertools.product(range(3), repeat=2)])
    q = Categoricals(logits).log_prob(codes.unsqueeze(1)).T.exp().double()  # (N, 9)
    p = Categoricals(prior_logits).log_prob(codes).exp().double()
    torch.testing.assert_close(q.sum(1), torch.ones(5).double(), rtol=1e-6, atol=0)
    aggregate = q.mean(0)
    found = latent_statistics(model, numbers(5), num_samples=20_000)
    assert found.metrics["mutual_information"] == pytest.approx(float((q * (q / aggregate).log()).sum() / 5), abs=0.01)
    assert found.metrics["aggregate_kl"] == pytest.approx(float((aggregate * (aggregate / p).log()).sum()), abs=0.01)
    assert "active_units" not in found.metrics
    assert found.absent["active_units"] == "units are counted only if q(z | x) is a density on R^D"
    assert found.absent["total_correlation"] == "the density of a single dimension is known for Gaussians only"
    assert found.collapse() is None


@pytest.mark.usefixtures("_small_blocks")
def test_full_covariance_against_closed_form() -> None:
    """With one image, the mutual information is zero and the total correlation is -1/2 log(1 - r^2)."""
    factor = torch.tensor([[0.8, 0.0], [0.5, 0.4]])
    q = MultivariateNormal(torch.tensor([[0.3, -1.0]]), scale_tril=factor.unsqueeze(0))
    p = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    found = latent_statistics(model_of(lambda _: q, p), numbers(1), num_samples=20_000)
    covariance = factor @ factor.T
    r = covariance[0, 1] / covariance.diagonal().prod().sqrt()
    assert found.metrics["total_correlation"] == pytest.approx(float(-0.5 * (1 - r**2).log()), abs=0.03)
    assert found.metrics["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert found.rates is None
    assert "needs factorised Gaussians, got q = MultivariateNormal" in found.absent["rate_per_dim"]


def test_one_image_has_no_information_and_factors_do_not_correlate() -> None:
    metrics = latent_statistics(gaussians(torch.randn(1, 4), torch.rand(1, 4)), numbers(1), num_samples=100).metrics
    assert metrics["mutual_information"] == pytest.approx(0, abs=1e-6)
    assert metrics["total_correlation"] == pytest.approx(0, abs=1e-5)
    assert metrics["aggregate_kl"] == pytest.approx(metrics["mean_kl"], abs=1e-5)


def test_information_reaches_the_logarithm_of_the_number_of_images() -> None:
    model = gaussians(100 * numbers(64).view(64, 1), torch.full((64, 1), 0.1))
    metrics = latent_statistics(model, numbers(64)).metrics
    assert metrics["mutual_information"] == pytest.approx(math.log(64), abs=1e-5)
    assert metrics["information_limit"] == math.log(64)
    assert metrics["mean_kl"] > 1000


def test_rate_of_each_dimension() -> None:
    mean, std = torch.randn(7, 3), 0.2 + torch.rand(7, 3)
    expected = 0.5 * (mean**2 + std**2 - 1) - std.log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "BATCH", 3)
        torch.testing.assert_close(latent_statistics(gaussians(mean, std), numbers(7)).rates, expected.mean(0))


def test_seed_alone_decides() -> None:
    model, x = gaussians(torch.randn(9, 2), 0.5 + torch.rand(9, 2)), numbers(9)
    before = torch.get_rng_state()
    first = latent_statistics(model, x, seed=1).metrics
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(1)
    assert latent_statistics(model, x, seed=1).metrics == first
    assert latent_statistics(model, x, seed=2).metrics != first


def test_labels_go_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "BATCH", 2)
    mean = torch.randn(5, 2)
    y = torch.tensor([4, 0, 2, 2, 1])
    found = latent_statistics(gaussians(mean, torch.ones(5, 2)), torch.zeros(5, 1, 1, 1), y)
    assert torch.equal(found.codes, mean[y])
    torch.testing.assert_close(found.variances, mean[y].var(0, correction=0))
    torch.testing.assert_close(found.rates, 0.5 * mean[y].square().mean(0))


# Units ---------------------------------------------------------------------------------------------------------------


def vae_that_ignores(*units: int) -> VAE:
    """A linear VAE with 784 pixels. The given units equal the prior for every image, and the decoder ignores them."""
    linear = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    vae = VAE(6, (1, 28, 28), linear[0], posteriors.DiagonalGaussian, priors.StandardNormal, linear[1], Bernoulli())
    with torch.no_grad():
        for unit in units:
            for row in (unit, 6 + unit):  # mean and log-variance
                vae.posterior.linear.weight[row] = vae.posterior.linear.bias[row] = 0
            vae.decoder.layers[0].weight[:, unit] = 0
    return vae.eval()


def test_dead_units_are_those_that_the_model_ignores(digits: tuple[Tensor, Tensor]) -> None:
    x, vae = (digits[0][:200] > 127).float(), vae_that_ignores(1, 4)
    found = latent_statistics(vae, x)
    assert found.collapsed == [1, 4]
    assert found.metrics["active_units"] == 4
    assert found.rates is not None
    assert found.rates[[1, 4]].tolist() == [0, 0]
    z = vae(x).latents[0].z[0]
    dead, alive = z.clone(), z.clone()
    dead[:, [1, 4]] = 0
    alive[:, 0] = 0
    log_p = vae.decode(z).log_prob(x)
    assert torch.equal(vae.decode(dead).log_prob(x), log_p)
    assert (vae.decode(alive).log_prob(x) - log_p).abs().mean() > 1


@pytest.mark.parametrize(("variance", "active"), [(0.0099, 0), (0.0101, 1)])
def test_a_unit_is_active_above_a_hundredth(variance: float, active: int) -> None:
    mean = math.sqrt(variance) * torch.tensor([[-1.0], [1.0], [1.0], [-1.0]])
    assert latent_statistics(gaussians(mean, torch.ones(4, 1)), numbers(4)).metrics["active_units"] == active


def test_sentence_names_units_and_remedies(digits: tuple[Tensor, Tensor]) -> None:
    x = (digits[0][:100] > 127).float()
    sentence = latent_statistics(vae_that_ignores(1, 4), x).collapse()
    assert sentence is not None
    assert sentence.startswith("2 of 6 units have collapsed (z_1, z_4): ")
    assert all(remedy in sentence for remedy in latent.REMEDIES)
    assert latent_statistics(vae_that_ignores(), x).collapse() is None
    without_rates = vae_that_ignores(1, 4)
    without_rates.prior = priors.GaussianMixture(6)
    sentence = latent_statistics(without_rates, x).collapse()
    assert sentence is not None
    assert all(remedy in sentence for remedy in latent.REMEDIES_WITHOUT_RATES)
    many = latent_statistics(gaussians(torch.zeros(3, 12), torch.ones(3, 12)), numbers(3)).collapse()
    assert many is not None
    assert many.startswith("12 of 12 units have collapsed (z_0, z_1, z_2, z_3, z_4, z_5, z_6, z_7, z_8, z_9, ...): ")


PARTS = [
    ("model=vae", latent.REMEDIES),
    ("model=ladder", latent.REMEDIES),
    ("model/prior=mixture", latent.REMEDIES_WITHOUT_RATES),
    ("model/posterior=full_covariance", latent.REMEDIES_WITHOUT_RATES),
    ("model/posterior=flow", latent.REMEDIES_WITHOUT_RATES),
    ("model/posterior=joint model/prior=joint", latent.REMEDIES_WITHOUT_RATES),
    ("model=ladder model.inference=bottom_up", latent.REMEDIES_WITHOUT_RATES),
]


@pytest.mark.parametrize(("parts", "remedies"), PARTS)
def test_remedies_can_be_tried(parts: str, remedies: tuple[str, ...]) -> None:
    """A model with these parts accepts each remedy that its statistics recommend."""
    for remedy in remedies:
        cfg = compose_config(ROOT, *parts.split(), *remedy.split(" (")[0].split())
        model = hydra.utils.instantiate(cfg.model).eval()
        rehearse(model, hydra.utils.instantiate(cfg.objective))
    assert (latent_statistics(model, torch.zeros(2, 1, 28, 28)).rates is not None) == (remedies is latent.REMEDIES)


# Undefined statistics -------------------------------------------------------------------------------------------------


def statistics_of(*overrides: str) -> latent.LatentStatistics:
    model = hydra.utils.instantiate(compose_config(ROOT, *overrides).model).eval()
    return latent_statistics(model, torch.rand(3, 1, 28, 28))


@pytest.mark.parametrize(
    ("overrides", "units", "why"),
    [
        (["experiment=autoencoder"], False, "a point mass has no density"),
        (["experiment=vq_vae"], False, "a VQ-VAE has no q"),
        (["experiment=iaf_posterior"], True, "a flow would have to run once for each pair"),
        (["model=ladder", "model.inference=bottom_up"], True, "no density of the top code"),
    ],
)
def test_what_is_absent_has_a_reason(overrides: list[str], units: bool, why: str) -> None:
    found = statistics_of(*overrides)
    assert set(found.metrics) == ({"active_units"} if units else set())
    assert all(why in found.absent[name] for name in ("rate_per_dim", "mutual_information", "total_correlation"))
    assert ("active_units" in found.absent) is not units
    assert found.rates is None


def test_blocks_count_their_real_units() -> None:
    q = Product(Independent(Normal(torch.zeros(3, 2), 1), 1), Categoricals(torch.randn(3, 2, 3)))
    p = Product(Independent(Normal(torch.zeros(2), 1), 1), Categoricals(torch.zeros(2, 3)))
    found = latent_statistics(model_of(lambda _: q, p), numbers(3))
    assert found.collapsed == [0, 1]
    assert found.metrics["active_units"] == 0
    assert {"mutual_information", "aggregate_kl"} < set(found.metrics)


def test_one_block_without_a_density_is_enough() -> None:
    q = Product(Delta(torch.zeros(3, 1)), Independent(Normal(torch.arange(3.0).view(3, 1), 1), 1))
    p = Independent(Normal(torch.zeros(2), 1), 1)
    found = latent_statistics(model_of(lambda _: q, p), numbers(3))
    assert found.metrics == {"active_units": 1}
    assert found.absent["mutual_information"] == "a point mass has no density"


def test_a_sphere_has_information_but_no_units() -> None:
    mu = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    model = model_of(lambda n: PowerSpherical(mu[n], torch.full((len(n),), 1e6)), HypersphericalUniform(torch.zeros(3)))
    metrics = latent_statistics(model, numbers(4)).metrics
    assert metrics["mutual_information"] == pytest.approx(math.log(4), abs=1e-4)
    assert set(metrics) == {"mean_kl", "mutual_information", "information_limit", "aggregate_kl"}
