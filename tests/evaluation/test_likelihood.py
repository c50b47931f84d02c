"""The importance-weighted estimate agrees with exact values, quadrature and enumeration."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from oracle import LinearGaussian
from torch import Tensor, nn
from torch.distributions import Normal

from vaelab.evaluation import likelihood
from vaelab.evaluation.likelihood import exact_log_likelihood, importance_weighted
from vaelab.likelihoods import Bernoulli, Gaussian
from vaelab.models import VAE, LadderVAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian, PointMass
from vaelab.priors import StandardNormal
from vaelab.trace import Trace


def small(latent_dim: int, shape: tuple[int, int, int] = (1, 2, 3), **parts: object) -> VAE:
    """A VAE of six binary pixels with large weights, so its exact posterior is not Gaussian."""
    torch.manual_seed(4)
    encoder, decoder = partial(MLPEncoder, hidden=[8]), partial(MLPDecoder, hidden=[8])
    chosen = {"posterior": DiagonalGaussian, "prior": StandardNormal, "likelihood": Bernoulli(), **parts}
    model = VAE(latent_dim, shape, encoder=encoder, decoder=decoder, **chosen).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(3)
    return model


def binary_images(pixels: int = 6) -> Tensor:
    """All 2^pixels binary images."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels))).view(-1, 1, 2, pixels // 2)


def by_quadrature(model: VAE, x: Tensor) -> np.ndarray:
    """log p(x) by a quadrature over z, with the decoder in numpy so that it does not depend on the package."""
    weights = [w.detach().double().numpy() for w in model.decoder.parameters()]
    axis = np.linspace(-9, 9, 1201 if model.latent_dim == 1 else 241)
    z = np.stack(np.meshgrid(*[axis] * model.latent_dim, indexing="ij"), -1).reshape(-1, model.latent_dim)
    hidden = np.maximum(z @ weights[0].T + weights[1], 0)
    logits = hidden @ weights[2].T + weights[3]
    pixels = x.flatten(1).double().numpy()
    log_p = pixels @ logits.T - np.logaddexp(0, logits).sum(1)
    log_prior = -0.5 * (z**2).sum(1) - 0.5 * model.latent_dim * math.log(2 * math.pi)
    return np.logaddexp.reduce(log_p + log_prior, axis=1) + model.latent_dim * math.log(axis[1] - axis[0])


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_agrees_with_quadrature_within_two_standard_errors(latent_dim: int) -> None:
    model, x, count = small(latent_dim), binary_images(), 20_000
    exact = by_quadrature(model, x)
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-6)
    estimate = importance_weighted(model, x, num_samples=count)
    variance = (1 / estimate.ess - 1 / count).numpy()  # of each log-mean, by the delta method
    error = estimate.log_likelihood.numpy() - exact
    assert abs(error.mean()) < 2 * math.sqrt(variance.sum()) / len(x)
    assert (error**2 / variance).mean() == pytest.approx(1, abs=0.5)  # errors have the predicted size
    assert (estimate.elbo.numpy() < exact).all()
    assert (estimate.elbo.numpy() < exact - 0.01).any()  # the ELBO alone would not agree


def test_the_probabilities_of_all_images_sum_to_one() -> None:
    estimate = importance_weighted(small(2, (1, 2, 5)), binary_images(10), num_samples=1000)
    assert estimate.log_likelihood.exp().sum().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("num_samples", [1, 7, 1000])
def test_a_decoder_that_ignores_z_has_the_exact_value_for_every_k(num_samples: int) -> None:
    model = small(3)
    with torch.no_grad():
        model.posterior.linear.weight.zero_()  # q = p
        model.posterior.linear.bias.zero_()
        model.decoder.layers[0].weight.zero_()
    x = binary_images()
    exact = model.decode(torch.zeros(1, 3)).log_prob(x)
    estimate = importance_weighted(model, x, num_samples=num_samples)
    torch.testing.assert_close(estimate.log_likelihood, exact.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(estimate.elbo, exact.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(estimate.ess, torch.full_like(estimate.ess, num_samples))
    assert estimate.rate.abs().max() < 1e-5


class Recorder:
    """A model that keeps the log-weights of its traces."""

    def __init__(self, model: VAE) -> None:
        self.model, self.traces = model, []

    def __call__(self, x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace:
        trace = self.model(x, y, num_samples)
        self.traces.append((trace.log_weight(x).double(), trace.likelihood.log_prob(x).double()))
        return trace


@pytest.mark.parametrize("rows", [1, 50, 256, 10_000])
def test_streaming_is_the_same_as_all_samples_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, count = binary_images()[:7], 123
    recorder = Recorder(small(2))
    monkeypatch.setattr(likelihood, "rows_at_once", lambda *_: rows)
    done = []
    estimate = importance_weighted(recorder, x, num_samples=count, progress=done.append)
    assert sum(done) == 7
    assert all(len(log_w) * log_w.shape[1] <= rows for log_w, _ in recorder.traces)
    log_w, log_p = (torch.empty(count, 0, dtype=torch.float64) for _ in range(2))
    pieces = iter(recorder.traces)
    for images in done:
        block = []
        while sum(len(piece[0]) for piece in block) < count:
            block.append(next(pieces))
            assert block[-1][0].shape[1] == images
        log_w = torch.cat([log_w, torch.cat([piece[0] for piece in block])], dim=1)
        log_p = torch.cat([log_p, torch.cat([piece[1] for piece in block])], dim=1)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-6)
    close(estimate.log_likelihood, log_w.logsumexp(0) - math.log(count))
    close(estimate.elbo, log_w.mean(0))
    close(estimate.distortion, -log_p.mean(0))
    close(estimate.rate, (log_p - log_w).mean(0))
    weights = log_w.softmax(0)
    close(estimate.ess, 1 / weights.square().sum(0))


def test_one_sample_is_the_elbo_on_the_same_noise() -> None:
    model, x = small(2), binary_images()
    estimate = importance_weighted(model, x, num_samples=1, seed=5)
    torch.manual_seed(5)
    log_w = model(x).log_weight(x)[0]
    torch.testing.assert_close(estimate.log_likelihood, log_w.double(), atol=1e-5, rtol=0)
    assert torch.equal(estimate.log_likelihood, estimate.elbo)


def test_the_noise_depends_on_the_seed_alone() -> None:
    model, x = small(2), binary_images()[:5]
    state = torch.get_rng_state()
    first, again, other = (importance_weighted(model, x, num_samples=9, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.log_likelihood, again.log_likelihood)
    assert not torch.equal(first.log_likelihood, other.log_likelihood)
    assert torch.equal(state, torch.get_rng_state())


def test_labels_go_with_their_images() -> None:
    model = small(2, num_classes=3)
    x, y = binary_images(), torch.arange(64) % 3
    together = importance_weighted(model, x, y, num_samples=4000).log_likelihood
    for label in range(3):
        alone = importance_weighted(model, x[y == label], y[y == label], num_samples=4000, seed=1).log_likelihood
        torch.testing.assert_close(together[y == label], alone, atol=0.2, rtol=0)
    wrong = importance_weighted(model, x, (y + 1) % 3, num_samples=4000).log_likelihood
    assert (wrong - together).abs().max() > 1


def test_the_exact_posterior_as_the_proposal_gives_the_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(11), oracle.vae(exact=False).eval()  # with a random encoder
    exact = oracle.log_prob(x).double()
    assert (exact - importance_weighted(vae, x, num_samples=3).log_likelihood).mean() > 0.5
    monkeypatch.setattr(likelihood, "rows_at_once", lambda *_: 6)  # two images and three samples
    at_k = importance_weighted(vae, x, num_samples=3, proposal=oracle.posterior(x).base_dist)
    torch.testing.assert_close(at_k.log_likelihood, exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(at_k.elbo, exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(at_k.ess, torch.full_like(exact, 3), atol=1e-3, rtol=0)


def test_a_proposal_has_the_labels_of_its_images() -> None:
    model, x = small(2, num_classes=3), binary_images()
    y = torch.arange(64) % 3
    q = model.infer(x, y).base_dist
    torch.manual_seed(0)
    expected = importance_weighted(model, x, y, num_samples=4000).log_likelihood
    given = importance_weighted(model, x, y, num_samples=4000, proposal=Normal(q.mean, 1.2 * q.stddev)).log_likelihood
    assert (given - expected).mean().item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_linear_models_have_an_exact_value(scale: float) -> None:
    oracle = LinearGaussian()
    x = oracle.images()
    vae = oracle.vae(exact=True)
    exact = exact_log_likelihood(vae, x)
    assert exact is not None
    torch.testing.assert_close(exact, oracle.log_prob(x).double(), atol=1e-4, rtol=0)
    at_k = importance_weighted(vae, x, num_samples=3)
    torch.testing.assert_close(at_k.log_likelihood, exact, atol=1e-4, rtol=0)
    vae.prior = StandardNormal(2, scale)
    wide = exact_log_likelihood(vae, x)
    covariance = scale**2 * oracle.W @ oracle.W.T + oracle.sigma**2 * torch.eye(6)
    density = torch.distributions.MultivariateNormal(oracle.b, covariance)
    torch.testing.assert_close(wide, density.log_prob(x.flatten(1)).double(), atol=1e-4, rtol=0)


def test_other_models_have_no_exact_value() -> None:
    x = binary_images()
    assert exact_log_likelihood(small(2), x) is None
    assert exact_log_likelihood(small(2, likelihood=Gaussian()), x) is None
    assert exact_log_likelihood(small(2, likelihood=Gaussian(scale="per_pixel")), x) is None


def test_a_linear_ladder_has_no_exact_value() -> None:
    """decode uses the mean of the lower layer, but log p(x) includes that layer's noise."""
    linear, decoder = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    ladder = LadderVAE([2, 3], (1, 2, 3), linear, linear, StandardNormal, decoder, Gaussian()).eval()
    state = torch.get_rng_state()
    assert exact_log_likelihood(ladder, binary_images()) is None
    assert torch.equal(state, torch.get_rng_state())


def test_a_point_has_no_density() -> None:
    with pytest.raises(NotImplementedError, match="VAE with a point as its code has no density to estimate"):
        importance_weighted(small(2, posterior=PointMass), binary_images())
    with pytest.raises(ValueError, match="num_samples=0: a whole number"):
        importance_weighted(small(2), binary_images(), num_samples=0)


def test_chunks_are_sized_by_the_largest_tensor() -> None:
    wide = small(2)
    wide.decoder = nn.Sequential(nn.Linear(2, 1024), nn.Linear(1024, 6), nn.Unflatten(1, (1, 2, 3)))  # 4 KB a row
    assert likelihood.rows_at_once(wide, binary_images()[:1], None) == 512
