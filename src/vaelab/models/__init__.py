"""Generative models with their inference networks. They know nothing of objectives, Lightning or Hydra."""

from vaelab.models.ladder import LadderVAE
from vaelab.models.vae import VAE

__all__ = ["VAE", "LadderVAE"]
