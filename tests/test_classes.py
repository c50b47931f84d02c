"""Densities over a code and its class: sums over all classes, integrals over z, and frequencies of draws."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from vaelab import interfaces
from vaelab.classes import ClassMixture, Labelled, density_and_dim, kl_of_each_class
from vaelab.errors import PartsError, UserError
from vaelab.trace import Latent

AXIS = torch.linspace(-12, 12, 4001)
ONE_HOT = torch.eye(3)


def parts(seed: int = 0) -> tuple[Categorical, Independent]:
    """Three classes with a Gaussian of one dimension each."""
    generator = torch.Generator().manual_seed(seed)
    logits, mean, std = torch.randn(3, 3, generator=generator)
    return Categorical(logits=logits), Independent(Normal(mean.view(3, 1), std.exp().view(3, 1)), 1)


def on_a_grid(density: Labelled) -> torch.Tensor:
    """log p(z, y) at each point of the axis for each class, (4001, 3)."""
    points = torch.cat([AXIS.view(-1, 1, 1).expand(-1, 3, 1), ONE_HOT.expand(len(AXIS), 3, 3)], dim=-1)
    return density.log_prob(points)


def integral(values: torch.Tensor) -> torch.Tensor:
    return values.sum() * (AXIS[1] - AXIS[0])


def test_the_density_sums_and_integrates_to_one() -> None:
    assert integral(on_a_grid(Labelled(*parts())).exp()).item() == pytest.approx(1, abs=1e-4)


def test_the_sum_over_classes_is_the_mixture() -> None:
    marginal = on_a_grid(Labelled(*parts())).logsumexp(-1)
    torch.testing.assert_close(ClassMixture(*parts()).log_prob(AXIS.unsqueeze(-1)), marginal)


def test_kl_is_its_integral() -> None:
    q, p = Labelled(*parts()), Labelled(*parts(1))
    log_q, log_p = on_a_grid(q), on_a_grid(p)
    expected = integral(log_q.exp() * (log_q - log_p))
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(Latent(torch.empty(0), q, p).kl()[0, 0], expected, rtol=1e-3, atol=0)
    each = [kl_divergence(*(Normal(d.base_dist.loc[c, 0], d.base_dist.scale[c, 0]) for d in (parts()[1], parts(1)[1])))
            for c in range(3)]  # fmt: skip
    torch.testing.assert_close(kl_of_each_class(q, p), torch.stack(each))


def test_draws_have_the_probabilities_and_the_moments_of_their_class() -> None:
    mixture, components = parts()
    torch.manual_seed(0)
    z, y = Labelled(mixture, components).sample((20_000,)).split([1, 3], dim=-1)
    assert torch.equal(y.sum(-1), torch.ones(20_000))
    torch.testing.assert_close(y.mean(0), mixture.probs, rtol=0, atol=4 * 0.5 / 20_000**0.5)
    for c in range(3):
        own = z[y[:, c] == 1]
        error = components.stddev[c].item() / len(own) ** 0.5
        assert own.mean().item() == pytest.approx(components.mean[c].item(), abs=4 * error)
        assert own.std().item() == pytest.approx(components.stddev[c].item(), abs=4 * error)
    whole = torch.cat([z, y], -1)
    deviation = 4 * whole.std(0) / 20_000**0.5
    assert ((whole.mean(0) - Labelled(mixture, components).mean).abs() < deviation + 1e-6).all()


@pytest.mark.parametrize("density", [Labelled, ClassMixture])
def test_a_draw_of_a_class_is_near_its_mean(density: type) -> None:
    narrow = Independent(Normal(torch.tensor([[5.0], [50.0], [500.0]]), 0.01 * torch.ones(3, 1)), 1)
    p, y = density(Categorical(logits=torch.zeros(3)), narrow), torch.tensor([2, 0, 0, 1])
    for codes, classes in ((p.of_classes(y), y), (p.of_each_class(), torch.arange(3))):
        torch.testing.assert_close(codes[:, 0], narrow.mean[classes, 0], rtol=0, atol=0.1)
        if density is Labelled:
            assert torch.equal(codes[:, 1:], ONE_HOT[classes])


@pytest.mark.parametrize("density", [Labelled, ClassMixture])
def test_samples_have_no_gradient_and_say_so(density: type) -> None:
    p = density(*parts())
    with pytest.raises(PartsError, match="use objective=m2"):
        p.rsample()
    with torch.no_grad():
        assert p.rsample((7,)).shape == (7, *p.event_shape)


def test_spaces() -> None:
    labelled = Labelled(*parts())
    assert interfaces.space(labelled) == "vectors of 1 dimensions with one of 3 classes"
    assert not interfaces.lies_on_vectors(labelled)
    assert interfaces.lies_on_vectors(ClassMixture(*parts()))


def test_a_code_has_room_for_its_class() -> None:
    assert density_and_dim(11, 10, True) == (Labelled, 1)
    assert density_and_dim(3, 10, False) == (ClassMixture, 3)
    with pytest.raises(UserError, match=r"latent_dim=10: .* so that it is at least 11"):
        density_and_dim(10, 10, True)
