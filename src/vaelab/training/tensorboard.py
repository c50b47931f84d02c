"""TensorBoard content of a run beside its curves: chart layout, row of the HParams tab, results of evaluate.py.

TensorBoard sorts groups of cards by name and opens the first two. These are therefore the curves, train/ and val/. The
pictures are in views/, and the final metrics of the weights that the run keeps are in weights/.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

from vaelab import pictures

PROJECTED, NUMBERS = 2000, 400_000  # most test codes in the Projector tab, and most numbers in all these codes
TERMS = ("loss", "rate", "distortion")
TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_")  # the start of the name of a run's folder


def add_layout(logger: TensorBoardLogger) -> None:
    """Lay out the Custom Scalars tab: one chart for each split, and one chart each for loss, rate and distortion."""
    charts = {f"{split}: {', '.join(TERMS)}": ["Multiline", [f"{split}/{term}" for term in TERMS]]
              for split in ("train", "val")}  # fmt: skip
    charts |= {term: ["Multiline", [f"train/{term}", f"val/{term}"]] for term in TERMS}
    logger.experiment.add_custom_scalars({"nats per image": charts})


def add_hyperparameters(
    logger: TensorBoardLogger, folder: Path, settings: Mapping[str, Any], latest: Mapping[str, float], step: int
) -> None:
    """Write the row of the HParams tab: settings, and the test and validation metrics of the weights that are kept."""
    from tensorboard.plugins.hparams import summary_v2 as api  # its module api needs TensorFlow

    metrics = {f"weights/{name.replace('/', '_')}": value for name, value in latest.items()
               if name.startswith(("test/", "val/"))}  # fmt: skip
    board: Any = logger.experiment
    for name, value in metrics.items():
        board.add_scalar(name, value, step)
    columns = [api.HParam(name) for name in settings], [api.Metric(name) for name in metrics]
    board.file_writer.add_summary(api.hparams_config_pb(*columns))
    board.file_writer.add_summary(api.hparams_pb(dict(settings), trial_name(folder)))


def trial_name(folder: Path) -> str:
    """A short name that no other run has: that of its folder without the time, or with four digits of a digest."""
    name = TIME.sub("", folder.name)
    return name if name != folder.name else f"{name}_{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:4]}"


def add_evaluation(folder: Path, measurement: Any, images: Tensor, labels: Tensor | None) -> None:
    """Write the metrics, the samples nearest to training images, and the Projector tab: codes, images and labels.

    They replace the results of an earlier evaluation of the run.
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in (*folder.glob("events.*.evaluation"), folder / "projector_config.pbtxt"):
        old.unlink(missing_ok=True)
    shutil.rmtree(folder / "00000", ignore_errors=True)  # the folder of add_embedding
    with SummaryWriter(str(folder), filename_suffix=".evaluation") as board:
        for name, value in measurement.record["metrics"].items():
            board.add_scalar(f"weights/{name}", value)
        if measurement.pairs is not None:
            board.add_image("views/samples beside their nearest training images", pictures.grid(measurement.pairs, 8))
        some = slice(min(PROJECTED, NUMBERS // measurement.codes.shape[1]))
        codes = F.pad(measurement.codes[some], (0, max(0, 3 - measurement.codes.shape[1])))  # the tab needs three axes
        names = None if labels is None else labels[some].tolist()
        board.add_embedding(codes, names, images[some], tag="test codes")
