"""Refinement of q(z | x) for each image is compared with the oracle's exact posterior."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from layered import joint, ladder, vq_vae
from oracle import LinearGaussian
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, kl_divergence

from vaelab import posteriors, priors
from vaelab.evaluation.gaps import refine
from vaelab.likelihoods import Bernoulli, Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder


def test_an_exact_posterior_leaves_no_gap() -> None:
    oracle = LinearGaussian()
    x = oracle.images(20)
    before, after, _ = refine(oracle.vae(exact=True).eval(), x, num_samples=3)
    torch.testing.assert_close(before, oracle.log_prob(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, oracle.log_prob(x), atol=1e-4, rtol=0)


def test_refinement_closes_the_gap_of_a_random_encoder() -> None:
    """The true posterior is a diagonal Gaussian, so the whole gap KL(q || p(z | x)) is an amortisation gap."""
    oracle = LinearGaussian()
    x, vae = oracle.images(30), oracle.vae(exact=False).eval()
    gap = kl_divergence(vae.infer(x), oracle.posterior(x)).detach()
    before, after, q = refine(vae, x, num_samples=200)
    assert (gap > 1).all()
    torch.testing.assert_close(after, oracle.log_prob(x), atol=2e-3, rtol=0)
    posterior = oracle.posterior(x)
    torch.testing.assert_close(q.mean, posterior.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(q.stddev, posterior.stddev, atol=0.01, rtol=0.02)
    assert ((oracle.log_prob(x) - before - gap).abs() < 0.1 * gap + 1.5).all()
    assert (oracle.log_prob(x) - before).mean().item() == pytest.approx(gap.mean().item(), rel=0.03)


def test_the_prior_is_the_models_own() -> None:
    """The prior is a mixture with one component N(0, 3^2 I), so the KL has no closed form."""
    oracle = LinearGaussian()
    x, vae = oracle.images(10), oracle.vae(exact=False).eval()
    vae.prior = priors.GaussianMixture(2, 1)
    with torch.no_grad():
        vae.prior.mean.zero_()
        vae.prior.log_std.fill_(math.log(3))
    covariance = 9 * oracle.W @ oracle.W.T + oracle.sigma**2 * torch.eye(6)
    log_p = MultivariateNormal(oracle.b, covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(refine(vae, x, num_samples=10)[1], log_p, atol=5e-3, rtol=0)


def test_labels_reach_the_decoder() -> None:
    """The decoder sees only the class, so the prior is the exact posterior."""
    linear = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    parts = (linear[0], posteriors.DiagonalGaussian, priors.StandardNormal, linear[1], Gaussian(scale=1.0))
    vae = VAE(2, (1, 1, 3), *parts, num_classes=3).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.zero_()
        vae.decoder.layers[0].weight[:, 2:] = 10 * torch.eye(3)
    y = torch.arange(6) % 3
    x = 10 * torch.eye(3)[y].view(6, 1, 1, 3)
    right, wrong = (refine(vae, x, labels, steps=5, num_samples=2)[0] for labels in (y, (y + 1) % 3))
    torch.testing.assert_close(right, torch.full((6,), -1.5 * math.log(2 * math.pi)))
    torch.testing.assert_close(wrong, right - 100)


def test_a_worse_q_counts() -> None:
    """After one step that is far too long, refine returns the worse estimate and does not select the best."""
    oracle = LinearGaussian()
    before, after, _ = refine(oracle.vae(exact=True).eval(), oracle.images(10) + 0.1, steps=1, lr=3.0, num_samples=5)
    assert (after < before).any()


def test_without_a_step_nothing_changes() -> None:
    """Both estimates use the same noise, so zero steps give equal values."""
    oracle = LinearGaussian()
    before, after, _ = refine(oracle.vae(exact=False).eval(), oracle.images(10), steps=0, num_samples=3)
    assert torch.equal(before, after)


def test_model_and_noise_are_left_as_they_were() -> None:
    oracle = LinearGaussian()
    vae, x = oracle.vae(exact=False).eval(), oracle.images(5)
    weights, noise = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    calls: list[int] = []
    first = refine(vae, x, steps=7, num_samples=3, seed=5, progress=calls.append)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in vae.parameters())
    assert calls == [1] * 10
    assert not first[1].requires_grad
    torch.randn(1)
    assert torch.equal(refine(vae, x, steps=7, num_samples=3, seed=5)[1], first[1])
    assert not torch.equal(refine(vae, x, steps=7, num_samples=3, seed=6)[1], first[1])


# Models without such a gap -------------------------------------------------------------------------------------------


def vae_with(posterior: Any, prior: Any = priors.StandardNormal) -> VAE:
    return VAE(4, (1, 4, 4), MLPEncoder, posterior, prior, MLPDecoder, Bernoulli())


class Laplace(posteriors.DiagonalGaussian):
    def forward(self, h: Tensor) -> Independent:
        q = super().forward(h)
        return Independent(torch.distributions.Laplace(q.mean, q.stddev), 1)


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (partial(vae_with, posteriors.FullCovarianceGaussian), "q = MultivariateNormal"),
        (partial(vae_with, posteriors.FlowPosterior), "q = Flow"),
        (partial(vae_with, posteriors.PointMass), "q = Delta"),
        (partial(vae_with, Laplace), "q = Independent"),
        (joint, "2 latents"),
        (ladder, "2 latents"),
        (vq_vae, "no density"),
    ],
)
def test_one_factorised_gaussian_is_needed(build: Any, found: str) -> None:
    model: nn.Module = build().eval()
    with pytest.raises(ValueError, match=f"needs one factorised Gaussian, but this model has {found}$"):
        refine(model, torch.zeros(2, *model.image_shape))
