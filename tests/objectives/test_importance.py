"""Importance-weighted bounds agree with the exact linear-Gaussian model."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracle import LinearGaussian
from torch import Tensor, nn

from vaelab.joint import Joint
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, DReG, Objective, Renyi
from vaelab.posteriors import DiagonalGaussian, FlowPosterior, FullCovarianceGaussian
from vaelab.priors import StandardNormal


def evaluate(objective: Objective, exact: bool = False, count: int = 8) -> dict[str, Tensor]:
    oracle = LinearGaussian()
    x, vae = oracle.images(count), oracle.vae(exact)
    torch.manual_seed(5)
    return objective(vae, x)


def encoder_gradients(objective: Objective, exact: bool = False, draws: int = 1, images: int = 1) -> Tensor:
    """Gradients of the loss for the encoder's parameters, with new noise for each: (draws, parameters)."""
    oracle = LinearGaussian()
    vae = oracle.vae(exact)
    x = oracle.images(4)[3:].expand(images, *oracle.shape)
    torch.manual_seed(7)
    gradients = []
    for _ in range(draws):
        loss = objective(vae, x)["loss"].mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.posterior.parameters()))]))
    return torch.stack(gradients)


@pytest.mark.parametrize(
    "objective",
    [IWAE(1), DReG(1), MIWAE(5, 1), PIWAE(1, 1), CIWAE(1.0, 5), Renyi(0.3, 1)],
    ids=lambda objective: type(objective).__name__,
)
def test_with_one_sample_every_bound_is_the_sampled_elbo(objective: IWAE) -> None:
    elbo = evaluate(ELBO(kl="sample", num_samples=objective.num_samples))["elbo"]
    torch.testing.assert_close(evaluate(objective)["bound"], elbo, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "objective", [IWAE(7), DReG(7), MIWAE(2, 4), PIWAE(2, 4), CIWAE(0.3, 7), Renyi(0.5, 7), Renyi(-1.0, 7)]
)
def test_every_bound_is_the_log_likelihood_at_the_exact_posterior(objective: Objective) -> None:
    terms, oracle = evaluate(objective, exact=True), LinearGaussian()
    torch.testing.assert_close(terms["bound"], oracle.log_prob(oracle.images(8)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["loss"], -terms["bound"])
    torch.testing.assert_close(terms["elbo"], -terms["rate"] - terms["distortion"])


def test_bounds_are_ordered() -> None:
    """ELBO <= CIWAE <= IWAE, ELBO <= MIWAE <= IWAE, and Renyi falls with alpha, on the very same samples."""
    elbo, ciwae, miwae, iwae = (
        evaluate(objective)["bound"] for objective in (CIWAE(1.0, 64), CIWAE(0.05, 64), MIWAE(8, 8), IWAE(64))
    )
    assert (elbo <= ciwae).all()
    assert (ciwae <= iwae).all()
    assert (elbo <= miwae).all()
    assert (miwae <= iwae).all()
    renyi = [evaluate(Renyi(alpha, 64))["bound"] for alpha in (-1.0, 0.0, 0.5, 0.99)]
    assert all((a >= b).all() for a, b in itertools.pairwise(renyi))
    torch.testing.assert_close(renyi[1], iwae)
    torch.testing.assert_close(evaluate(Renyi(0.9999, 64))["bound"], elbo, rtol=1e-2, atol=1e-2)


def test_iwae_rises_with_samples_to_the_log_likelihood() -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(2000), oracle.vae(exact=False)
    bounds = [IWAE(k)(vae, x)["bound"].mean().item() for k in (1, 5, 50, 2000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] < oracle.log_prob(x).mean().item()
    assert bounds[-1] == pytest.approx(oracle.log_prob(x).mean().item(), abs=0.5)


def test_weights_have_the_right_sign() -> None:
    """The gradient of the bound weighs samples by w, so a sample that explains x better counts for more."""
    log_w = torch.tensor([[0.0], [3.0]], requires_grad=True)
    IWAE(2).bound(log_w).sum().backward()
    torch.testing.assert_close(log_w.grad, torch.tensor([[0.0], [3.0]]).softmax(0))


@pytest.mark.parametrize(
    "objective",
    [DReG(1), DReG(5), ELBO(sticking_the_landing=True), ELBO(sticking_the_landing=True, num_samples=3)],
)
def test_path_gradient_vanishes_at_the_exact_posterior_for_every_sample(objective: Objective) -> None:
    assert encoder_gradients(objective, exact=True, draws=20).abs().max() < 1e-4


@pytest.mark.parametrize("objective", [IWAE(5), ELBO(kl="sample"), ELBO()])
def test_standard_gradient_does_not_vanish_there(objective: Objective) -> None:
    assert encoder_gradients(objective, exact=True, draws=20).abs().max() > 1e-2


def agree(a: Tensor, b: Tensor) -> Tensor:
    """The difference of two mean gradients in standard errors, for each parameter."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return ((a.mean(0) - b.mean(0)) / error).abs()


@pytest.mark.parametrize(
    ("path", "standard"),
    [
        (lambda: DReG(4), lambda: IWAE(4)),
        (lambda: ELBO(sticking_the_landing=True, num_samples=2), lambda: ELBO(kl="sample", num_samples=2)),
    ],
    ids=["dreg", "sticking the landing"],
)
def test_path_gradients_have_the_mean_of_the_standard_one(
    path: Callable[[], Objective], standard: Callable[[], Objective]
) -> None:
    a, b = (encoder_gradients(objective(), draws=200, images=500) for objective in (path, standard))
    assert agree(a, b).max() < 4.5


def test_sticking_the_landing_inside_a_bound_of_several_samples_would_be_biased() -> None:
    """With several samples, the path gradient of a biased IWAE differs from the standard gradient."""

    class Biased(IWAE):
        def log_weight(self, trace: object, x: Tensor) -> Tensor:
            from vaelab.distributions import path_log_prob

            z, q, p = trace.latents[0][:3]
            return trace.likelihood.log_prob(x) + p.log_prob(z) - path_log_prob(q, z)

    a, b = (encoder_gradients(objective, draws=200, images=500) for objective in (Biased(4), IWAE(4)))
    assert agree(a, b).max() > 10


def test_path_gradients_leave_the_decoder_s_gradient_alone() -> None:
    oracle = LinearGaussian()
    x, gradients = oracle.images(8), []
    for objective in (IWAE(5), DReG(5)):
        vae = oracle.vae(exact=False)
        torch.manual_seed(5)
        loss = objective(vae, x)["loss"].sum()
        gradients.append(torch.autograd.grad(loss, list(vae.decoder.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bounds_are_reported_without_gradients_too() -> None:
    with torch.no_grad():
        torch.testing.assert_close(evaluate(DReG(5))["bound"], evaluate(IWAE(5))["bound"])


# PIWAE ----------------------------------------------------------------------------------------------------------------


def player_gradients(objective: Objective, vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of encoder and posterior, and of the decoder, with the same noise in each call."""
    torch.manual_seed(5)
    loss = objective(vae, x)["loss"].mean()
    players = ([*vae.encoder.parameters(), *vae.posterior.parameters()], list(vae.decoder.parameters()))
    encoder, decoder = (torch.autograd.grad(loss, player, retain_graph=True) for player in players)
    return torch.cat([g.flatten() for g in encoder]), torch.cat([g.flatten() for g in decoder])


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


POSTERIORS = {
    "diagonal": DiagonalGaussian,
    "full": FullCovarianceGaussian,
    "maf": partial(FlowPosterior, kind="maf", hidden=[8]),
    "iaf": partial(FlowPosterior, kind="iaf", hidden=[8]),
}


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS)
def test_piwae_teaches_the_decoder_by_iwae_and_the_encoder_by_miwae(posterior: Callable[..., nn.Module]) -> None:
    oracle = LinearGaussian()
    encoder, decoder = partial(MLPEncoder, hidden=[5], activation="tanh"), partial(MLPDecoder, hidden=[])
    vae = VAE(2, oracle.shape, encoder, posterior, StandardNormal, decoder, Gaussian(scale=0.5))
    x = oracle.images(8)
    piwae, miwae, iwae = (player_gradients(objective, vae, x) for objective in (PIWAE(4, 3), MIWAE(4, 3), IWAE(12)))
    assert difference(piwae[0], miwae[0]) < 1e-4
    assert difference(piwae[1], iwae[1]) < 1e-4
    assert difference(iwae[0], miwae[0]) > 0.01  # otherwise the assertions above would say nothing
    assert difference(miwae[1], iwae[1]) > 0.01


def test_piwae_of_one_bound_is_iwae() -> None:
    oracle = LinearGaussian()
    vae, x = oracle.vae(exact=False), oracle.images(8)
    for ours, theirs in zip(*(player_gradients(o, vae, x) for o in (PIWAE(1, 7), IWAE(7))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_piwae_reports_iwae_s_bound(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        ours, theirs, miwae = (evaluate(objective) for objective in (PIWAE(4, 3), IWAE(12), MIWAE(4, 3)))
    for name, term in ours.items():
        torch.testing.assert_close(term, theirs[name], rtol=1e-5, atol=1e-4)
    assert (ours["bound"] - miwae["bound"]).min() > 1e-3


def test_piwae_at_weights_that_differ_by_hundreds_of_nats() -> None:
    """The decoder's gradient stays exact; the encoder's stays finite, and is exact if weights differ less."""
    for sigma, exact in ((0.3, True), (0.1, False), (0.02, False)):
        oracle = LinearGaussian(sigma=sigma)
        vae, x = oracle.vae(exact=False), oracle.images(8)
        torch.manual_seed(5)
        bounds = vae(x, num_samples=12).log_weight(x).unflatten(0, (4, 3)).logsumexp(1)  # (M, B)
        assert ((bounds.amax(0) - bounds.amin(0)).max() > 200) == (not exact)
        piwae, miwae, iwae = (player_gradients(o, vae, x) for o in (PIWAE(4, 3), MIWAE(4, 3), IWAE(12)))
        assert piwae[0].isfinite().all()
        assert difference(piwae[1], iwae[1]) < 1e-4
        if exact:
            assert difference(piwae[0], miwae[0]) < 1e-4


def test_piwae_needs_a_single_code() -> None:
    joint = partial(Joint, blocks=[DiagonalGaussian] * 2, dims=[1, 1])
    prior = partial(Joint, blocks=[StandardNormal] * 2, dims=[1, 1])
    vae = VAE(2, (1, 2, 3), partial(MLPEncoder, hidden=[]), joint, prior, partial(MLPDecoder, hidden=[]), Gaussian())
    with pytest.raises(TypeError, match="PIWAE is defined for one code, and this model has 2"):
        PIWAE(2, 2)(vae, torch.rand(3, 1, 2, 3))


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: IWAE(0), "num_samples=0: a whole number, at least 1"),
        (lambda: MIWAE(0, 8), "num_bounds=0: a whole number, at least 1"),
        (lambda: PIWAE(0, 8), "num_bounds=0: a whole number, at least 1"),
        (lambda: PIWAE(8, 0), "num_samples=0: a whole number, at least 1"),
        (lambda: PIWAE(-2, -3), "num_bounds=-2: a whole number, at least 1"),
        (lambda: CIWAE(1.5), "beta=1.5: a number from zero to one"),
        (lambda: Renyi(1), "alpha=1: a number other than 1 is needed"),
        (lambda: Renyi(float("nan")), "alpha=nan: a finite number is needed"),
        (lambda: ELBO(sticking_the_landing=True, free_bits=1.0), "which is known with kl=analytic only"),
    ],
)
def test_settings_out_of_range(build: Callable[[], Objective], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
