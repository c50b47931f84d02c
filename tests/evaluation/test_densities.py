"""Densities that are fitted to codes agree with the densities that the codes were drawn from."""

import math

import pytest
import torch
from oracle import LinearGaussian
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaelab.distributions import Categoricals, HypersphericalUniform, Product
from vaelab.errors import NotOfferedError
from vaelab.evaluation import densities
from vaelab.objectives.mmd import mmd, rbf


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


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_the_seed_alone_decides_a_fit(name: str) -> None:
    z, (_, fit) = two_clusters().sample((300,)), densities.DENSITIES[name]
    settings = {"steps": 5} if name != "gmm" else {}

    def drawn() -> torch.Tensor:
        density = fit(z, 1, **settings)
        torch.manual_seed(2)
        return density.sample((5,))

    torch.manual_seed(5)
    before = torch.get_rng_state()
    density = fit(z, 1, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    if name != "two_stage":
        assert torch.equal(fit(z, 1, **settings).log_prob(z), density.log_prob(z))
    assert torch.equal(drawn(), drawn())


def test_a_two_stage_vae_draws_codes_of_the_mixture_that_made_them() -> None:
    torch.manual_seed(0)
    z = two_clusters().sample((4000,))
    fit = densities.two_stage(z, steps=400, batch_size=128)
    drawn, spread = fit.sample((4000,)), z.std(0)
    assert ((drawn.mean(0) - z.mean(0)).abs() < 0.1 * spread).all()
    assert ((drawn.std(0) - spread).abs() < 0.1 * spread).all()
    assert (drawn.T.cov() - z.T.cov())[0, 1].abs() < 0.2 * spread.prod()
    assert (drawn[:, 0] > 50).float().mean().item() == pytest.approx(0.7, abs=0.06)  # the weight of a component
    between = ((drawn[:, 0] - 50).abs() < 2).float().mean().item()
    assert between < 0.06  # a Gaussian with these moments has 0.15 there, and the mixture 0.001
    with pytest.raises(NotOfferedError, match="no closed form, it has samples only"):
        fit.log_prob(z)


def test_two_stages_are_nearer_to_codes_of_digits_than_the_prior(digits: tuple) -> None:
    """The codes are those of a linear autoencoder, two principal components."""
    pixels = digits[0].flatten(1).float() / 255
    torch.manual_seed(0)
    z = (pixels - pixels.mean(0)) @ torch.svd_lowrank(pixels - pixels.mean(0), 2)[2]
    fitted, held_out = densities.two_stage(z[:4000], steps=100, batch_size=128).sample((1000,)), z[4000:]
    width = held_out.var(0).sum() / 4
    assert mmd(fitted, held_out, rbf, width) < 0.2 * mmd(torch.randn(1000, 2), held_out, rbf, width)


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
