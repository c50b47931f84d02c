"""Generative models with their inference networks. They know nothing of objectives, Lightning or Hydra."""

from vaelab.models.ladder import LadderVAE
from vaelab.models.vae import VAE
from vaelab.models.vqvae import VQVAE

__all__ = ["VAE", "VQVAE", "LadderVAE"]
