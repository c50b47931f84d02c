"""What is optimised. Objectives see a model through its Trace only, and return nats per image."""

from vaelab.objectives.elbo import ELBO
from vaelab.objectives.objective import Objective
from vaelab.objectives.schedules import Linear

__all__ = ["ELBO", "Linear", "Objective"]
