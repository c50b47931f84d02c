"""The search for a learning rate before the first step."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import LearningRateFinder

from vaelab import pictures
from vaelab.text import plain

log = logging.getLogger(__name__)


class LearningRateSearch(LearningRateFinder):
    """Lightning's LearningRateFinder, which also prints its suggestion and draws the search: pictures/lr_finder.png.

    The search takes training steps at rising learning rates. It suggests the rate at which the loss falls most steeply:
    Smith 2017, https://arxiv.org/abs/1506.01186. The weights are then those from before the search. The arguments are
    those of LearningRateFinder.
    """

    def lr_find(self, trainer: Any, pl_module: Any) -> None:
        from matplotlib.figure import Figure

        super().lr_find(trainer, pl_module)
        found: Any = self.optimal_lr
        if found is None or not trainer.is_global_zero:  # trainer.fast_dev_run searches nothing
            return
        rate, figure = found.suggestion(), Figure(figsize=(6.5, 4.5), layout="constrained", dpi=110)
        found.plot(suggest=rate is not None, ax=figure.subplots())
        what = "no suggestion, because the search took too few steps" if rate is None else f"suggestion {rate:.3g}"
        folder = Path(trainer.default_root_dir)
        path = folder / "pictures" / "lr_finder.png"
        path.parent.mkdir(exist_ok=True)
        title = f"Loss of training steps at rising learning rates: {what}", plain(folder.name)
        pictures.titled(pictures.image(figure), *title).save(path)
        log.info("rate     %s; pictures/lr_finder.png shows the search", what)
