"""Likelihoods sum or integrate to one, and a Gaussian likelihood gives the squared error."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from vaelab.likelihoods import (
    Autoregressive,
    Bernoulli,
    BernoulliAtMean,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
)
from vaelab.networks import PixelCNN


def test_bernoulli_sums_to_one_over_all_binary_images() -> None:
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).view(64, 1, 2, 3)
    logits = torch.randn(1, 2, 3) * 3
    assert Bernoulli()(logits).log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_bernoulli_by_logits_equals_bernoulli_by_probabilities() -> None:
    logits, x = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4).round()
    by_probability = (x * logits.sigmoid().log() + (1 - x) * (1 - logits.sigmoid()).log()).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli()(logits).log_prob(x), by_probability)


def test_a_confident_bernoulli_is_summed_pixel_by_pixel() -> None:
    logits = torch.linspace(-100, 100, 3 * 64 * 64).view(1, 3, 64, 64)
    x = (logits > 0).float()
    exact = x * logits.double() - F.softplus(logits.double())
    assert Bernoulli()(logits).log_prob(x).item() == pytest.approx(exact.sum().item(), abs=2e-4)


@pytest.mark.parametrize("family", [Gaussian, Laplace])
@pytest.mark.parametrize("mean", ["identity", "sigmoid"])
@pytest.mark.parametrize("scale", [0.3, "learned", "per_pixel"])
def test_location_scale_families_integrate_to_one(family: type, mean: str, scale: float | str) -> None:
    x = torch.linspace(-25, 25, 200_001)
    module = family(scale, mean)
    likelihood = module(torch.full((module.num_parameters, 1, 1), 0.4))
    density = likelihood.log_prob(x.view(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-4)
    assert likelihood.mean.item() == pytest.approx(0.4 if mean == "identity" else 1 / (1 + math.exp(-0.4)))


def test_squared_error_is_a_gaussian_of_variance_one_half() -> None:
    x, parameters = torch.rand(3, 1, 28, 28), torch.randn(3, 1, 28, 28)
    squared_error = (x - parameters.sigmoid()).square().sum((1, 2, 3))
    log_prob = Gaussian(math.sqrt(0.5), "sigmoid")(parameters).log_prob(x)
    torch.testing.assert_close(-log_prob - 784 / 2 * math.log(math.pi), squared_error, rtol=1e-5, atol=1e-3)


def test_only_a_learned_scale_is_trained() -> None:
    assert [name for name, _ in Gaussian("learned").named_parameters()] == ["log_scale"]
    assert not list(Gaussian(0.5).parameters())
    assert not Gaussian(0.5).state_dict()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "low", None, True])
def test_least_log_scale_out_of_range(bad: object) -> None:
    with pytest.raises(ValueError, match=r"min_log_scale=.*: a finite number is needed"):
        DiscretizedLogistic(bad)


@pytest.mark.parametrize("bad", [0, -1.0, "two", None])
def test_gaussian_scale_out_of_range(bad: object) -> None:
    with pytest.raises(ValueError, match="a number above zero"):
        Gaussian(bad)


def test_gaussian_mean_is_named() -> None:
    with pytest.raises(ValueError, match="mean=tanh: choose one of identity, sigmoid"):
        Gaussian(mean="tanh")


def test_scale_per_pixel_has_a_floor() -> None:
    likelihood = Gaussian("per_pixel", floor=0.1)(torch.full((2, 3, 3), -50.0))
    torch.testing.assert_close(likelihood.stddev, torch.full((1, 3, 3), 0.1))
    with pytest.raises(ValueError, match="floor=0: a number above zero is needed"):
        Gaussian("per_pixel", floor=0)


@pytest.mark.parametrize("logit", [-8.0, -1.0, -1e-3, 0.0, 1e-4, 0.3, 6.0])
def test_continuous_bernoulli_integrates_to_one(logit: float) -> None:
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    density = ContinuousBernoulli()(torch.full((1, 1, 1), logit)).log_prob(x.view(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-3)


def test_continuous_bernoulli_has_a_floor() -> None:
    """The density of a black pixel is at most 1 / floor."""
    black = torch.zeros(1, 1, 1)
    assert ContinuousBernoulli(0.1)(torch.full((1, 1, 1), -1e6)).log_prob(black).exp().item() == pytest.approx(
        10, rel=1e-3
    )
    assert ContinuousBernoulli()(torch.full((1, 1, 1), -1e6)).log_prob(black).exp().item() == pytest.approx(
        256, rel=1e-3
    )
    with pytest.raises(ValueError, match="floor=0: a number above zero is needed"):
        ContinuousBernoulli(0)


def test_continuous_bernoulli_mean() -> None:
    """The mean is 1 / (1 - exp(-a)) - 1 / a for logits a, and a series replaces it near zero."""
    logits = torch.linspace(-1, 1, 20_001)
    a = logits.double()
    exact = torch.where(a.abs() < 0.02, 0.5 + a / 12 - a**3 / 720, -1 / torch.expm1(-a) - 1 / a)
    mean = ContinuousBernoulli()(logits.view(-1, 1, 1, 1)).mean.flatten()
    torch.testing.assert_close(mean.double(), exact, rtol=0, atol=2e-5)


def test_continuous_bernoulli_is_continuous_through_one_half() -> None:
    logits = torch.linspace(-0.05, 0.05, 401)
    x = torch.full((401, 1, 1, 1), 0.8)
    log_prob = ContinuousBernoulli()(logits.view(-1, 1, 1, 1)).log_prob(x)
    assert log_prob.diff().abs().max() < 1e-4
    assert log_prob[200].item() == pytest.approx(0, abs=1e-5)  # the uniform density


@pytest.mark.parametrize("mu", [-40.0, -2.0, 0.0, 3.0, 40.0])
@pytest.mark.parametrize("log_scale", [-50.0, -5.0, -2.0, 1.0])
def test_discretized_logistic_sums_to_one_with_its_edge_bins(mu: float, log_scale: float) -> None:
    levels = (torch.arange(256) / 255).view(256, 1, 1, 1)
    likelihood = DiscretizedLogistic()(torch.tensor([mu, log_scale]).view(2, 1, 1))
    log_prob = likelihood.log_prob(levels)
    assert log_prob.isfinite().all()
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_discretized_logistic_samples_are_levels_with_its_probabilities() -> None:
    likelihood = DiscretizedLogistic()(torch.tensor([0.0, -3.0]).view(2, 1, 1))
    x = likelihood.sample((100_000,))
    counts = (x.flatten() * 255).round().long().bincount(minlength=256) / 100_000
    p = likelihood.log_prob((torch.arange(256) / 255).view(256, 1, 1, 1)).exp()
    assert ((counts - p).abs() < 5 * (p * (1 - p) / 100_000).sqrt() + 1e-4).all()
    torch.testing.assert_close(x * 255, (x * 255).round(), rtol=0, atol=1e-4)


def test_bernoulli_is_not_offered_grey_levels_silently() -> None:
    with pytest.raises(ValueError, match="support"):
        Bernoulli()(torch.zeros(1, 2, 2)).log_prob(torch.full((1, 2, 2), 0.5))


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), Gaussian("learned"), Gaussian("per_pixel"), ContinuousBernoulli(), DiscretizedLogistic()],
)
def test_densities_stay_in_float32_under_autocast(likelihood: torch.nn.Module) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        count = likelihood.num_parameters
        parameters = torch.nn.Linear(3, 4 * count)(torch.randn(2, 3)).view(2, count, 2, 2)
        assert parameters.dtype == torch.bfloat16
        assert likelihood(parameters).log_prob(torch.ones(2, 1, 2, 2)).dtype == torch.float32


def test_bernoulli_can_start_at_the_mean_of_the_training_images() -> None:
    images = torch.rand(50, 1, 3, 3)
    images[:, :, 0, 0] = 0
    likelihood = BernoulliAtMean((1, 3, 3))
    likelihood.initialize(images)
    expected = images.mean(0).clamp(0.001, 0.999)
    torch.testing.assert_close(likelihood(torch.zeros(4, 1, 3, 3)).mean, expected.expand(4, 1, 3, 3))
    restored = BernoulliAtMean((1, 3, 3))
    restored.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(restored(torch.zeros(1, 3, 3)).mean, expected)
    assert not Bernoulli().state_dict()


def autoregressive(image_shape: tuple = (1, 3, 3), **settings: int) -> Autoregressive:
    return Autoregressive(image_shape, partial(PixelCNN, channels=6, kernel_size=3, num_blocks=1), **settings)


def test_autoregressive_probabilities_of_all_binary_images_sum_to_one() -> None:
    """For each of four codes, the sum over the 2^9 images of 3 x 3 pixels."""
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9))).view(512, 1, 1, 1, 3, 3)
    likelihood = autoregressive(features=5)
    assert likelihood.num_parameters == 5
    log_p = likelihood(3 * torch.randn(2, 2, 5, 3, 3)).log_prob(images)  # (512, K, B)
    assert log_p.shape == (512, 2, 2)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(2, 2))
    assert (log_p[:, 0, 0] - log_p[:, 1, 0]).abs().max() > 0.01  # the code has an effect


def test_autoregressive_grey_levels_sum_to_one_and_nothing_lies_between_them() -> None:
    images = torch.tensor(list(itertools.product([0.0, 0.5, 1.0], repeat=4))).view(81, 1, 2, 2)
    likelihood = autoregressive((1, 2, 2), levels=3)
    density = likelihood(torch.randn(8, 2, 2))
    torch.testing.assert_close(density.log_prob(images).exp().sum(), torch.tensor(1.0))
    assert density.log_prob(torch.full((1, 2, 2), 0.3)) == -math.inf
    assert density.batch_shape == ()
    assert (likelihood.levels, likelihood.compares_as) == (3, "Autoregressive (3 grey levels)")
    assert autoregressive().compares_as == "Bernoulli"


def test_autoregressive_draws_follow_their_probabilities() -> None:
    """20,000 draws of 2 x 2 binary pixels: each frequency within five standard errors."""
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(16, 1, 2, 2)
    density = autoregressive((1, 2, 2))(2 * torch.randn(8, 2, 2))
    p = density.log_prob(images).exp().detach()
    drawn = density.sample((20_000,))
    assert drawn.shape == (20_000, 1, 2, 2)
    share = (drawn.flatten(1) @ torch.tensor([8.0, 4, 2, 1])).long().bincount(minlength=16) / 20_000
    assert ((share - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()
    assert density.sample().shape == (1, 2, 2)


def test_autoregressive_pixels_have_one_channel_and_no_mean() -> None:
    with pytest.raises(ValueError, match=r"autoregressive pixels have one channel, and image_shape=\[3, 8, 8\]"):
        autoregressive((3, 8, 8))
    with pytest.raises(NotImplementedError, match="the mean of autoregressive pixels is a sum over all images"):
        autoregressive()(torch.zeros(8, 3, 3)).mean  # noqa: B018
