"""The log-determinants of flows agree with autograd's Jacobian, and their densities integrate to one."""

import pytest
import torch
from oracle import LinearGaussian
from torch.distributions import Categorical, MixtureSameFamily

from vaelab import priors
from vaelab.objectives import ELBO
from vaelab.posteriors import DiagonalGaussian, FlowPosterior
from vaelab.trace import point_estimate

KINDS = ("iaf", "maf", "spline")


@pytest.mark.parametrize("kind", KINDS)
def test_log_determinant_is_that_of_autograd_s_jacobian(kind: str) -> None:
    torch.manual_seed(3)
    posterior = FlowPosterior(4, 3, kind)
    q = posterior(torch.randn(1, 4))
    noise = q.base.sample()  # (1, 3)
    jacobian = torch.autograd.functional.jacobian(lambda z: q.transform.inv(z)[0], noise)[:, 0]  # dz / dz_0
    expected = q.base.log_prob(noise) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(q.log_prob(q.transform.inv(noise)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_the_density_that_comes_with_a_sample(kind: str) -> None:
    q = FlowPosterior(4, 3, kind)(torch.randn(5, 4))
    z, log_q = q.rsample_and_log_prob((7,))
    assert (z.shape, log_q.shape, q.batch_shape, q.event_shape) == ((7, 5, 3), (7, 5), (5,), (3,))
    torch.testing.assert_close(q.transform.inv(q.transform(z)), z, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(q.log_prob(z), log_q, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_density_integrates_to_one(kind: str) -> None:
    torch.manual_seed(3)
    axis = torch.linspace(-12, 12, 401)
    grid = torch.cartesian_prod(axis, axis)
    step = (axis[1] - axis[0]).square()
    for density in (FlowPosterior(4, 2, kind)(torch.randn(1, 4)), priors.FlowPrior(2, kind)(lambda: None)):
        assert (density.log_prob(grid.unsqueeze(1)).exp().sum() * step).item() == pytest.approx(1, abs=1e-2)


def test_flows_are_more_than_gaussians() -> None:
    """The transforms change the density, otherwise the integral would say nothing about flows."""
    q = FlowPosterior(4, 2)(torch.randn(1, 4))
    z = q.sample((9, 1)).squeeze(1)
    assert not torch.allclose(q.log_prob(z), q.base.log_prob(z), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_components_of_a_mixture(kind: str) -> None:
    posterior, h, z = FlowPosterior(4, 2, kind), torch.randn(6, 4), torch.randn(3, 5, 2)
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(6)), posterior(h), validate_args=False)
    each = torch.stack([posterior(row).log_prob(z) for row in h])  # (6, 3, 5)
    torch.testing.assert_close(mixture.log_prob(z), each.logsumexp(0) - torch.tensor(6.0).log(), rtol=1e-4, atol=1e-4)
    assert mixture.sample((8,)).shape == (8, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_transforms_it_is_the_gaussian_vae(kind: str) -> None:
    oracle = LinearGaussian()
    x, plain, flow = oracle.images(8), oracle.vae(exact=False), oracle.vae(exact=False)
    flow.posterior = FlowPosterior(6, 2, kind, num_transforms=0)
    flow.posterior.base = plain.posterior
    terms = []
    for vae in (plain, flow):
        torch.manual_seed(5)
        terms.append(ELBO()(vae, x))
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


def test_point_estimate_is_the_mean_or_that_of_the_same_samples_each_time() -> None:
    h = torch.randn(5, 4)
    gaussian, q = DiagonalGaussian(4, 2)(h), FlowPosterior(4, 2)(h)
    assert torch.equal(point_estimate(gaussian, torch.device("cpu")), gaussian.mean)
    state = torch.get_rng_state()
    first = point_estimate(q, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(point_estimate(q, torch.device("cpu")), first)
    torch.testing.assert_close(first, q.sample((20_000,)).mean(0), atol=0.5, rtol=0)


def test_kl_of_a_flow_is_estimated_at_its_own_sample() -> None:
    oracle = LinearGaussian()
    vae = oracle.vae(exact=False)
    vae.posterior = FlowPosterior(6, 2)
    x = oracle.images(8)
    (latent,) = (trace := vae(x, num_samples=3)).latents
    torch.testing.assert_close(latent.kl(), latent.log_q - latent.p.log_prob(latent.z))
    torch.testing.assert_close(trace.likelihood.log_prob(x) - latent.kl(), trace.log_weight(x))


def test_one_dimension() -> None:
    for kind in KINDS:
        q = FlowPosterior(4, 1, kind)(torch.randn(5, 4))
        assert q.rsample_and_log_prob((2,))[1].shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "planar"}, "kind=planar: choose one of iaf, maf, spline"),
        ({"num_transforms": -1}, "num_transforms=-1: a whole number, at least 0"),
        ({"hidden": [0]}, "a list of whole numbers above zero"),
    ],
)
def test_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FlowPosterior(4, 2, **settings)
