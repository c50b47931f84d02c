"""Every objective passes on its arguments, and refuses wrong traces and settings."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from oracle import LinearGaussian
from torch import Tensor

from vaelab.networks import MLPEncoder
from vaelab.objectives import DIP, ELBO, IWAE, MMD, BetaTC, Capacity, FactorVAE, Objective
from vaelab.objectives.objective import elbo_terms, only_latent
from vaelab.trace import Trace


class Codes(NamedTuple):
    """A forward result of a model that returns no Trace."""

    code: Tensor


class Quantised(Objective):
    scores = Codes

    def terms(self, trace: Codes, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        return {"loss": trace.code.sum(-1)}


def codes(x: Tensor, *_: object) -> Codes:
    return Codes(x.flatten(1))


@pytest.mark.parametrize(
    "objective", [ELBO(), IWAE(2), BetaTC(), MMD()], ids=lambda objective: type(objective).__name__
)
def test_a_model_that_leaves_no_trace_is_refused(objective: Objective) -> None:
    sentence = f"{type(objective).__name__} scores a Trace, and the model returns a Codes: use objective=vq with"
    with pytest.raises(TypeError, match=sentence):
        objective(codes, torch.rand(3, 1, 2, 3))


def test_an_objective_of_another_kind_refuses_a_trace_and_takes_its_own() -> None:
    oracle = LinearGaussian()
    x = oracle.images(3)
    with pytest.raises(TypeError, match="Quantised scores a Codes, and the model returns a Trace"):
        Quantised()(oracle.vae(exact=True), x)
    torch.testing.assert_close(Quantised()(codes, x)["loss"], x.flatten(1).sum(1))


def test_model_gets_images_labels_and_the_number_of_samples_and_terms_the_step() -> None:
    seen: list[object] = []

    class Listening(ELBO):
        def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
            seen.extend([len(trace.latents[0].z), step])
            return super().terms(trace, x, step)

    oracle = LinearGaussian()
    x, y, step, vae = oracle.images(3), torch.tensor([1, 0, 2]), torch.tensor(7.0), oracle.vae(exact=True)

    def model(x: Tensor, y: Tensor | None = None, num_samples: int = 1) -> Trace:
        seen.extend([x, y])
        return vae(x, num_samples=num_samples)

    Listening(num_samples=5)(model, x, y, step)
    for got, given in zip(seen, (x, y, 5, step), strict=True):
        assert got is given or got == given


def test_the_interface_alone_scores_nothing() -> None:
    oracle = LinearGaussian()
    with pytest.raises(NotImplementedError):
        Objective()(oracle.vae(exact=True), oracle.images(3))


def test_terms_of_the_bound_are_means_over_samples_and_sums_over_latents() -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(4), oracle.vae(exact=False)
    trace = vae(x, num_samples=6)
    t = elbo_terms(Trace(trace.latents * 2, trace.likelihood), x)
    torch.testing.assert_close(t["rate"], 2 * trace.latents[0].kl()[0])
    torch.testing.assert_close(t["distortion"], -torch.stack([*trace.likelihood.log_prob(x)]).sum(0) / 6)
    torch.testing.assert_close(t["elbo"], -t["rate"] - t["distortion"])
    torch.testing.assert_close(t["rate_1"] + t["rate_2"], t["rate"])
    assert "rate_1" not in elbo_terms(trace, x)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_only_latent_refuses_any_other_number(count: int) -> None:
    oracle = LinearGaussian()
    trace = oracle.vae(exact=True)(oracle.images(3))
    assert only_latent(trace, ELBO()) is trace.latents[0]
    with pytest.raises(TypeError, match=f"ELBO is defined for one code, and this model has {count}"):
        only_latent(Trace(trace.latents * count, trace.likelihood), ELBO())


WEIGHTS = {
    "beta": BetaTC,
    "off_diagonal": DIP,
    "weight": MMD,
    "bandwidth": MMD,
    "gamma": partial(Capacity, [1.0]),
    "lr": partial(FactorVAE, 2, MLPEncoder),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [-1, "big", True, math.nan, math.inf, [1.0]])
def test_weights_are_finite_numbers_and_not_below_zero(name: str, value: object) -> None:
    build: Callable[..., Objective] = WEIGHTS[name]
    build(**{name: 1.5})
    with pytest.raises(ValueError, match=rf"{name}=.*: a number"):
        build(**{name: value})
