"""Small models whose code is not one vector of real numbers. Several tests check that they are refused or handled."""

from functools import partial
from typing import Any

from vaelab import posteriors, priors
from vaelab.joint import Joint
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE, VQVAE, LadderVAE
from vaelab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder


def joint() -> VAE:
    blocks: list[Any] = [posteriors.DiagonalGaussian, partial(posteriors.Categorical, num_categories=2)]
    prior_blocks: list[Any] = [priors.StandardNormal, partial(priors.UniformCategorical, num_categories=2)]
    parts = (partial(Joint, dims=[2, 2], blocks=each) for each in (blocks, prior_blocks))
    return VAE(4, (1, 4, 4), MLPEncoder, *parts, MLPDecoder, Bernoulli())


def ladder() -> LadderVAE:
    step = partial(MLPEncoder, hidden=[5])
    return LadderVAE([2, 3], (1, 4, 4), MLPEncoder, step, priors.StandardNormal, MLPDecoder, Bernoulli())


def vq_vae() -> VQVAE:
    encoder, decoder = partial(ConvEncoder, hidden=[]), partial(ConvDecoder, hidden=[])
    return VQVAE(3, 4, (1, 8, 8), encoder, decoder, Bernoulli())
