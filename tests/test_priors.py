import pytest
import torch
from torch.distributions import Distribution, Independent, Normal

from vaelab.priors import GaussianMixture, StandardNormal, VampPrior
from vaelab.trace import Latent

AXIS = torch.linspace(-12, 12, 601)


PLANE = torch.cartesian_prod(AXIS, AXIS)  # (N, 2)


def infer(u: torch.Tensor) -> Distribution:
    """A stand-in for an encoder: the code's mean depends on the means of the image's two halves."""
    mean = u.flatten(1).unflatten(1, (2, -1)).mean(-1) * 4 - 2
    return Independent(Normal(mean, 0.3 + mean.abs() / 4), 1)


def integral(prior: Distribution) -> float:
    cell = (AXIS[1] - AXIS[0]).item() ** 2
    return prior.log_prob(PLANE).exp().sum().item() * cell


@pytest.mark.parametrize("num_components", [1, 7])
def test_mixtures_integrate_to_one(num_components: int) -> None:
    mixture = GaussianMixture(2, num_components)
    torch.nn.init.normal_(mixture.logits)
    torch.nn.init.normal_(mixture.log_std, -0.3, 0.3)
    assert integral(mixture(infer)) == pytest.approx(1, abs=1e-3)
    assert integral(VampPrior(2, (1, 2, 2), num_components)(infer)) == pytest.approx(1, abs=1e-3)


def test_mixtures_take_samples_of_any_shape() -> None:
    p = GaussianMixture(3, 4)(infer)
    assert (p.batch_shape, p.event_shape) == ((), (3,))
    assert p.log_prob(torch.randn(5, 7, 3)).shape == (5, 7)
    assert p.sample((9,)).shape == (9, 3)


def test_vampprior_with_one_pseudo_input_is_its_posterior() -> None:
    prior = VampPrior(2, (1, 2, 2), 1)
    z = torch.randn(6, 5, 2)
    torch.testing.assert_close(prior(infer).log_prob(z), infer(prior.pseudo_inputs).log_prob(z))


def test_vampprior_at_the_training_set_is_the_aggregate_posterior() -> None:
    images = torch.rand(40, 1, 2, 2)
    prior = VampPrior(2, (1, 2, 2), 40)
    prior.pseudo_inputs.data.copy_(images)
    z = torch.randn(11, 2)
    aggregate = infer(images).log_prob(z.unsqueeze(1)).exp().mean(1).log()
    torch.testing.assert_close(prior(infer).log_prob(z), aggregate)


def test_pseudo_inputs_start_as_training_images() -> None:
    images = torch.rand(10, 1, 3, 3)
    prior = VampPrior(2, (1, 3, 3), 25)
    prior.initialize(images)
    assert all((u == images).flatten(1).all(1).any() for u in prior.pseudo_inputs)


def test_rate_under_a_mixture_is_estimated_at_the_sample_and_is_right_on_average() -> None:
    q = Independent(Normal(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.6, 0.4]])), 1)
    p = GaussianMixture(2, 5)(infer)
    z = q.sample((200_000,))
    latent = Latent(z, q, p, q.log_prob(z))
    cell = (AXIS[1] - AXIS[0]).item() ** 2
    exact = (q.log_prob(PLANE).exp() * (q.log_prob(PLANE) - p.log_prob(PLANE))).sum().item() * cell
    estimate = latent.kl()
    assert estimate.shape == (200_000, 1)
    assert estimate.mean().item() == pytest.approx(exact, abs=5 * estimate.std().item() / 200_000**0.5)


@pytest.mark.parametrize("build", [lambda c: GaussianMixture(2, c), lambda c: VampPrior(2, (1, 2, 2), c)])
@pytest.mark.parametrize("components", [0, -1, 2.5])
def test_components_are_a_whole_number(build: object, components: object) -> None:
    with pytest.raises(ValueError, match="a whole number, at least 1, is needed"):
        build(components)


def test_prior_scale() -> None:
    p = StandardNormal(3, 2.0)(lambda: None)
    assert (p.batch_shape, p.event_shape) == ((), (3,))
    assert p.stddev.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="scale=0: a number above zero is needed"):
        StandardNormal(3, 0)
