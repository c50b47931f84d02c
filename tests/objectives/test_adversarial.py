import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracle import LinearGaussian
from torch import Size, Tensor, nn

from vaelab.errors import UserError
from vaelab.joint import Joint
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO, AdversarialAutoencoder, FactorVAE, Objective
from vaelab.objectives.adversarial import _Adversarial
from vaelab.posteriors import DiagonalGaussian, PointMass
from vaelab.priors import StandardNormal

SHAPE = (1, 2, 3)
BOTH = [FactorVAE, AdversarialAutoencoder]
network = partial(MLPEncoder, hidden=[16], activation="tanh")
networks = {"encoder": partial(MLPEncoder, hidden=[]), "decoder": partial(MLPDecoder, hidden=[])}


def build(kind: type[_Adversarial], **settings: object) -> _Adversarial:
    torch.manual_seed(4)
    return kind(2, network, **settings)


def evaluate(objective: Objective, model: VAE, count: int = 8) -> dict[str, Tensor]:
    x = LinearGaussian().images(count)
    torch.manual_seed(5)
    return objective(model, x)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss.mean(), list(module.parameters()), retain_graph=True))


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) > 1e-3


# Two players, one backward pass ---------------------------------------------------------------------------------------


def model_s_loss(objective: _Adversarial, model: VAE) -> Tensor:
    """The loss that the model minimises; the discriminator enters only through its logits of the codes."""
    x = LinearGaussian().images(8)
    torch.manual_seed(5)
    trace = model(x)
    logits = objective.discriminator(trace.latents[0].z[0])
    distortion, rate = -trace.likelihood.log_prob(x)[0], trace.latents[0].kl()[0]
    if isinstance(objective, FactorVAE):
        return distortion + rate + objective.weight * logits
    return distortion - objective.weight * F.logsigmoid(logits)


@pytest.mark.parametrize("kind", BOTH)
def test_each_player_s_gradient_is_that_of_its_own_loss(kind: type[_Adversarial]) -> None:
    objective, model = build(kind, weight=3.0), LinearGaussian().vae(exact=False)
    t = evaluate(objective, model)
    separate = model_s_loss(objective, model)
    assert_same(gradients(t["loss"], model), gradients(separate, model))
    assert_same(gradients(t["loss"], objective), gradients(t["discriminator"], objective))
    assert differ(gradients(t["loss"], objective), gradients(t["discriminator"] + separate, objective))
    assert differ(gradients(t["loss"], model), gradients(model_s_loss(build(kind, weight=0.0), model), model))


@pytest.mark.parametrize("kind", BOTH)
def test_the_discriminator_s_loss_adds_no_value_and_knows_no_model(kind: type[_Adversarial]) -> None:
    objective, model = build(kind, weight=3.0), LinearGaussian().vae(exact=False)
    t = evaluate(objective, model)
    torch.testing.assert_close(t["loss"], model_s_loss(objective, model))
    assert t["discriminator"].min() > 0.1  # large enough to show if the loss included it
    for parameter, used in [(p, False) for p in model.parameters()] + [(p, True) for p in objective.parameters()]:
        (gradient,) = torch.autograd.grad(t["discriminator"].sum(), parameter, retain_graph=True, allow_unused=True)
        assert (gradient is not None) == used


@pytest.mark.parametrize("kind", BOTH)
def test_terms_are_one_value_per_image_without_gradients_too(kind: type[_Adversarial]) -> None:
    objective, model = build(kind), LinearGaussian().vae(exact=False)
    t = evaluate(objective, model)
    assert all(term.shape == (8,) for term in t.values())
    torch.testing.assert_close(t["elbo"], -(t["distortion"] + t["rate"]))
    with torch.inference_mode():
        quiet = evaluate(objective, model)
    for name, term in t.items():
        torch.testing.assert_close(quiet[name], term)


@pytest.mark.parametrize("kind", BOTH)
def test_terms_are_float32_under_autocast_too(kind: type[_Adversarial]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t = evaluate(build(kind), LinearGaussian().vae(exact=False))
    assert {term.dtype for term in t.values()} == {torch.float32}


@pytest.mark.parametrize("kind", BOTH)
def test_parameter_groups_hold_each_parameter_once(kind: type[_Adversarial]) -> None:
    objective, model = build(kind, lr=3e-4, betas=[0.4, 0.8]), LinearGaussian().vae(exact=False)
    first, own = objective.parameter_groups(model)
    assert [id(p) for p in first["params"]] == [id(p) for p in model.parameters()]
    assert [id(p) for p in own["params"]] == [id(p) for p in objective.parameters()]
    optimizer = torch.optim.Adam([first, own], lr=1e-2)
    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        (1e-2, (0.9, 0.999)),
        (3e-4, (0.4, 0.8)),
    ]


def test_an_objective_without_settings_of_its_own_has_one_group() -> None:
    objective, model = ELBO(), LinearGaussian().vae(exact=False)
    objective.extra = nn.Linear(1, 1)
    (group,) = objective.parameter_groups(model)
    assert [id(p) for p in group["params"]] == [id(p) for m in (model, objective.extra) for p in m.parameters()]


# The discriminator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [-2.0, 0.0, 3.0])
def test_cross_entropy_by_hand(logit: float) -> None:
    """For D(z) = z_1, the loss is -1/2 log P(real is real) - 1/2 log P(fake is fake)."""
    objective = FactorVAE(2, partial(MLPEncoder, hidden=[]))
    with torch.no_grad():
        objective.discriminator[1].weight.copy_(torch.tensor([[1.0, 0.0]]))
        objective.discriminator[1].bias.zero_()
    real, fake = torch.tensor([[logit, 9.0]]), torch.tensor([[-1.0, 9.0]])
    p_real, p_fake = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(1.0))
    expected = -0.5 * (math.log(p_real) + math.log(1 - p_fake))
    torch.testing.assert_close(objective.discriminate(real, fake), torch.tensor([expected]))
    torch.testing.assert_close(objective.verdict(real), torch.tensor([logit]))


class Recorded(FactorVAE):
    def discriminate(self, real: Tensor, fake: Tensor) -> Tensor:
        self.seen = real, fake
        return super().discriminate(real, fake)


def test_shuffling_keeps_each_dimension_s_values_and_parts_the_dimensions() -> None:
    torch.manual_seed(4)
    objective, oracle = Recorded(2, network), LinearGaussian()
    model = oracle.vae(exact=False)
    with torch.no_grad():  # both dimensions have the same mean, so their correlation is near one
        rows = model.posterior.linear.weight
        rows[1] = rows[0]
        model.posterior.linear.bias[2:] = -9.0
        rows[2:] = 0.0
    evaluate(objective, model, count=2000)
    code, shuffled = objective.seen
    assert torch.equal(code.sort(0).values, shuffled.sort(0).values)
    assert not code.requires_grad
    assert torch.corrcoef(code.T)[0, 1] > 0.9
    assert torch.corrcoef(shuffled.T)[0, 1].abs() < 0.1
    assert (code == shuffled).float().mean() < 0.01  # almost no image keeps its code


def test_trained_discriminator_s_mean_logit_is_the_total_correlation() -> None:
    """A Gaussian with correlation rho has TC = -1/2 log(1 - rho^2), which is zero for rho = 0."""
    for rho in (0.8, 0.0):
        objective = FactorVAE(2, partial(MLPEncoder, hidden=[32]))
        optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)

        def codes(count: int, rho: float = rho) -> Tensor:
            noise = torch.randn(count, 2)
            return torch.stack([noise[:, 0], rho * noise[:, 0] + math.sqrt(1 - rho**2) * noise[:, 1]], dim=1)

        for _ in range(500):
            z = codes(500)
            optimizer.zero_grad()
            objective.discriminate(z, z.gather(0, torch.rand_like(z).argsort(0))).mean().backward()
            optimizer.step()
        with torch.no_grad():
            estimate = objective.verdict(codes(50_000)).mean().item()
        assert estimate == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.06)


# The autoencoder ------------------------------------------------------------------------------------------------------


def test_generator_s_term_and_the_loss() -> None:
    objective, model = build(AdversarialAutoencoder, weight=3.0), LinearGaussian().vae(exact=False)
    x = LinearGaussian().images(8)
    torch.manual_seed(5)
    z = model(x).latents[0].z[0]
    real = torch.randn(8, 2)  # the prior's samples are drawn after the code's noise
    t = evaluate(objective, model)
    torch.testing.assert_close(t["generator"], -objective.discriminator(z).sigmoid().log())
    torch.testing.assert_close(t["loss"], t["distortion"] + 3 * t["generator"])
    torch.testing.assert_close(t["discriminator"], objective.discriminate(real, z))


def test_the_generator_s_gradient_raises_the_logit() -> None:
    """If D(z) = -z_1 gives high logits to small z_1, the generator's gradient makes z_1 smaller."""
    objective = AdversarialAutoencoder(2, partial(MLPEncoder, hidden=[]))
    with torch.no_grad():
        objective.discriminator[1].weight.copy_(torch.tensor([[-1.0, 0.0]]))
    z = torch.randn(5, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.softplus(-objective.verdict(z)).sum(), z)
    assert (gradient[:, 0] > 0).all()  # descent lowers z_1
    assert (gradient[:, 1] == 0).all()


def test_a_point_mass_has_neither_rate_nor_elbo() -> None:
    model = VAE(2, SHAPE, posterior=PointMass, prior=StandardNormal, likelihood=Gaussian(), **networks)
    t = evaluate(build(AdversarialAutoencoder), model)
    assert set(t) == {"loss", "distortion", "generator", "discriminator"}
    assert t["loss"].isfinite().all()
    assert (evaluate(build(FactorVAE), model)["loss"] == math.inf).all()
    assert AdversarialAutoencoder.monitor in t


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("latent_dim", [0, None])
def test_a_model_without_a_single_code(kind: type[_Adversarial], latent_dim: int | None) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} is defined for the code of model=vae"):
        kind(latent_dim, network)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("setting", [{"latent_dim": 0.5}, {"latent_dim": -1}, {"betas": 0.5}, {"betas": [0.5]}])
def test_a_setting_of_the_wrong_kind(kind: type[_Adversarial], setting: dict) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=f"{name}="):
        kind(**{"latent_dim": 2, "discriminator": network, **setting})


@pytest.mark.parametrize("kind", BOTH)
def test_several_blocks(kind: type[_Adversarial]) -> None:
    blocks = partial(Joint, blocks=[DiagonalGaussian] * 2, dims=[1, 1])
    prior = partial(Joint, blocks=[StandardNormal] * 2, dims=[1, 1])
    model = VAE(2, SHAPE, posterior=blocks, prior=prior, likelihood=Gaussian(), **networks)
    with pytest.raises(TypeError, match=f"{kind.__name__} is defined for one code, and this model has 2"):
        evaluate(build(kind), model)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FactorVAE(2, network, weight=-1), "weight=-1: a number, at least zero"),
        (lambda: AdversarialAutoencoder(2, network, lr="fast"), "lr=fast: a number above zero"),
        (lambda: FactorVAE(2, network, betas=[0.9, 1]), "betas=.*: numbers below one are needed"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Objective], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_discriminator_s_size_is_the_code_s() -> None:
    sizes = []

    def factory(size: Size) -> nn.Module:
        sizes.append(size)
        return network(size)

    assert FactorVAE(5, factory).verdict(torch.zeros(3, 5)).shape == (3,)
    assert sizes == [Size((5,))]


def test_a_discriminator_that_diverges_does_not_rate_the_model() -> None:
    """Its estimate of the total correlation, and so the loss, falls without limit."""
    objective, model = build(FactorVAE), LinearGaussian().vae(exact=False)
    before = evaluate(objective, model)
    with torch.no_grad():
        objective.discriminator[1].bias.fill_(-1e12)
    after = evaluate(objective, model)
    assert after["loss"].max() < -1e12
    torch.testing.assert_close(after[objective.monitor], before[objective.monitor])
    torch.testing.assert_close(after[objective.monitor], -after["elbo"])
