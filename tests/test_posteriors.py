"""Posteriors read their features as documented, and have the right densities."""

import pytest
import torch
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from vaelab.distributions import Delta
from vaelab.objectives import ELBO
from vaelab.posteriors import DiagonalGaussian, FullCovarianceGaussian, PointMass
from vaelab.priors import StandardNormal
from vaelab.trace import Latent


def test_diagonal_gaussian_reads_mean_and_log_variance() -> None:
    posterior = DiagonalGaussian(7, 3)
    h = torch.randn(5, 7)
    mean, log_variance = posterior.linear(h).chunk(2, -1)
    q = posterior(h)
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, log_variance.exp())


def infer(u: torch.Tensor) -> Distribution:
    """A stand-in for an encoder: the code's mean depends on the means of the image's two halves."""
    mean = u.flatten(1).unflatten(1, (2, -1)).mean(-1) * 4 - 2
    return Independent(Normal(mean, 0.3 + mean.abs() / 4), 1)


def test_full_covariance_starts_diagonal_and_reads_its_factor() -> None:
    torch.manual_seed(1)
    posterior, h = FullCovarianceGaussian(5, 4), torch.randn(3, 5)
    diagonal = DiagonalGaussian(5, 4)
    diagonal.linear = posterior.linear
    torch.testing.assert_close(posterior(h).covariance_matrix, torch.diag_embed(diagonal(h).variance))
    torch.nn.init.normal_(posterior.correlation.weight)
    factor = posterior(h).scale_tril
    assert torch.equal(factor.triu(1), torch.zeros_like(factor))
    torch.testing.assert_close(factor[:, 2, 0], posterior.correlation(h)[:, 1])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_kl_of_a_full_covariance_is_its_monte_carlo_estimate(scale: float) -> None:
    factor = torch.tensor([[0.8, 0.0, 0.0], [0.5, 1.2, 0.0], [-0.7, 0.3, 0.4]])
    q = MultivariateNormal(torch.tensor([[0.2, -1.0, 0.6]]), scale_tril=factor)
    p = StandardNormal(3, scale)(infer)
    z = q.sample((400_000,))
    estimate = q.log_prob(z) - p.log_prob(z)
    latent = Latent(z, q, p, q.log_prob(z))
    assert latent.kl().item() == pytest.approx(estimate.mean().item(), abs=5 * estimate.std().item() / 400_000**0.5)
    full = MultivariateNormal(torch.zeros(3), scale**2 * torch.eye(3))
    torch.testing.assert_close(latent.kl(), kl_divergence(q, full).unsqueeze(0))
    at_prior = MultivariateNormal(torch.zeros(1, 3), scale_tril=scale * torch.eye(3))
    assert kl_divergence(at_prior, p).abs().item() < 1e-6


def test_a_point_mass_has_no_density_and_its_elbo_says_so() -> None:
    from oracle import LinearGaussian

    q = PointMass(4, 2)(torch.randn(3, 4))
    assert isinstance(q, Delta)
    assert torch.equal(q.rsample((5,)), q.mean.expand(5, 3, 2))
    assert q.log_prob(q.mean).tolist() == [float("inf")] * 3
    oracle = LinearGaussian()
    vae = oracle.vae(exact=False)
    vae.posterior = PointMass(6, 2)
    assert ELBO()(vae, oracle.images(3))["loss"].tolist() == [float("inf")] * 3


def test_the_log_variance_of_a_gaussian_is_clamped_to_its_range() -> None:
    """Outside of the range it has no gradient."""
    torch.manual_seed(0)
    posterior = DiagonalGaussian(3, 2, log_variance=[-6, 2])
    h = (50 * torch.randn(200, 3)).requires_grad_()
    q = posterior(h).base_dist
    free = posterior.linear(h)[:, 2:]
    torch.testing.assert_close(q.variance, free.clamp(-6, 2).exp())
    q.variance.sum().backward()
    outside = ((free < -6) | (free > 2)).all(1)
    assert outside.any()
    assert not h.grad[outside].any()
    assert h.grad[~outside].any()


@pytest.mark.parametrize("bad", [[-6], [2, -6], [0, 0], [-6, float("inf")], [1, 2, 3], []])
def test_a_range_of_log_variances_has_two_ends(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="log_variance"):
        DiagonalGaussian(3, 2, log_variance=bad)
