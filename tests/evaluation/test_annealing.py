"""Annealed importance sampling brackets log p(x), which the oracle and quadrature know exactly."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from layered import joint, ladder, vq_vae
from oracle import LinearGaussian
from torch import Tensor, nn

from vaelab import posteriors, priors
from vaelab.errors import UserError
from vaelab.evaluation import annealing
from vaelab.evaluation.annealing import Annealing, check_model, lower_bound, sandwich
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder

SHORT = Annealing(chains=3, temperatures=4, leapfrog=2)


@pytest.mark.parametrize("start", ["q", "prior"])
@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_the_bounds_bracket_the_exact_value_of_the_oracle(start: str, schedule: str) -> None:
    oracle = LinearGaussian()
    vae = oracle.vae(exact=False).eval()  # a random q
    x, lower, upper = sandwich(vae, 100, settings=Annealing(16, 50, 5, start, schedule))
    exact = oracle.log_prob(x).double()
    assert (lower_bound(vae, x, settings=Annealing(16, 50, 5, start, schedule)) - exact).mean().abs() < 0.1
    for bound, sign in ((lower, 1), (upper, -1)):
        below = sign * (exact - bound)
        error = below.std().item() / 10
        assert error < 0.05
        assert -2 * error < below.mean().item() < 0.1


class Absolute(nn.Module):
    """Two hidden units max(z, 0) and max(-z, 0), and six logits that are equal for z and -z."""

    def __init__(self, latent_dim: int, shape: Any) -> None:
        super().__init__()
        self.shape, self.slope = shape, nn.Parameter(4 * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 0.5]))

    def forward(self, z: Tensor) -> Tensor:
        return (self.slope * (z[:, :1].abs() - 1.2)).view(-1, *self.shape)


def one_dimensional(decoder: Any) -> VAE:
    """Six binary pixels and a code on the line, with an encoder that knows nothing of the decoder."""
    torch.manual_seed(4)
    encoder = partial(MLPEncoder, hidden=[8])
    model = VAE(1, (1, 2, 3), encoder, posteriors.DiagonalGaussian, priors.StandardNormal, decoder, Bernoulli()).eval()
    return model


def by_quadrature(model: VAE, x: Tensor) -> Tensor:
    """log p(x) = log integral p(x | z) p(z) dz, (N,), on a grid of z from -9 to 9."""
    z = torch.linspace(-9, 9, 4001).unsqueeze(1)
    with torch.no_grad():
        log_p = model.decode(z.unsqueeze(1)).log_prob(x).double()  # (4001, N)
    log_prior = -0.5 * z.double().square() - 0.5 * math.log(2 * math.pi)
    return (log_p + log_prior).logsumexp(0) + math.log(18 / 4000)


def steep(latent_dim: int, shape: Any) -> nn.Module:
    decoder = MLPDecoder(latent_dim, shape, hidden=[8])
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3)
    return decoder


def test_a_nonlinear_decoder_agrees_with_quadrature() -> None:
    model = one_dimensional(steep)
    x, lower, upper = sandwich(model, 100, settings=Annealing(16, 30, 5))
    exact = by_quadrature(model, x)
    assert (lower - exact).mean().item() == pytest.approx(0, abs=0.02)
    assert (upper - exact).mean().item() == pytest.approx(0, abs=0.02)


def two_modes() -> VAE:
    """The posterior has modes at z = 1.5 and at z = -1.5 or so, and q is a narrow Gaussian at the first."""
    model = one_dimensional(Absolute)
    with torch.no_grad():
        model.posterior.linear.weight.zero_()
        model.posterior.linear.bias.copy_(torch.tensor([1.5, 2 * math.log(0.2)]))
    return model


def test_two_modes_are_found_from_the_prior() -> None:
    model = two_modes()
    x, lower, upper = sandwich(model, 50, settings=Annealing(32, 50, 5, "prior"))
    exact = by_quadrature(model, x)
    assert (lower - exact).mean().item() == pytest.approx(0, abs=0.05)
    assert (upper - exact).mean().item() == pytest.approx(0, abs=0.05)


def test_a_q_that_misses_a_mode_shows_in_the_distance_of_the_bounds() -> None:
    model = two_modes()
    x, lower, upper = sandwich(model, 50, settings=Annealing(32, 50, 5))
    exact = by_quadrature(model, x)
    assert (lower - exact).mean().item() < -0.3
    assert (upper - lower).mean().item() > 0.3


# Noise, chunks and labels ---------------------------------------------------------------------------------------------


def test_the_noise_depends_on_the_seed_alone() -> None:
    oracle = LinearGaussian()
    vae, state = oracle.vae(exact=False).eval(), torch.get_rng_state()
    first = sandwich(vae, 7, settings=SHORT, seed=5)
    bound = lower_bound(vae, first.images, settings=SHORT, seed=5)
    torch.randn(1)
    assert all(map(torch.equal, sandwich(vae, 7, settings=SHORT, seed=5), first))
    assert torch.equal(lower_bound(vae, first.images, settings=SHORT, seed=5), bound)
    assert not any(map(torch.equal, sandwich(vae, 7, settings=SHORT, seed=6), first))
    assert not torch.equal(lower_bound(vae, first.images, settings=SHORT, seed=6), bound)
    torch.set_rng_state(state)
    sandwich(vae, 7, settings=SHORT)
    lower_bound(vae, first.images, settings=SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in vae.parameters())


def test_chunks_of_images_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = LinearGaussian()
    vae = oracle.vae(exact=False).eval()
    monkeypatch.setattr(annealing, "rows_at_once", lambda *_: 32 * 7)  # 7 images
    done: list[int] = []
    x, lower, upper = sandwich(vae, 30, settings=Annealing(32, 60, 5), progress=done.append)
    assert sum(done) == 3 * 60 * 30
    assert set(done) == {7, 2}
    exact = oracle.log_prob(x).double()
    assert (lower - exact).abs().max() < 1 < exact.std()
    assert (upper - exact).abs().max() < 1
    done.clear()
    lower_bound(vae, x, settings=SHORT, progress=done.append)
    assert sum(done) == 2 * 4 * 30


def test_labels_go_with_their_images() -> None:
    """The decoder sees only the class, so log p(x) = log p(x | y)."""
    linear = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    parts = (posteriors.DiagonalGaussian, priors.StandardNormal, linear[1], Bernoulli())
    vae = VAE(2, (1, 1, 3), linear[0], *parts, num_classes=3).eval()
    with torch.no_grad():
        vae.decoder.layers[0].weight[:, :2] = 0
        vae.decoder.layers[0].weight[:, 2:] = 9 * torch.eye(3) - 4
    y = torch.arange(6) % 3
    x, *bounds = sandwich(vae, 6, y, Annealing(8, 40, 5))
    expected = vae.decode(torch.zeros(6, 2), y).log_prob(x).double()
    for bound in [*bounds, lower_bound(vae, x, y, Annealing(8, 40, 5))]:
        torch.testing.assert_close(bound, expected, atol=0.2, rtol=0)


# Priors and posteriors ------------------------------------------------------------------------------------------------


def vae_with(posterior: Any = posteriors.DiagonalGaussian, prior: Any = priors.StandardNormal) -> VAE:
    torch.manual_seed(4)
    linear = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    return VAE(4, (1, 4, 4), linear[0], posterior, prior, linear[1], Bernoulli()).eval()


@pytest.mark.parametrize("start", ["q", "prior"])
@pytest.mark.parametrize(
    "parts",
    [
        {"posterior": posteriors.FullCovarianceGaussian},
        {"posterior": partial(posteriors.FlowPosterior, hidden=[8])},
        {"prior": partial(priors.VampPrior, image_shape=(1, 4, 4), num_components=3)},
        {"prior": partial(priors.FlowPrior, hidden=[8])},
        {"prior": priors.GaussianMixture},
        {"prior": partial(priors.StandardNormal, scale=1.5)},
    ],
    ids=str,
)
def test_all_densities_on_vectors_are_annealed(parts: dict[str, Any], start: str) -> None:
    vae = vae_with(**parts)
    _, lower, upper = sandwich(vae, 20, settings=Annealing(8, 40, 4, start))
    assert (upper - lower).mean().item() == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (partial(vae_with, posteriors.PointMass), "a point as its code"),
        (partial(vae_with, posteriors.Hyperspherical, priors.UniformSphere), "codes on the unit sphere"),
        (
            partial(vae_with, *(partial(part, num_categories=2) for part in
                                (posteriors.Categorical, priors.UniformCategorical))),
            "codes on 2 one-hot vectors of 2 categories",
        ),
        (joint, "2 latents"),
        (ladder, "2 latents"),
        (vq_vae, "a code without a density"),
    ],
)  # fmt: skip
def test_one_code_in_euclidean_space_is_needed(build: Any, found: str) -> None:
    model, state = build().eval(), torch.get_rng_state()
    with pytest.raises(UserError, match=f"needs one code in R.D with a density .*, but this model has {found}: leave"):
        check_model(model)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"chains": 0}, "annealing.chains=0: a whole number"),
        ({"temperatures": 1.5}, "annealing.temperatures=1.5: a whole number"),
        ({"leapfrog": "x"}, "annealing.leapfrog=x: a whole number"),
        ({"start": "posterior"}, "annealing.start=posterior: choose one of q, prior"),
        ({"schedule": "cosine"}, "annealing.schedule=cosine: choose one of linear, sigmoid"),
    ],
)
def test_settings_are_in_their_range(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Annealing(**settings).check()


def test_schedules_rise_from_zero_to_one() -> None:
    for schedule, middle in (("linear", 0.1), ("sigmoid", 0.19)):
        betas = Annealing(temperatures=10, schedule=schedule).betas()
        assert (betas[0], betas[5], betas[-1]) == pytest.approx((0, 0.5, 1))
        assert betas == sorted(betas)
        assert betas[6] - betas[5] == pytest.approx(middle, abs=0.01)
