"""Training with Lightning: the LightningModule, its callbacks and a learning-rate schedule."""

from vaelab.training.callbacks import Pictures, Progress
from vaelab.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    Interrupted,
    LastCheckpoint,
    measure,
    saved_by,
)
from vaelab.training.closed_forms import AverageLoss, ClosedForm, PrincipalAngle
from vaelab.training.evaluation import EvaluationMetrics
from vaelab.training.loggers import MetricsFile, log_results, log_start
from vaelab.training.metrics import NonFiniteLossError
from vaelab.training.module import VAEModule
from vaelab.training.protocols import DelayedEarlyStopping, InitialWeights
from vaelab.training.schedulers import Cosine
from vaelab.training.search import LearningRateSearch

__all__ = [
    "AtomicCheckpointIO", "AverageLoss", "BestCheckpoint", "ClosedForm", "Cosine", "DelayedEarlyStopping",
    "EvaluationMetrics", "InitialWeights", "Interrupted", "LastCheckpoint", "LearningRateSearch", "MetricsFile",
    "NonFiniteLossError", "Pictures", "PrincipalAngle", "Progress", "VAEModule", "log_results", "log_start", "measure",
    "saved_by",
]  # fmt: skip
