from functools import partial

import pytest
import torch
from torch import nn

from vaelab.errors import UserError
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import ClassPosterior, DiagonalGaussian
from vaelab.priors import ClassPrior, StandardNormal


def build(latent_dim: int = 3, num_classes: int = 0, image_shape: tuple = (2, 6, 5), **parts: object) -> VAE:
    default = {
        "encoder": partial(MLPEncoder, hidden=[16]),
        "posterior": DiagonalGaussian,
        "prior": StandardNormal,
        "decoder": partial(MLPDecoder, hidden=[16]),
        "likelihood": Bernoulli(),
    }
    return VAE(latent_dim, image_shape, num_classes=num_classes, **default | parts)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_shapes(num_samples: int) -> None:
    vae, x = build(), torch.rand(7, 2, 6, 5).round()
    trace = vae(x, num_samples=num_samples)
    (latent,) = trace.latents
    assert latent.z.shape == (num_samples, 7, 3)
    assert latent.log_q.shape == (num_samples, 7)
    assert latent.kl().shape == (1, 7)
    assert trace.likelihood.batch_shape == (num_samples, 7)
    assert trace.likelihood.event_shape == (2, 6, 5)
    assert trace.log_weight(x).shape == (num_samples, 7)
    assert vae.encode(x).shape == (7, 3)
    assert vae.decode(torch.zeros(2, 4, 3)).batch_shape == (2, 4)
    assert vae.sample(9).mean.shape == (9, 2, 6, 5)


def test_every_parameter_gets_a_gradient() -> None:
    vae, x = build(), torch.rand(7, 2, 6, 5).round()
    vae(x).log_weight(x).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_labels_reach_encoder_and_decoder() -> None:
    vae, x = build(num_classes=4), torch.rand(6, 2, 6, 5).round()
    zero, one = torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.long)
    assert not torch.allclose(vae.encode(x, zero), vae.encode(x, one))
    z = torch.zeros(6, 3)
    assert not torch.allclose(vae.decode(z, zero).mean, vae.decode(z, one).mean)
    assert vae(x, one, num_samples=2).log_weight(x).shape == (2, 6)
    with pytest.raises(ValueError, match="conditioned on 4 classes: give it labels"):
        vae(x)
    with pytest.raises(ValueError, match="labels were given to a model without class conditioning"):
        build()(x, one)


@pytest.mark.parametrize("in_code", [True, False])
def test_codes_with_a_class_are_drawn_of_given_classes(in_code: bool) -> None:
    parts = {"num_classes": 4, "in_code": in_code}
    vae = build(6, posterior=partial(ClassPosterior, **parts), prior=partial(ClassPrior, learned=True, **parts))
    y, drawn = torch.arange(8) % 4, []
    vae.prior.mean.data.copy_(100.0 * torch.arange(4).view(4, 1).expand_as(vae.prior.mean))
    vae.decoder.register_forward_pre_hook(lambda _, code: drawn.append(code[0]))
    assert vae.sample(8, y).mean.shape == (8, 2, 6, 5)
    dim = 2 if in_code else 6
    torch.testing.assert_close(drawn[0][:, :dim].mean(1), 100.0 * y, rtol=0, atol=5)
    if in_code:
        assert torch.equal(drawn[0][:, 2:], torch.eye(4)[y])
    assert vae.sample(5).batch_shape == (5,)


@pytest.mark.parametrize("latent_dim", [0, -3, 2.0, "two", True, None])
def test_latent_dim_is_a_whole_number_above_zero(latent_dim: object) -> None:
    with pytest.raises(ValueError, match=f"latent_dim={latent_dim}: a whole number, at least 1, is needed"):
        build(latent_dim)


@pytest.mark.parametrize("image_shape", [False, 3.0, "1", (1, 6), (1, 6, -5), (1, 6.0, 5)])
def test_image_shape_has_three_whole_numbers_above_zero(image_shape: object) -> None:
    with pytest.raises(UserError, match=r"image_shape=.*: a list of whole numbers above zero"):
        build(image_shape=image_shape)


def test_a_network_that_does_not_fit_says_so() -> None:
    class Fixed(nn.Module):  # a network for 28 x 28 images that ignores the requested shape
        out_features = 8

        def __init__(self, *_: object) -> None:
            super().__init__()
            self.layer = nn.Linear(784, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    with pytest.raises(RuntimeError, match="cannot be multiplied") as error:
        build(encoder=Fixed)
    assert error.value.__notes__ == ["This happened when Fixed got one blank input of shape (2, 6, 5)."]
    with pytest.raises(
        ValueError, match=r"turns an input of shape \(3,\) into \(2, 7, 5\), but the model needs \(2, 6, 5\)"
    ):
        build(decoder=lambda d, _: MLPDecoder(d, torch.Size((2, 7, 5))))


def test_state_dict_holds_weights_alone_by_the_names_of_the_parts() -> None:
    assert {name.split(".")[0] for name in build().state_dict()} == {"encoder", "posterior", "decoder"}
