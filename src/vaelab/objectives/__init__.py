"""What is optimised, in nats per image. Objectives see a model through its Trace, and penalties see its decoder."""

from vaelab.objectives.elbo import ELBO
from vaelab.objectives.importance import CIWAE, IWAE, MIWAE, DReG, Renyi
from vaelab.objectives.objective import Objective
from vaelab.objectives.reconstruction import Reconstruction
from vaelab.objectives.schedules import Linear

__all__ = ["CIWAE", "ELBO", "IWAE", "MIWAE", "DReG", "Linear", "Objective", "Reconstruction", "Renyi"]
