from functools import partial

import pytest
import torch
from oracle import LinearGaussian
from torch import nn

from vaelab.likelihoods import Gaussian
from vaelab.models import VQVAE
from vaelab.networks import ConvDecoder, ConvEncoder
from vaelab.objectives import VQ

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def build(codebook: str = "ema") -> VQVAE:
    encoder, decoder = partial(ConvEncoder, channels=[4, 6], hidden=[]), partial(ConvDecoder, channels=[6, 4])
    return VQVAE(3, 5, (1, 8, 8), encoder, decoder, Gaussian(0.5), codebook).eval()


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("gradients", [True, False])
def test_terms_are_one_value_per_image_and_add_up(codebook: str, gradients: bool) -> None:
    vqvae = build(codebook)
    with torch.set_grad_enabled(gradients):  # validation, without them, has the same loss
        t = VQ(commitment=0.5)(vqvae, X)
    names = ("loss", "distortion", "commitment", "perplexity")
    assert {name: term.shape for name, term in t.items()} == dict.fromkeys(names, (6,))
    z_e, z_q, _, likelihood, _ = vqvae(X)
    error = (z_e - z_q).square().sum((1, 2, 3))
    torch.testing.assert_close(t["distortion"], -likelihood.log_prob(X))
    torch.testing.assert_close(t["commitment"], error)
    weight = 1.5 if codebook == "gradient" else 0.5
    torch.testing.assert_close(t["loss"], t["distortion"] + weight * error)


def gradients(module: nn.Module, loss: torch.Tensor) -> dict[str, bool]:
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return {
        name: bool(g is not None and g.any()) for (name, _), g in zip(module.named_parameters(), found, strict=True)
    }


def test_commitment_pulls_the_encoder_only() -> None:
    for codebook in ("ema", "gradient"):
        vqvae = build(codebook)
        reached = gradients(vqvae, VQ()(vqvae, X)["commitment"].sum())
        assert all(hit == name.startswith(("encoder", "project")) for name, hit in reached.items())


def test_the_codebook_learns_from_its_own_term_only() -> None:
    vqvae = build("gradient")
    z_e, z_q, indices, _, codebook = vqvae(X)
    terms = VQ(commitment=0.25)(vqvae, X)
    assert not gradients(vqvae, terms["distortion"].sum())["codebook"]
    (gradient,) = torch.autograd.grad(terms["loss"].sum(), codebook)
    expected = torch.zeros_like(codebook)
    for place, index in zip((z_q - z_e).movedim(1, -1).reshape(-1, 3), indices.flatten(), strict=True):
        expected[index] += 2 * place.detach()
    torch.testing.assert_close(gradient, expected)


def test_every_parameter_learns() -> None:
    for codebook in ("ema", "gradient"):
        vqvae = build(codebook)
        assert all(gradients(vqvae, VQ()(vqvae, X)["loss"].sum()).values())


class Fixed(VQVAE):
    """Takes the codes from a list instead of the encoder."""

    wanted: torch.Tensor

    def quantize(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.codebook[self.wanted].movedim(-1, 1), self.wanted


def test_perplexity_is_the_number_of_codes_in_equal_use() -> None:
    vqvae = build()
    vqvae.__class__ = Fixed
    for used in (1, 2, 5):
        vqvae.wanted = (torch.arange(20) % used).view(5, 2, 2)
        perplexity = VQ()(vqvae, X[:5])["perplexity"]
        torch.testing.assert_close(perplexity, torch.full((5,), float(used)))


def test_a_model_that_does_not_quantise() -> None:
    oracle = LinearGaussian()
    with pytest.raises(TypeError, match="VQ scores a Quantized, and the model returns a Trace"):
        VQ()(oracle.vae(exact=True), oracle.images(3))


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="commitment=-1: a number, at least zero"):
        VQ(commitment=-1)
