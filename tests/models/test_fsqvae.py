"""Finite scalar quantisation: levels, bounds, the bijection of codes and indices, and the gradient."""

import itertools
from functools import partial

import pytest
import torch

from vaelab.likelihoods import Gaussian
from vaelab.models import FSQVAE
from vaelab.networks import ConvDecoder, ConvEncoder
from vaelab.objectives import VQ

ENCODER, DECODER = partial(ConvEncoder, channels=[6, 8], hidden=[]), partial(ConvDecoder, channels=[8, 6])


def build(levels: tuple = (4, 3, 5), image_shape: tuple = (1, 12, 8)) -> FSQVAE:
    return FSQVAE(levels, image_shape, ENCODER, DECODER, Gaussian(0.5))


def squashed(fsq: FSQVAE, z: torch.Tensor) -> torch.Tensor:
    """The numbers before the rounding, if the network before it returns z (B, D, h, w)."""
    fsq.encoder.forward = lambda _: z.flatten(1)  # type: ignore[method-assign]
    fsq.map_shape, fsq.project = z.shape[1:], torch.nn.Identity()
    return fsq.embed(torch.empty(0))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 4), (7,)])
def test_indices_and_codes_are_a_bijection(levels: tuple) -> None:
    fsq = build(levels)
    count = torch.tensor(levels).prod().item()
    assert fsq.codebook.shape == (count, len(levels))
    every = torch.arange(count).view(1, count, 1)
    codes = fsq.codes(every)  # (1, D, J, 1)
    assert torch.equal(fsq.nearest(codes), every)
    assert len(fsq.codebook.unique(dim=0)) == count
    grids = [[(step - size // 2) / (size // 2) for step in range(size)] for size in levels]
    expected = torch.tensor(list(itertools.product(*reversed(grids)))).flip(1)  # the first number changes fastest
    torch.testing.assert_close(fsq.codebook, expected)


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_numbers_are_squashed_to_all_levels_and_no_other(size: int) -> None:
    fsq = build((size,))
    z = torch.linspace(-12, 12, 4001).view(1, 1, -1, 1)
    z_q, indices = fsq.quantize(squashed(fsq, z))
    assert torch.equal(indices.flatten().unique(), torch.arange(size))
    assert (indices.flatten().diff() >= 0).all()
    assert z_q.min() == -1
    assert z_q.max() == (1 if size % 2 else 1 - 2 / size)
    zero = squashed(build((size,)), torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(zero, torch.zeros(1, 1, 1, 1), atol=1e-6, rtol=0)


def test_the_code_is_the_nearest_one_and_its_gradient_goes_straight_through() -> None:
    fsq, x = build().eval(), torch.rand(5, 1, 12, 8)
    z_e, z_q, indices, likelihood, codebook = fsq(x)
    assert (fsq.latent_dim, indices.shape, codebook.shape) == (18, (5, 3, 2), (60, 3))
    assert (z_e - z_q).abs().amax((0, 2, 3)).le(torch.tensor([1 / 4, 1 / 2, 1 / 4]) + 1e-6).all()
    (straight,) = torch.autograd.grad(likelihood.log_prob(x).sum(), z_e)
    z = fsq.encode(x).detach().requires_grad_()
    torch.testing.assert_close(straight.flatten(1), torch.autograd.grad(fsq.decode(z).log_prob(x).sum(), z)[0])


def test_nothing_is_learned_but_the_networks() -> None:
    fsq, x = build(), torch.rand(5, 1, 12, 8)
    assert not {"codebook", "sizes", "strides"} & fsq.state_dict().keys()
    before = fsq.codebook.clone()
    terms = VQ(commitment=0.0)(fsq, x)
    torch.testing.assert_close(terms["loss"], terms["distortion"])
    terms["loss"].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fsq.parameters())
    assert torch.equal(fsq.codebook, before)


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ([], "levels=.*: a list of whole numbers above zero"),
        ([8, 2], r"levels\[1\]=2: a whole number, at least 3"),
        ([256, 257], r"levels=\[256, 257\] make 65,792 codes, and 65,536 are the most"),
    ],
)
def test_levels_out_of_range(levels: list, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(levels)
