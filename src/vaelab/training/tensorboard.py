"""TensorBoard content of a run beside its curves: chart layout, row of the HParams tab, results of evaluate.py."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F

from vaelab import pictures

PROJECTED, NUMBERS = 2000, 400_000  # most test codes in the Projector tab, and most numbers in all these codes
TERMS = ("loss", "rate", "distortion")
# The settings in which runs differ: whole nodes of the config or single leaves
CHOICES = (
    *("model", "objective", "optimizer", "scheduler", "seed", "trainer.max_epochs", "trainer.precision"),
    *(f"data.{name}" for name in ("used", "binarization", "batch_size", "train_size", "val_size")),
)


def add_layout(logger: TensorBoardLogger) -> None:
    """Lay out the Custom Scalars tab: one chart for each split, and one chart each for loss, rate and distortion."""
    charts = {f"{split}: {', '.join(TERMS)}": ["Multiline", [f"{split}/{term}" for term in TERMS]]
              for split in ("train", "val")}  # fmt: skip
    charts |= {term: ["Multiline", [f"train/{term}", f"val/{term}"]] for term in TERMS}
    logger.experiment.add_custom_scalars({"nats per image": charts})


def add_hyperparameters(logger: TensorBoardLogger, cfg: DictConfig, latest: dict[str, float], step: int) -> None:
    """Write the row of the HParams tab: the chosen settings, and the final metrics by the names of their curves."""
    chosen = {key: value for choice in CHOICES for key, value in _leaves(OmegaConf.select(cfg, choice), choice)}
    metrics = {name: value for name, value in latest.items() if name.startswith("test/")}
    metrics |= {name.replace("val/", "best/val_"): value for name, value in latest.items() if name.startswith("val/")}
    logger.log_hyperparams(chosen, metrics, step=step)
    logger.finalize("success")


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
            board.add_scalar(f"evaluation/{name}", value)
        if measurement.pairs is not None:
            board.add_image("samples beside their nearest training images", pictures.grid(measurement.pairs, 8))
        some = slice(min(PROJECTED, NUMBERS // measurement.codes.shape[1]))
        codes = F.pad(measurement.codes[some], (0, max(0, 3 - measurement.codes.shape[1])))  # the tab needs three axes
        names = None if labels is None else labels[some].tolist()
        board.add_embedding(codes, names, images[some], tag="test codes")


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of each setting below a node. A part has the name of its class as value."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield key, node["_target_"].rsplit(".", 1)[-1]
        for name, child in node.items():
            if name not in ("_target_", "_partial_"):
                yield from _leaves(child, f"{key}.{name!s}")
    elif node is not None:
        yield key, node if isinstance(node, bool | int | float | str) else str(node)
