"""Densities integrate to one, samples have the right moments, and divergences agree with quadrature."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.distributions import Independent, Normal, OneHotCategorical, kl_divergence

from vaelab import posteriors
from vaelab.distributions import Categoricals, HypersphericalUniform, PowerSpherical, Product, path_log_prob
from vaelab.posteriors import Categorical, DiagonalGaussian, FlowPosterior, FullCovarianceGaussian
from vaelab.trace import draw


def power_spherical(dim: int, kappa: float) -> PowerSpherical:
    mu = torch.arange(1.0, dim + 1) * torch.tensor([1.0, -1.0]).repeat(dim)[:dim]
    return PowerSpherical(mu / mu.norm(), torch.tensor(kappa))


@pytest.mark.parametrize("kappa", [1.0, 7.0, 50.0])
def test_power_spherical_integrates_to_one_on_the_circle_and_the_sphere(kappa: float) -> None:
    angle = torch.arange(20_000) / 20_000 * 2 * math.pi
    on_circle = torch.stack([angle.cos(), angle.sin()], -1)
    total = power_spherical(2, kappa).log_prob(on_circle).exp().mean() * 2 * math.pi
    assert total.item() == pytest.approx(1, abs=1e-4)
    t = (torch.arange(20_000) + 0.5) / 10_000 - 1  # mu'z is uniform on a sphere in three dimensions
    q = PowerSpherical(torch.tensor([1.0, 0, 0]), torch.tensor(kappa))
    z = torch.stack([t, (1 - t.square()).sqrt(), torch.zeros_like(t)], -1)
    assert q.log_prob(z).exp().mean().item() * 4 * math.pi == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_power_spherical_samples_lie_on_the_sphere_around_their_mean(dim: int) -> None:
    q = power_spherical(dim, 5.0)
    z = q.rsample((100_000,))
    assert (q.batch_shape, q.event_shape, z.shape) == ((), (dim,), (100_000, dim))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(100_000))
    torch.testing.assert_close(z.mean(0), q.mean, atol=0.01, rtol=0)
    entropy = -q.log_prob(z)
    assert q.entropy().item() == pytest.approx(entropy.mean().item(), abs=5 * entropy.std().item() / 300)


def test_power_spherical_at_the_first_axis_needs_no_reflection() -> None:
    q = PowerSpherical(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(20.0))
    torch.testing.assert_close(q.rsample((50_000,)).mean(0), q.mean, atol=0.01, rtol=0)


def test_power_spherical_divergence_from_uniform() -> None:
    for dim in (2, 3, 20):
        q, p = power_spherical(dim, 12.0), HypersphericalUniform(torch.zeros(dim))
        z = q.rsample((100_000,))
        estimate = q.log_prob(z) - p.log_prob(z)
        error = 5 * estimate.std().item() / 100_000**0.5
        assert kl_divergence(q, p).item() == pytest.approx(estimate.mean().item(), abs=error)
        flat = PowerSpherical(q.mu, torch.tensor(1e-6))
        assert abs(kl_divergence(flat, p).item()) < 1e-4


def test_power_spherical_is_reparameterised() -> None:
    """The sampled gradient of E[mu'z] equals the gradient of its closed form (a - b) / (a + b)."""
    kappa = torch.tensor(4.0, requires_grad=True)
    mu = torch.tensor([0.6, 0.8, 0.0])
    q = PowerSpherical(mu, kappa)
    (ours,) = torch.autograd.grad((q.rsample((400_000,)) @ mu).mean(), kappa)
    (exact,) = torch.autograd.grad(PowerSpherical(mu, kappa).mean @ mu, kappa)
    assert ours.item() == pytest.approx(exact.item(), rel=0.02)


def test_uniform_sphere() -> None:
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        p = HypersphericalUniform(torch.zeros(dim))
        z = p.sample((50_000,))
        torch.testing.assert_close(p.log_prob(z).exp(), torch.full((50_000,), 1 / area))
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(50_000))
        torch.testing.assert_close(z.T.cov(), torch.eye(dim) / dim, atol=0.01, rtol=0)


def test_categoricals_are_a_probability_over_one_hot_vectors() -> None:
    q = Categoricals(torch.randn(5, 2, 3))
    assert (q.batch_shape, q.event_shape) == ((5,), (6,))
    eye = torch.eye(3)
    every = torch.stack([torch.cat([eye[i], eye[j]]) for i, j in itertools.product(range(3), range(3))])  # (9, 6)
    torch.testing.assert_close(q.log_prob(every.unsqueeze(1)).exp().sum(0), torch.ones(5))
    z = q.rsample((50_000,))
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert (z.unflatten(-1, (2, 3)).sum(-1) == 1).all()
    torch.testing.assert_close(z.mean(0), q.mean, atol=0.02, rtol=0)


def test_categorical_divergence_is_torch_s_and_blind_to_the_relaxation() -> None:
    a, b = torch.randn(4, 2, 3), torch.randn(2, 3)
    expected = kl_divergence(Independent(OneHotCategorical(logits=a), 1), Independent(OneHotCategorical(logits=b), 1))
    for temperature in (None, 0.5):
        torch.testing.assert_close(kl_divergence(Categoricals(a, temperature), Categoricals(b)), expected)


def test_relaxed_categoricals_approach_exact_ones_and_have_no_probability() -> None:
    logits = torch.randn(4, 2, 3, requires_grad=True)
    torch.manual_seed(1)
    exact = Categoricals(logits).rsample((7,))
    torch.manual_seed(1)
    relaxed = Categoricals(logits, 1e-4).rsample((7,))
    torch.testing.assert_close(relaxed, exact, atol=1e-3, rtol=0)
    q = Categoricals(logits, 0.7)
    z = q.rsample((7,))
    torch.testing.assert_close(z.unflatten(-1, (2, 3)).sum(-1), torch.ones(7, 4, 2))
    z.square().sum().backward()
    assert logits.grad.abs().sum() > 0
    with pytest.raises(NotImplementedError, match="a relaxed categorical sample has no probability"):
        q.log_prob(z)


def test_product_puts_independent_blocks_side_by_side() -> None:
    a = Independent(Normal(torch.randn(5, 2), torch.ones(2)), 1)
    b = Categoricals(torch.randn(5, 1, 3))
    q, z = Product(a, b), torch.cat([a.sample((4,)), b.sample((4,))], -1)
    assert (q.batch_shape, q.event_shape, q.sample((4,)).shape) == ((5,), (5,), (4, 5, 5))
    torch.testing.assert_close(q.log_prob(z), a.log_prob(z[..., :2]) + b.log_prob(z[..., 2:]))
    torch.testing.assert_close(q.mean, torch.cat([a.mean, b.mean], -1))


@pytest.mark.parametrize("kind", ["diagonal", "full", "flow"])
def test_path_density_keeps_its_value_and_the_gradient_of_z_alone(kind: str) -> None:
    build = {"diagonal": DiagonalGaussian, "full": FullCovarianceGaussian, "flow": FlowPosterior}[kind]
    h = torch.randn(3, 4, requires_grad=True)
    z = torch.randn(6, 3, 2, requires_grad=True)
    q = build(4, 2)(h)
    log_q = path_log_prob(q, z)
    torch.testing.assert_close(log_q, q.log_prob(z))
    ours = torch.autograd.grad(log_q.sum(), (z, h), allow_unused=True)
    theirs = torch.autograd.grad(q.log_prob(z).sum(), z)
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1] is None


@pytest.mark.parametrize(
    "build",
    [DiagonalGaussian, FullCovarianceGaussian, partial(Categorical, num_categories=2), posteriors.Hyperspherical]
    + [partial(FlowPosterior, kind=kind) for kind in ("iaf", "maf", "spline")],
)
def test_densities_stay_in_float32_under_autocast(build: Callable[..., torch.nn.Module]) -> None:
    """Densities have float32's precision although the networks before them ran in bfloat16."""
    posterior, h = build(8, 4).eval(), torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = posterior(h)
        z, log_q = draw(q, q, torch.Size((3,)))[0][::3]
        assert {z.dtype, q.log_prob(z).dtype} == {torch.float32}
        assert log_q is None or log_q.dtype == torch.float32
