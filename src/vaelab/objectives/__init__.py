"""What is optimised. Objectives see a model through its Trace or Quantized only, and return nats per image."""

from vaelab.objectives.elbo import ELBO
from vaelab.objectives.importance import CIWAE, IWAE, MIWAE, DReG, Renyi
from vaelab.objectives.objective import Objective
from vaelab.objectives.schedules import Linear
from vaelab.objectives.vq import VQ

__all__ = ["CIWAE", "ELBO", "IWAE", "MIWAE", "VQ", "DReG", "Linear", "Objective", "Renyi"]
