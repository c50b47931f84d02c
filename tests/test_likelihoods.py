"""Likelihoods are densities: sums and integrals to one, and the squared-error identity."""

import itertools
import math

import pytest
import torch

from vaelab.likelihoods import Bernoulli, Gaussian


def test_bernoulli_sums_to_one_over_all_binary_images() -> None:
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).view(64, 1, 2, 3)
    logits = torch.randn(1, 2, 3) * 3
    assert Bernoulli()(logits).log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_bernoulli_by_logits_equals_bernoulli_by_probabilities() -> None:
    logits, x = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4).round()
    by_probability = (x * logits.sigmoid().log() + (1 - x) * (1 - logits.sigmoid()).log()).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli()(logits).log_prob(x), by_probability)


@pytest.mark.parametrize("mean", ["identity", "sigmoid"])
@pytest.mark.parametrize("scale", [0.3, "learned"])
def test_gaussian_integrates_to_one(mean: str, scale: float | str) -> None:
    x = torch.linspace(-12, 12, 20_001)
    likelihood = Gaussian(scale, mean)(torch.full((1, 1, 1), 0.4))
    density = likelihood.log_prob(x.view(-1, 1, 1, 1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)
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


@pytest.mark.parametrize("bad", [0, -1.0, "two", None])
def test_gaussian_scale_out_of_range(bad: object) -> None:
    with pytest.raises(ValueError, match="scale is a number above zero or learned"):
        Gaussian(bad)


def test_gaussian_mean_is_named() -> None:
    with pytest.raises(ValueError, match="mean is identity or sigmoid, not tanh"):
        Gaussian(mean="tanh")


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("learned")])
def test_densities_stay_in_float32_under_autocast(likelihood: torch.nn.Module) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        parameters = torch.nn.Linear(3, 4)(torch.randn(2, 3)).view(2, 1, 2, 2)
        assert parameters.dtype == torch.bfloat16
        assert likelihood(parameters).log_prob(torch.ones(2, 1, 2, 2)).dtype == torch.float32
