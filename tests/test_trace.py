"""The bound and its terms agree with the linear-Gaussian oracle."""

import math

import pytest
import torch
from oracle import LinearGaussian
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence

from vaelab.priors import StandardNormal
from vaelab.trace import Latent


def test_exact_posterior_makes_every_log_weight_the_log_likelihood() -> None:
    oracle = LinearGaussian()
    x = oracle.images()
    log_w = oracle.vae(exact=True)(x, num_samples=7).log_weight(x)
    assert log_w.shape == (7, 50)
    torch.testing.assert_close(log_w, oracle.log_prob(x).expand(7, 50), rtol=1e-4, atol=1e-4)


def test_gap_of_the_bound_is_the_divergence_from_the_exact_posterior() -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(20), oracle.vae(exact=False)
    log_w = vae(x, num_samples=200_000).log_weight(x)
    gap = oracle.log_prob(x) - log_w.mean(0)
    error = log_w.std(0) / 200_000**0.5
    expected = kl_divergence(vae.infer(x), oracle.posterior(x))
    assert (gap > 0).all()
    assert ((gap - expected).abs() < 5 * error + 1e-3).all()


def test_importance_weighted_bound_rises_with_samples_to_the_log_likelihood() -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(20), oracle.vae(exact=False)
    log_w = vae(x, num_samples=2**16).log_weight(x)  # the bound averages groups of K samples
    bounds = [
        (log_w.view(-1, k, 20).logsumexp(1) - torch.tensor(float(k)).log()).mean().item() for k in (1, 4, 64, 2**16)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < bounds[3]
    assert bounds[3] == pytest.approx(oracle.log_prob(x).mean().item(), abs=0.05)


@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_kl_is_its_monte_carlo_estimate_and_the_sum_over_dimensions(scale: float) -> None:
    q = Independent(Normal(torch.tensor([[0.3, -1.2, 0.0]]), torch.tensor([[0.5, 1.7, 1.0]])), 1)
    p = StandardNormal(3, scale)(lambda: q)
    z = q.sample((400_000,))
    latent = Latent(z, q, p, q.log_prob(z))
    estimate = latent.log_q - p.log_prob(z)
    assert latent.kl().shape == (1, 1)
    assert latent.kl().item() == pytest.approx(estimate.mean().item(), abs=5 * estimate.std().item() / 400_000**0.5)
    torch.testing.assert_close(latent.kl_per_dim().sum(-1), latent.kl())


def test_kl_is_zero_at_the_prior() -> None:
    p = StandardNormal(4)(lambda: None)
    q = Independent(Normal(torch.zeros(2, 4), torch.ones(2, 4)), 1)
    assert torch.equal(Latent(q.mean, q, p, q.log_prob(q.mean)).kl_per_dim(), torch.zeros(1, 2, 4))


def test_kl_per_dimension_needs_factorised_gaussians() -> None:
    p = StandardNormal(2)(lambda: None)
    q = MultivariateNormal(torch.zeros(5, 2), torch.eye(2))
    with pytest.raises(TypeError, match=r"needs factorised Gaussians, got q = MultivariateNormal and p = Independent"):
        Latent(q.mean, q, p, q.log_prob(q.mean)).kl_per_dim()


def test_a_pair_without_closed_form_never_falls_through() -> None:
    p = StandardNormal(2)(lambda: None)
    q = Categorical(torch.ones(5, 2))
    with pytest.raises(NotImplementedError, match="has no closed form here: kl=sample estimates it"):
        Latent(torch.zeros(1, 5, 2), q, p, torch.zeros(1, 5)).kl()


def test_the_rate_of_gaussians_is_finite_at_any_scale() -> None:
    """At log variance -90, float32's variance is zero, so torch's divergence would be infinite."""
    log_variance = torch.linspace(-160, 80, 25).requires_grad_()
    q = Independent(Normal(torch.full((25,), 0.5), (0.5 * log_variance).exp()), 1)
    p = Independent(Normal(torch.zeros(25), torch.full((25,), 2.0)), 1)
    latent = Latent(torch.zeros(1, 25), q, p)
    variance = log_variance.detach().double().exp()
    expected = 0.5 * ((variance + 0.25) / 4 - 1 - log_variance.detach().double() + math.log(4))
    torch.testing.assert_close(latent.kl_per_dim().flatten().double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(latent.kl().sum(), log_variance)
    torch.testing.assert_close(gradient.double(), 0.5 * (variance / 4 - 1), rtol=1e-4, atol=1e-6)
