"""Generative models with their inference networks. They do not depend on objectives, Lightning or Hydra."""

from vaelab.models.fsqvae import FSQVAE
from vaelab.models.ladder import LadderVAE
from vaelab.models.vae import VAE
from vaelab.models.vqvae import VQVAE

__all__ = ["FSQVAE", "VAE", "VQVAE", "LadderVAE"]
