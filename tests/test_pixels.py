"""Pixel distributions sum or integrate to one and have the right means, also for large logits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vaelab.likelihoods import Bernoulli, ContinuousBernoulli, DiscretizedLogistic
from vaelab.pixels import QuantizedLogistic, TruncatedExponential

LOGITS = torch.tensor([-80.0, -40.0, -16.0, -3.0, -0.3, -1e-3, 0.0, 1e-6, 0.02, 0.19, 0.21, 0.9, 1.1, 8.0, 17.0, 80.0])


def exact(logit: float) -> tuple[Tensor, Tensor, Tensor]:
    """The points x and weights of a quadrature, and log p(x) = l x - log((e^l - 1) / l), in float64.

    The points are dense at the end with the steep density.
    """
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(50))
    edges = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 30)]).double()
    edges = edges if logit < 0 else 1 - edges.flip(0)
    centres, halves = (edges[1:] + edges[:-1]) / 2, edges.diff() / 2
    x = (centres[:, None] + halves[:, None] * nodes).flatten()
    log_z = math.log(math.expm1(logit) / logit) if logit else 0.0
    return x, (halves[:, None] * weights).flatten(), logit * x - log_z


@pytest.mark.parametrize("logit", LOGITS.tolist())
def test_continuous_bernoulli(logit: float) -> None:
    x, weight, log_p = exact(logit)
    density = log_p.exp()
    assert (weight * density).sum().item() == pytest.approx(1, abs=1e-9)  # the reference is a density
    likelihood = ContinuousBernoulli()(torch.full((1, 1, 1), logit))
    ours = likelihood.log_prob(x.float().view(-1, 1, 1, 1)).double()
    assert (weight * ours.exp()).sum().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(ours, log_p, rtol=1e-5, atol=1e-4)
    mean = (weight * density * x).sum().item()
    assert likelihood.mean.item() == pytest.approx(mean, abs=1e-6)
    samples = likelihood.sample((100_000,)).double()
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert samples.mean().item() == pytest.approx(mean, abs=5 * samples.std().item() / 100_000**0.5 + 2e-4)
    square = (weight * density * x.square()).sum().item()
    assert samples.square().mean().item() == pytest.approx(square, abs=5 * 0.3 / 100_000**0.5)


def test_its_gradient_is_finite_and_the_mean_of_its_score_is_zero() -> None:
    """The score is d log p(x) / dl = x - mean."""
    logits = LOGITS.clone().requires_grad_()
    x = torch.rand(len(logits))
    density = TruncatedExponential(logits)
    (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, x - density.mean.detach(), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(density.mean.sum(), logits)
    assert slope.isfinite().all()
    assert (slope >= 0).all()


@pytest.mark.parametrize("logit", LOGITS.tolist())
def test_bernoulli(logit: float) -> None:
    likelihood = Bernoulli()(torch.full((1, 1, 1), logit))
    both = torch.stack([likelihood.log_prob(torch.full((1, 1, 1), value)) for value in (0.0, 1.0)]).double()
    p, q = torch.tensor([logit, -logit], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(both, torch.stack([q, p]).log(), rtol=1e-5, atol=1e-5)
    assert likelihood.mean.item() == pytest.approx(p.item(), rel=1e-5)
    assert likelihood.sample((10_000,)).mean().item() == pytest.approx(p.item(), abs=0.025)


@pytest.mark.parametrize("mu", [-80.0, -2.0, 0.1, 3.0, 80.0])
@pytest.mark.parametrize("log_scale", [-80.0, -7.0, -5.0, -2.0, 0.0, 3.0, 3.6, 80.0])
def test_discretized_logistic(mu: float, log_scale: float) -> None:
    levels = torch.arange(256) / 255
    likelihood = DiscretizedLogistic()(torch.tensor([mu, log_scale]).view(2, 1, 1))
    p = likelihood.log_prob(levels.view(256, 1, 1, 1)).double().exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    mean = (p * levels).sum().item()
    assert likelihood.mean.item() == pytest.approx(mean, abs=0.5 / 255 if log_scale < -5 else 1e-4)
    samples = likelihood.sample((20_000,))
    assert samples.mean().item() == pytest.approx(mean, abs=5 * samples.std().item() / 20_000**0.5 + 1e-4)


def test_the_mean_of_a_discretized_logistic_has_a_finite_gradient() -> None:
    parameters = torch.tensor([[0.3, 0.3, 0.3], [-7.0, 0.0, 20.0]], requires_grad=True)
    QuantizedLogistic(*parameters).mean.sum().backward()
    assert parameters.grad.isfinite().all()
