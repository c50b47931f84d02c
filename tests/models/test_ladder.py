"""The ladder VAE agrees with quadrature and, with one layer, with the plain VAE."""

import math
from functools import partial

import pytest
import torch
from torch import Size
from torch.distributions import Independent, Normal

from vaelab.likelihoods import Gaussian
from vaelab.models import VAE, LadderVAE
from vaelab.models.ladder import _product
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal, VampPrior

SHAPE = (1, 2, 3)
INFERENCES = ("top_down", "bottom_up")


def build(
    latent_dims: tuple[int, ...], inference: str = "top_down", prior: object = StandardNormal, shape: tuple = SHAPE
) -> LadderVAE:
    torch.manual_seed(4)
    network = partial(MLPEncoder, hidden=[8], activation="tanh")
    decoder = partial(MLPDecoder, hidden=[8], activation="tanh")
    return LadderVAE(latent_dims, shape, network, network, prior, decoder, Gaussian(scale=0.5), inference)


@pytest.mark.parametrize("inference", INFERENCES)
def test_shapes(inference: str) -> None:
    ladder, x = build((2, 3, 4), inference), torch.rand(5, *SHAPE)
    trace = ladder(x, num_samples=6)
    assert [latent.z.shape for latent in trace.latents] == [(6, 5, 2), (6, 5, 3), (6, 5, 4)]
    assert trace.log_weight(x).shape == (6, 5)
    assert all(latent.kl().shape[-1] == 5 for latent in trace.latents)
    assert ladder.encode(x).shape == (5, 2)
    assert ladder.decode(torch.zeros(3, 5, 2)).batch_shape == (3, 5)
    assert ladder.sample(7).mean.shape == (7, *SHAPE)
    trace.log_weight(x).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ladder.parameters())


@pytest.mark.parametrize("inference", INFERENCES)
def test_one_layer_is_the_plain_vae(inference: str) -> None:
    ladder, x = build((3,), inference), torch.rand(5, *SHAPE)
    network, decoder = (
        partial(MLPEncoder, hidden=[8], activation="tanh"),
        partial(MLPDecoder, hidden=[8], activation="tanh"),
    )
    vae = VAE(3, SHAPE, network, DiagonalGaussian, StandardNormal, decoder, Gaussian(scale=0.5))
    vae.load_state_dict({name.replace("posteriors.0", "posterior"): w for name, w in ladder.state_dict().items()})
    terms = []
    for model in (ladder, vae):
        torch.manual_seed(1)
        terms.append(ELBO(num_samples=4)(model, x))
    for name in terms[0]:
        torch.testing.assert_close(terms[0][name], terms[1][name])


@pytest.mark.parametrize("inference", INFERENCES)
def test_importance_weights_average_to_the_integral_over_all_layers(inference: str) -> None:
    """With two one-dimensional layers, log mean w agrees with log p(x) by quadrature."""
    ladder, x = build((1, 1), inference), torch.rand(4, *SHAPE)
    axis = torch.linspace(-6, 6, 401)
    step = axis[1] - axis[0]
    with torch.no_grad():
        top = Normal(0.0, 1.0).log_prob(axis)  # (401,)
        below = ladder._conditional(0, axis.unsqueeze(-1)).log_prob(axis.view(-1, 1, 1))  # (z_1, z_2)
        likelihood = ladder._likelihood(axis.view(-1, 1, 1)).log_prob(x)  # (z_1, B)
        joint = top.view(1, -1, 1) + below.unsqueeze(-1) + likelihood.unsqueeze(1)
        exact = joint.flatten(0, 1).logsumexp(0) + 2 * step.log()
        weights = ladder(x, num_samples=200_000).log_weight(x)
    torch.testing.assert_close(weights.logsumexp(0) - math.log(len(weights)), exact, atol=0.02, rtol=0)
    assert (weights.mean(0) < exact).all()


@pytest.mark.parametrize("inference", INFERENCES)
def test_rate_is_right_on_average(inference: str) -> None:
    """The sum of the layers' KL terms agrees with the mean of log q - log p, and a wrong closed form does not."""
    ladder, x = build((2, 2, 2), inference), torch.rand(1, *SHAPE)
    with torch.no_grad():
        for part in (ladder.up, ladder.posteriors, ladder.down, ladder.conditionals):
            for parameter in part.parameters():
                parameter.mul_(4)  # larger weights make the layers depend on each other
        trace = ladder(x, num_samples=200_000)
        sampled = trace.likelihood.log_prob(x) - trace.log_weight(x)
        error = 5 * sampled.std().item() / 200_000**0.5
        rate = sum(latent.kl().mean() for latent in trace.latents)
        assert rate.item() == pytest.approx(sampled.mean().item(), abs=error)
        if inference == "bottom_up":
            wrong = sum(latent._replace(given_above=True).kl().mean() for latent in trace.latents)
            assert abs(wrong.item() - sampled.mean().item()) > 2 * error


def test_product_of_gaussians() -> None:
    a, b = (Independent(Normal(torch.randn(3), torch.rand(3) + 0.5), 1) for _ in range(2))
    z = torch.randn(9, 3)
    ratio = _product(a, b).log_prob(z) - a.log_prob(z) - b.log_prob(z)
    torch.testing.assert_close(ratio, ratio[0].expand(9))


def test_what_a_bottom_up_posterior_cannot_tell() -> None:
    with pytest.raises(ValueError, match=r"VampPrior is made of q.*bottom_up does not have: use inference=top_down"):
        build((2, 3), "bottom_up", partial(VampPrior, num_components=3, image_shape=SHAPE))
    with pytest.raises(NotImplementedError, match="no density of the top code"):
        build((2, 3), "bottom_up").infer(torch.rand(1, *SHAPE))
    ladder = build((2, 3), "top_down", partial(VampPrior, num_components=3, image_shape=SHAPE))
    assert ladder(torch.rand(5, *SHAPE)).latents[0].kl().shape == (1, 5)
    with pytest.raises(TypeError, match="the layer above was drawn from this one: use inference=top_down"):
        build((2, 3), "bottom_up")(torch.rand(5, *SHAPE)).latents[1].kl_per_dim()


def test_free_bits_are_per_dimension_of_each_layer() -> None:
    ladder, x = build((2, 3)), torch.rand(5, *SHAPE)
    terms = ELBO(free_bits=1e3)(ladder, x)
    torch.testing.assert_close(terms["loss"] - terms["distortion"], torch.full((5,), 5e3), rtol=1e-4, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"latent_dims": 5}, "latent_dims=5: a list of whole numbers above zero"),
        ({"latent_dims": (2,), "shape": (1, 0, 3)}, "image_shape=.*: a list of whole numbers above zero"),
        ({"latent_dims": (2, 0)}, "a list of whole numbers above zero"),
        ({"latent_dims": (2,), "inference": "sideways"}, "inference=sideways: choose one of top_down, bottom_up"),
    ],
)
def test_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**settings)


@pytest.mark.parametrize("inference", INFERENCES)
def test_reconstruction_is_the_likelihood_at_a_posterior_without_noise(inference: str) -> None:
    ladder, x = build((2, 3, 4), inference), torch.rand(5, *SHAPE)
    noisy = ladder(x).likelihood.mean[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Normal, "rsample", lambda self, shape=(): self.mean.expand(self._extended_shape(shape)))
        quiet = ladder(x).likelihood.mean[0]
    torch.testing.assert_close(ladder.reconstruct(x).mean, quiet)
    assert not torch.allclose(noisy, quiet)


def test_decoding_the_top_code_takes_the_means_below() -> None:
    ladder, z = build((1, 1)), torch.randn(4, 1)
    below = ladder._conditional(0, z).mean
    assert torch.equal(ladder.decode(z).mean, ladder._likelihood(below).mean)
    assert ladder.image_shape == Size(SHAPE)
