import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracle import LinearGaussian
from torch.distributions import kl_divergence

from vaelab.joint import Joint
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO, Capacity, Cyclical, Linear, Objective
from vaelab.posteriors import Categorical, DiagonalGaussian
from vaelab.priors import StandardNormal, UniformCategorical


def terms(objective: Objective, exact: bool = False, step: torch.Tensor | None = None, count: int = 8) -> dict:
    oracle = LinearGaussian()
    x, vae = oracle.images(count), oracle.vae(exact)
    torch.manual_seed(5)
    return objective(vae, x, step=step)


def test_elbo_is_below_the_log_likelihood_by_the_divergence() -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(), oracle.vae(exact=False)
    elbo = ELBO(num_samples=20_000)(vae, x)["elbo"]
    gap = oracle.log_prob(x) - elbo
    assert (gap > 0).all()
    torch.testing.assert_close(gap, kl_divergence(vae.infer(x), oracle.posterior(x)), rtol=0.02, atol=0.05)


def test_sampled_elbo_is_the_mean_log_weight_on_the_same_noise() -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(), oracle.vae(exact=False)
    torch.manual_seed(5)
    elbo = ELBO(kl="sample", num_samples=3)(vae, x)["elbo"]
    torch.manual_seed(5)
    torch.testing.assert_close(elbo, vae(x, num_samples=3).log_weight(x).mean(0), rtol=1e-5, atol=1e-4)


def test_sampled_elbo_is_exact_at_the_exact_posterior_and_the_analytic_one_is_not() -> None:
    log_prob = LinearGaussian().log_prob(LinearGaussian().images(8))
    torch.testing.assert_close(terms(ELBO(kl="sample"), exact=True)["elbo"], log_prob, rtol=1e-4, atol=1e-4)
    assert (terms(ELBO(), exact=True)["elbo"] - log_prob).abs().max() > 0.1


def test_terms_are_one_value_per_image_and_add_up() -> None:
    t = terms(ELBO(beta=4.0))
    assert {name: term.shape for name, term in t.items()} == dict.fromkeys(("loss", "elbo", "rate", "distortion"), (8,))
    torch.testing.assert_close(t["loss"], t["distortion"] + 4 * t["rate"])
    torch.testing.assert_close(t["elbo"], -(t["distortion"] + t["rate"]))


def test_tutorial_loss_is_this_elbo_up_to_a_constant_with_the_same_gradient() -> None:
    oracle = LinearGaussian(sigma=math.sqrt(0.5))
    x, vae = oracle.images(8), oracle.vae(exact=False)
    torch.manual_seed(5)
    loss = ELBO()(vae, x)["loss"].sum()
    gradient = torch.autograd.grad(loss, list(vae.parameters()))

    mean, log_variance = vae.posterior.linear(x.flatten(1)).chunk(2, -1)  # the tutorial's script, line by line
    torch.manual_seed(5)
    z = torch.randn_like(mean.unsqueeze(0)).squeeze(0) * (0.5 * log_variance).exp() + mean
    squared_error = F.mse_loss(vae.decoder(z), x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.square() - log_variance.exp())
    torch.testing.assert_close(loss - 8 * 6 / 2 * math.log(math.pi), squared_error + kl, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(gradient, torch.autograd.grad(squared_error + kl, list(vae.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_free_bits_floor_each_dimension_and_leave_the_bound_alone() -> None:
    plain, free = terms(ELBO()), terms(ELBO(free_bits=0.5))
    torch.testing.assert_close(free["elbo"], plain["elbo"])
    oracle = LinearGaussian()
    (latent,) = oracle.vae(exact=False)(oracle.images(8)).latents
    expected = latent.kl_per_dim().mean((0, 1)).clamp(min=0.5).sum()
    torch.testing.assert_close(free["loss"] - free["distortion"], expected.expand(8))
    saturated = terms(ELBO(free_bits=1e6))
    torch.testing.assert_close(saturated["loss"] - saturated["distortion"], torch.full((8,), 2e6))


def test_dimensions_below_the_floor_are_not_pulled_to_the_prior() -> None:
    oracle = LinearGaussian()
    vae = oracle.vae(exact=False)
    t = ELBO(free_bits=1e3)(vae, oracle.images(8))
    gradient = torch.autograd.grad((t["loss"] - t["distortion"]).sum(), vae.posterior.linear.weight)[0]
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("step", "beta"), [(0, 0.0), (25, 0.5), (50, 1.0), (500, 2.0), (None, 2.0)])
def test_scheduled_beta(step: int | None, beta: float) -> None:
    objective = ELBO(beta=Linear(steps=100, start=0.0, end=2.0))
    t = terms(objective, step=None if step is None else torch.tensor(float(step)))
    torch.testing.assert_close(t["loss"], t["distortion"] + beta * t["rate"])
    torch.testing.assert_close(t["elbo"], terms(ELBO())["elbo"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": -1}, "beta=-1: a number, at least zero"),
        ({"beta": "big"}, "beta=big: a number, at least zero"),
        ({"free_bits": -0.1}, "free_bits=-0.1: a number, at least zero"),
        ({"num_samples": 0}, "num_samples=0: a whole number, at least 1"),
        ({"kl": "exact"}, "kl=exact: choose one of analytic, sample"),
        ({"kl": "sample", "free_bits": 1.0}, "which is known with kl=analytic only"),
    ],
)
def test_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ELBO(**settings)


@pytest.mark.parametrize(("step", "beta"), [(0.0, 0.0), (5.0, 1.0), (15.0, 1.0), (12.5, 0.5), (None, 1.0)])
def test_cyclical_beta(step: float | None, beta: float) -> None:
    objective = ELBO(beta=Cyclical(steps=10, cycles=2))
    t = terms(objective, step=None if step is None else torch.tensor(step))
    torch.testing.assert_close(t["loss"], t["distortion"] + beta * t["rate"])


def joint_vae() -> VAE:
    """A code of one Gaussian block and one of two categorical variables."""
    torch.manual_seed(2)
    return VAE(
        8,
        (1, 2, 3),
        partial(MLPEncoder, hidden=[]),
        partial(Joint, blocks=[DiagonalGaussian, partial(Categorical, num_categories=3)], dims=[2, 6]),
        partial(Joint, blocks=[StandardNormal, partial(UniformCategorical, num_categories=3)], dims=[2, 6]),
        partial(MLPDecoder, hidden=[]),
        Gaussian(scale=0.7),
    )


@pytest.mark.parametrize("capacity", [0.0, 1.0, 30.0], ids=["none", "some", "more than there is"])
def test_capacity_by_hand(capacity: float) -> None:
    t = terms(Capacity([capacity], gamma=7.0))
    torch.testing.assert_close(t["loss"], t["distortion"] + 7 * abs(t["rate"].mean() - capacity))
    torch.testing.assert_close(t["elbo"], -(t["distortion"] + t["rate"]))
    assert {name: term.shape for name, term in t.items()} == dict.fromkeys(("loss", "elbo", "rate", "distortion"), (8,))
    assert (t["rate"] - t["rate"].mean()).abs().max() > 0.01  # capacity is for the batch's mean


@pytest.mark.parametrize(("capacity", "sign"), [(0.0, 1.0), (30.0, -1.0)])
def test_capacity_pulls_the_rate_from_both_sides(capacity: float, sign: float) -> None:
    oracle = LinearGaussian()
    vae = oracle.vae(exact=False)
    t = Capacity([capacity], gamma=7.0)(vae, oracle.images(8))
    pulls = (t["loss"] - t["distortion"], t["rate"])
    weight = vae.posterior.linear.weight
    penalty, rate = (torch.autograd.grad(value.mean(), weight, retain_graph=True)[0] for value in pulls)
    torch.testing.assert_close(penalty, sign * 7 * rate, rtol=1e-4, atol=1e-5)


def test_a_capacity_for_each_block_of_the_code() -> None:
    vae, x = joint_vae(), LinearGaussian().images(8)
    torch.manual_seed(5)
    kl = [latent.kl().mean() for latent in vae(x).latents]
    torch.manual_seed(5)
    t = Capacity([0.1, 4.0], gamma=7.0)(vae, x)
    torch.testing.assert_close(t["loss"] - t["distortion"], (7 * ((kl[0] - 0.1).abs() + (kl[1] - 4).abs())).expand(8))
    torch.testing.assert_close(t["rate"].mean(), kl[0] + kl[1])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_capacities_are_as_many_as_blocks(count: int) -> None:
    with pytest.raises(TypeError, match=f"objective.capacity has {count} entries for 2 latents"):
        Capacity([1.0] * count)(joint_vae(), torch.rand(3, 1, 2, 3))


@pytest.mark.parametrize(("step", "capacity"), [(0.0, 0.0), (25.0, 5.0), (100.0, 20.0), (999.0, 20.0), (None, 20.0)])
def test_scheduled_capacity(step: float | None, capacity: float) -> None:
    scheduled = Capacity([Linear(steps=100, end=20.0)])
    t = terms(scheduled, step=None if step is None else torch.tensor(step))
    torch.testing.assert_close(t["loss"], terms(Capacity([capacity]))["loss"])


@pytest.mark.parametrize("gamma", [-1, "big", None])
def test_weight_of_the_capacity_out_of_range(gamma: object) -> None:
    with pytest.raises(ValueError, match=f"gamma={gamma}: a number, at least zero"):
        Capacity([1.0], gamma=gamma)
