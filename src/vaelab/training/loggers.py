"""What a run does with its loggers: its metrics.csv, its settings, its pictures and its final metrics."""

import csv
import io
from collections.abc import Iterable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy import ndarray

from vaelab.errors import UserError
from vaelab.files import read_text, write_atomically
from vaelab.training import tensorboard

MOST_BYTES = 2 * 10**8  # of metrics.csv; a row has about 100


class MetricsFile(Logger):
    """The file metrics.csv in the folder of a run: a row for each point of the curves, with its optimiser step.

    Each row is on the disk before the next step, so that a killed run loses none. A resumed run drops the rows from
    `purge_step` on when it writes its first one, because it takes these steps again. Lightning's own CSVLogger begins
    an empty file. Writing raises UserError if the file of a resumed run is not such a table.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        super().__init__()
        self.path, self.purge_step = folder / "metrics.csv", purge_step
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because config.yaml has all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {"step": step} | {name: float(value) for name, value in metrics.items()}
        if not row.keys() <= {*self._columns}:  # also the first row
            rows = self._read() if self._columns or self.purge_step is not None else []
            self._columns += [name for name in row if name not in self._columns]
            write_atomically(self.path, self._text([dict(zip(self._columns, self._columns, strict=True)), *rows]))
        with self.path.open("ab") as file:
            file.write(self._text([row]))

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    def _read(self) -> list[dict[str, str]]:
        """The rows of the file before `purge_step`, which is then forgotten. The columns become those of the file."""
        first, self.purge_step = self.purge_step, None
        if not self.path.is_file():  # the run of an older version
            return []
        whole, _, _ = read_text(self.path, MOST_BYTES).rpartition("\n")  # a killed process may leave a part of a row
        try:
            columns, *rows = csv.reader(io.StringIO(whole))
            table = [dict(zip(columns, row, strict=True)) for row in rows]
            kept = [row for row in table if first is None or int(row["step"]) < first]
        except (ValueError, KeyError) as error:
            self.purge_step = first
            raise UserError(
                f"{self.path} is not what a run writes: move it away, and the run begins another"
            ) from error
        self._columns = columns
        return kept


@singledispatch
def add_picture(logger: Any, name: str, pixels: ndarray, step: int) -> None:
    """Send a picture (height, width) or (height, width, channels), uint8, to a logger that has a method `log_image`."""
    if hasattr(logger, "log_image"):
        logger.log_image(name, [pixels], step)


@add_picture.register
def _(logger: TensorBoardLogger, name: str, pixels: ndarray, step: int) -> None:
    logger.experiment.add_image(name, pixels, step, dataformats="HWC"[: pixels.ndim])


@rank_zero_only
def log_start(loggers: Iterable[Any], config: Any) -> None:
    """Lay out TensorBoard's charts, and send the config to each logger. A resumed run has sent it, and gives None."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            tensorboard.add_layout(logger)
        if config is not None:
            logger.log_hyperparams(config)


@rank_zero_only
def log_results(
    loggers: Iterable[Any], folder: Path, settings: Mapping[str, Any], latest: Mapping[str, float], step: int
) -> None:
    """Send the test metrics to each logger and close it. TensorBoard also gets the final validation metrics.

    `settings` are the columns of the HParams tab, `latest` are the latest metrics by the names of their curves.
    """
    tests = {name: value for name, value in latest.items() if name.startswith("test/")}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            tensorboard.add_hyperparameters(logger, folder, settings, latest, step)
        else:
            logger.log_metrics(tests, step)
        logger.finalize("success")
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish:  # a run of W&B is open until then, and nothing else can go on with it
            finish()
