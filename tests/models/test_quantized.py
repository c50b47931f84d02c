"""What autoencoders with quantised codes share: maps of indices, and samples from a prior over them."""

from functools import partial

import pytest
import torch

from vaelab.likelihoods import Gaussian
from vaelab.models import FSQVAE, VQVAE
from vaelab.networks import ConvDecoder, ConvEncoder, PixelCNN

PARTS = (partial(ConvEncoder, channels=[4], hidden=[]), partial(ConvDecoder, channels=[4]), Gaussian(0.5))
MODELS = {"vq": lambda: VQVAE(3, 7, (1, 6, 4), *PARTS), "fsq": lambda: FSQVAE((3, 4), (1, 6, 4), *PARTS)}


@pytest.mark.parametrize("kind", MODELS)
def test_indices_are_those_of_the_code(kind: str) -> None:
    model, x = MODELS[kind]().eval(), torch.rand(5, 1, 6, 4)
    indices = model.indices(x)
    assert indices.shape == (5, 3, 2)
    assert torch.equal(indices, model(x).indices)
    assert torch.equal(model.codes(indices).flatten(1), model.encode(x))


@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_decoded_maps_of_the_prior(kind: str) -> None:
    model = MODELS[kind]().eval()
    with pytest.raises(NotImplementedError, match=r"nothing to sample from .*: python train_prior.py run=logs/RUN"):
        model.sample(2)
    model.code_prior = PixelCNN(len(model.codebook), channels=4, kernel_size=3, num_blocks=1)
    assert model.prior is None
    torch.manual_seed(1)
    density = model.sample(6)
    torch.manual_seed(1)
    indices = model.code_prior.sample(torch.Size((6, 3, 2)))
    assert density.batch_shape == (6,)
    assert torch.equal(density.mean, model.decode(model.codes(indices).flatten(1)).mean)
