"""The training loop's glue: a LightningModule and its callbacks."""

from vaelab.training.callbacks import (
    AtomicCheckpointIO,
    AverageLoss,
    BestCheckpoint,
    Figures,
    Interrupted,
    LastCheckpoint,
    Progress,
)
from vaelab.training.module import VAEModule
from vaelab.training.schedulers import Cosine
from vaelab.training.totals import NonFiniteLossError

__all__ = [
    "AtomicCheckpointIO",
    "AverageLoss",
    "BestCheckpoint",
    "Cosine",
    "Figures",
    "Interrupted",
    "LastCheckpoint",
    "NonFiniteLossError",
    "Progress",
    "VAEModule",
]
