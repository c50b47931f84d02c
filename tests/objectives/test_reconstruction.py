import math
from functools import partial

import pytest
import torch
from oracle import LinearGaussian
from torch import Tensor

from vaelab import linear
from vaelab.likelihoods import Bernoulli, Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import Reconstruction
from vaelab.posteriors import PointMass
from vaelab.priors import StandardNormal

SHAPE = (1, 2, 3)


def autoencoder(hidden: list[int] | None = None, **parts: object) -> VAE:
    networks = {
        "encoder": partial(MLPEncoder, hidden=hidden or []),
        "decoder": partial(MLPDecoder, hidden=hidden or []),
    }
    likelihood = {"likelihood": Gaussian(scale=math.sqrt(0.5))}
    return VAE(2, SHAPE, posterior=PointMass, prior=StandardNormal, **networks | likelihood | parts)


@pytest.fixture
def x() -> Tensor:
    return LinearGaussian().images(8)


def test_loss_is_squared_error_up_to_a_constant_at_variance_one_half(x: Tensor) -> None:
    t = Reconstruction()(autoencoder(), x)
    assert {name: term.shape for name, term in t.items()} == dict.fromkeys(
        ("loss", "distortion", "squared_error"), (8,)
    )
    assert torch.equal(t["loss"], t["distortion"])
    torch.testing.assert_close(t["squared_error"], t["loss"] - 3 * math.log(math.pi))


def test_penalties_are_reported_without_their_weights(x: Tensor) -> None:
    weights = {"code_weight": 0.1, "l2": 0.2, "gradient_penalty": 0.3, "spectral": 0.4}
    t = Reconstruction(**weights)(autoencoder([4]), x)
    names = ("code", "l2", "gradient_penalty", "spectral")
    assert tuple(t) == ("loss", "distortion", "squared_error", *names)
    assert all(term.shape == (8,) for term in t.values())
    penalties = sum(weight * t[name] for name, weight in zip(names, weights.values(), strict=True))
    torch.testing.assert_close(t["loss"], t["distortion"] + penalties)


def test_code_and_weights(x: Tensor) -> None:
    vae = autoencoder()
    t = Reconstruction(code_weight=1, l2=1)(vae, x)
    torch.testing.assert_close(t["code"], 0.5 * vae.encode(x).square().sum(1))
    torch.testing.assert_close(t["l2"], vae.decoder.layers[0].weight.square().sum().expand(8))


def test_gradient_penalty_of_a_linear_decoder_is_its_squared_norm_on_average(x: Tensor) -> None:
    vae = autoencoder()
    weight = vae.decoder.layers[0].weight
    many = x[:1].expand(200_000, *SHAPE)
    penalty = Reconstruction(gradient_penalty=1)(vae, many)["gradient_penalty"]
    assert penalty.std() > 0.01  # one probe for each image
    torch.testing.assert_close(penalty.mean(), weight.square().sum(), rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(penalty.mean(), weight)
    torch.testing.assert_close(gradient, 2 * weight, rtol=0.02, atol=0.02)


def test_gradient_penalty_is_of_the_mean_and_not_of_the_logits(x: Tensor) -> None:
    """For one Bernoulli pixel the penalty is exactly (p (1 - p))^2 ||w||^2."""
    vae = VAE(
        2, (1, 1, 1), partial(MLPEncoder, hidden=[]), PointMass, StandardNormal, partial(MLPDecoder, hidden=[]),
        Bernoulli(),
    )  # fmt: skip
    pixel = x[:, :, :1, :1].sigmoid().round()
    t = Reconstruction(gradient_penalty=1)(vae, pixel)
    p = vae.decode(vae.encode(pixel)).mean.flatten()
    expected = (p * (1 - p)).square() * vae.decoder.layers[0].weight.square().sum()
    torch.testing.assert_close(t["gradient_penalty"], expected)


def test_gradient_penalty_needs_gradients(x: Tensor) -> None:
    objective = Reconstruction(gradient_penalty=1)
    with torch.inference_mode():
        t = objective(autoencoder(), x)
    assert "gradient_penalty" not in t
    assert torch.equal(t["loss"], t["distortion"])


def test_spectral_penalty_is_the_largest_singular_value_and_its_gradient(x: Tensor) -> None:
    vae = autoencoder([40])
    weights = [layer.weight for layer in vae.decoder.layers if hasattr(layer, "weight")]
    penalty = Reconstruction(spectral=1)(vae, x)["spectral"][0]
    expected = sum(torch.linalg.matrix_norm(weight, ord=2).square() for weight in weights)
    torch.testing.assert_close(penalty, expected)
    gradients = (torch.autograd.grad(value, weights) for value in (penalty, expected))
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-4)


def test_spectral_penalty_under_autocast(x: Tensor) -> None:
    vae = autoencoder([40])
    expected = Reconstruction(spectral=1)(vae, x)["spectral"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        t = Reconstruction(spectral=1, gradient_penalty=1)(vae, x)
    torch.testing.assert_close(t["spectral"], expected)
    t["loss"].mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


def test_pca_is_stationary_over_the_whole_set(x: Tensor) -> None:
    vae = autoencoder()
    vae.load_state_dict(linear.pca(x, 2))
    for gradient in torch.autograd.grad(Reconstruction()(vae, x)["loss"].mean(), list(vae.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["code_weight", "l2", "gradient_penalty", "spectral"])
@pytest.mark.parametrize("weight", [-1, "big", None, True, math.nan, math.inf])
def test_weights_out_of_range(name: str, weight: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={weight}: a number, at least zero"):
        Reconstruction(**{name: weight})
