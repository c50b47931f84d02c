"""The training loop's glue: a LightningModule and its callbacks."""

from vaelab.training.callbacks import (
    AtomicCheckpointIO,
    AverageLoss,
    BestCheckpoint,
    ClosedForm,
    Figures,
    Interrupted,
    LastCheckpoint,
    NoProfiler,
    PrincipalAngle,
    Progress,
)
from vaelab.training.fast import FastTrainer
from vaelab.training.module import VAEModule
from vaelab.training.schedulers import Cosine
from vaelab.training.totals import NonFiniteLossError

__all__ = [
    "AtomicCheckpointIO", "AverageLoss", "BestCheckpoint", "ClosedForm", "Cosine", "FastTrainer", "Figures",
    "Interrupted", "LastCheckpoint", "NoProfiler", "NonFiniteLossError", "PrincipalAngle", "Progress", "VAEModule",
]  # fmt: skip
