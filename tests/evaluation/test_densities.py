"""Densities that are fitted to codes agree with the densities that the codes were drawn from."""

import math

import pytest
import torch
from oracle import LinearGaussian
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaelab.distributions import Categoricals, HypersphericalUniform, Product
from vaelab.evaluation import densities


def two_clusters() -> MixtureSameFamily:
    """A mixture of two correlated Gaussians far from the origin, with different scales per dimension."""
    means = torch.tensor([[40.0, -3.0], [60.0, 2.0]])
    tilted = torch.tensor([[[9.0, 2.0], [2.0, 1.0]], [[4.0, -1.5], [-1.5, 1.0]]])
    return MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), MultivariateNormal(means, tilted))


def test_gmm_finds_the_mixture_that_made_the_codes() -> None:
    truth = two_clusters()
    fit = densities.gmm(truth.sample((4000,)), num_components=2)
    order = fit.component_distribution.mean[:, 0].argsort()
    torch.testing.assert_close(
        fit.mixture_distribution.probs[order], truth.mixture_distribution.probs, rtol=0, atol=0.03
    )
    for name in ("mean", "covariance_matrix"):
        found, known = (getattr(d.component_distribution, name) for d in (fit, truth))
        torch.testing.assert_close(found[order], known, rtol=0.1, atol=0.15)


def test_gmm_of_codes_near_a_plane() -> None:
    """A network with a narrow layer gives such codes, and float32 is too coarse for their Cholesky factor."""
    plane = torch.randn(2, 6, dtype=torch.float64)
    codes = 100 * torch.randn(2000, 2, dtype=torch.float64) @ plane + 0.01 * torch.randn(2000, 6)
    fit = densities.gmm(codes, num_components=2)
    torch.testing.assert_close(fit.sample((4000,)).double().T.cov(), codes.T.cov(), rtol=0.15, atol=2000)


def test_flow_is_a_density_in_the_units_of_the_codes() -> None:
    truth = two_clusters()
    fit = densities.flow(truth.sample((4000,)), steps=150)
    x, y = torch.linspace(10, 90, 321), torch.linspace(-15, 15, 151)
    points = torch.cartesian_prod(x, y)
    total = fit.log_prob(points).exp().sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert total.item() == pytest.approx(1, abs=0.01)
    z = truth.sample((4000,))
    gaussian = MultivariateNormal(z.mean(0), z.T.cov())
    assert truth.log_prob(z).mean() - 0.15 < fit.log_prob(z).mean() < truth.log_prob(z).mean() + 0.02
    assert fit.log_prob(z).mean() > gaussian.log_prob(z).mean() + 0.1
    drawn = fit.sample((4000,))
    torch.testing.assert_close(drawn.mean(0), z.mean(0), rtol=0, atol=0.7)
    torch.testing.assert_close(drawn.std(0), z.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["gmm", "flow"])
def test_the_seed_alone_decides_a_fit(name: str) -> None:
    z = two_clusters().sample((300,))
    settings = {"steps": 5} if name == "flow" else {}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = getattr(densities, name)(z, 1, **settings).log_prob(z)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(getattr(densities, name)(z, 1, **settings).log_prob(z), first)


def test_codes_are_draws_of_each_image_s_posterior() -> None:
    oracle = LinearGaussian()
    model, x = oracle.vae(exact=True), oracle.images(2000)
    y = torch.zeros(len(x), dtype=torch.long)
    z = densities.codes(model, zip(x.split(300), y.split(300), strict=True), seed=4)
    q = oracle.posterior(x)
    standardised = (z - q.mean) / q.stddev
    assert standardised.mean().abs() < 4 / math.sqrt(standardised.numel())
    assert standardised.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(densities.codes(model, zip(x.split(300), y.split(300), strict=True), seed=4), z)
    assert not torch.equal(densities.codes(model, [(x, y)], seed=5), z)


@pytest.mark.parametrize(
    ("prior", "space"),
    [
        (Categoricals(torch.zeros(1, 2)), "1 one-hot vectors of 2 categories"),
        (HypersphericalUniform(torch.zeros(2)), "the unit sphere"),
        (Product(HypersphericalUniform(torch.zeros(2)), Categoricals(torch.zeros(3, 2))), "the unit sphere"),
    ],
)
def test_codes_that_are_no_vectors(prior: torch.distributions.Distribution, space: str) -> None:
    model = LinearGaussian().vae(exact=True)
    model.prior = densities.Fitted(prior)
    with pytest.raises(ValueError, match=f"lie on {space}, not in R\\^D"):
        densities.codes(model, [])
    model.prior = None
    with pytest.raises(ValueError, match="maps of indices"):
        densities.codes(model, [])
