"""Training objectives. They read only the Trace or Quantized of a model, and their loss is in nats per image."""

from vaelab.objectives.adversarial import AdversarialAutoencoder, FactorVAE
from vaelab.objectives.disentangling import DIP, BetaTC
from vaelab.objectives.elbo import ELBO, Capacity
from vaelab.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, DReG, Renyi
from vaelab.objectives.m2 import M2
from vaelab.objectives.mmd import MMD
from vaelab.objectives.objective import Objective
from vaelab.objectives.reconstruction import Reconstruction
from vaelab.objectives.schedules import Cyclical, Linear
from vaelab.objectives.vq import VQ

__all__ = [
    "CIWAE", "DIP", "ELBO", "IWAE", "M2", "MIWAE", "MMD", "PIWAE", "VQ", "AdversarialAutoencoder", "BetaTC", "Capacity",
    "Cyclical", "DReG", "FactorVAE", "Linear", "Objective", "Reconstruction", "Renyi",
]  # fmt: skip
