"""Callbacks that show the progress and the pictures of a run. They do not change the random numbers of training."""

import logging
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch.distributions import Independent
from tqdm import tqdm

from vaelab import checks, pictures
from vaelab.interfaces import labels, name_of_image
from vaelab.text import plain
from vaelab.training.loggers import add_picture

log = logging.getLogger(__name__)
SILENCE = 60  # seconds; the most between two lines, if there is no bar


class Progress(ProgressBar):
    """A progress bar over all optimiser steps, and ten log lines for the whole run.

    The bar is redrawn every `refresh_every_n_steps` optimiser steps; with 0 there is no bar.
    Without a bar, as when the output goes to a file, there is also a line each minute. Raises UserError for a negative
    number.
    """

    def __init__(self, refresh_every_n_steps: int = 50) -> None:
        super().__init__()
        checks.whole(0, refresh_every_n_steps=refresh_every_n_steps)
        self.refresh_every_n_steps = refresh_every_n_steps
        self._bar = tqdm(disable=True)
        self._reported = 0
        self._spoke = time.monotonic()  # when the last line was logged

    def disable(self) -> None:
        """Do nothing. Lightning calls this to hide the bar, but the bar is made later, when training starts."""

    def enable(self) -> None:
        """Do nothing. Lightning calls this to show the bar again after a tuner's search."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        drawn = trainer.is_global_zero and self.refresh_every_n_steps
        hidden = None if drawn else True  # None: tqdm hides the bar unless the output is a terminal
        total = None if math.isinf(pl_module.total_steps) else pl_module.total_steps
        self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", file=sys.stdout, disable=hidden)
        self._spoke = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.refresh_every_n_steps and trainer.global_step % self.refresh_every_n_steps == 0:
            self._redraw(trainer, pl_module)
        self._speak(trainer, pl_module, "training")

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._speak(trainer, pl_module, "validation")

    def on_test_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._speak(trainer, pl_module, "test")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._redraw(trainer, pl_module)
        tenth = int(10 * trainer.global_step / pl_module.total_steps)
        if tenth > self._reported:
            self._reported = tenth
            self._bar.clear()
            self._log(trainer, _losses(pl_module.measured))

    def _speak(self, trainer: Any, module: Any, doing: str) -> None:
        """Log a line if there is no bar, and the last line is a minute old."""
        if self._bar.disable and time.monotonic() - self._spoke > SILENCE:
            self._log(trainer, f"{doing} goes on; {_losses(module.metrics.latest)}".removesuffix("; "))

    def _log(self, trainer: Any, text: str) -> None:
        epoch = trainer.current_epoch + (trainer.state.fn == "fit")  # afterwards it counts the finished epochs
        log.info("epoch %d, step %s: %s", epoch, f"{trainer.global_step:,}", text)
        self._spoke = time.monotonic()

    def _redraw(self, trainer: Any, module: Any) -> None:
        """Show the latest losses and the metrics that are logged with prog_bar=True."""
        latest, more = module.metrics.latest, trainer.progress_bar_metrics
        own = [f"{name} {float(more[name]):.4g}" for name in more if name not in latest]
        shown = [f"epoch {trainer.current_epoch + 1}", _losses(latest), *own]
        self._bar.n = trainer.global_step
        self._bar.set_postfix_str(", ".join(filter(None, shown)))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._bar.close()


def _losses(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {metrics[name]:.2f}" for name in ("train/loss", "val/loss") if name in metrics)


class Pictures(Callback):
    """Draws pictures of the model before the first step, and then `count` times at equal intervals.

    The pictures are images beside their reconstructions and, if the model has a prior, samples at fixed noise. A model
    with two latent dimensions also gets the decoded manifold and the codes, coloured by class. Loggers that take
    pictures get them all, and the folder pictures/ of the run holds the latest PNG of each, with a title. With `keep`,
    those of each time stay, too, in pictures/epoch_NNN/, after NNN epochs. Raises UserError for a number out of its
    range.
    """

    def __init__(
        self, count: int = 20, num_reconstructions: int = 32, num_samples: int = 64, keep: bool = False
    ) -> None:
        checks.whole(0, count=count)
        checks.whole(num_reconstructions=num_reconstructions, num_samples=num_samples)
        checks.one_of((True, False), keep=keep)
        self.count, self.keep = count, keep
        self.num_reconstructions, self.num_samples = num_reconstructions, num_samples
        self._drawn = -1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._draw_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._draw_if_due(trainer, pl_module, trainer.current_epoch)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._drawn < 0 and trainer.is_global_zero:  # there was no step to take
            self.draw(trainer, pl_module, trainer.current_epoch)

    def _draw_if_due(self, trainer: Any, module: Any, epochs: int) -> None:
        due = int(self.count * trainer.global_step / module.total_steps)
        if due > self._drawn and trainer.is_global_zero:
            self._drawn = due
            self.draw(trainer, module, epochs)
            folder = Path(trainer.default_root_dir) / "pictures"
            kept = folder / f"epoch_{epochs:03}"
            if self.keep and not kept.exists():  # a run that goes on draws once more where it stopped
                kept.mkdir()
                for path in folder.glob("*.png"):
                    shutil.copyfile(path, kept / path.name)

    def draw(self, trainer: Any, module: Any, epochs: int) -> None:
        """Draw all pictures after so many epochs, write them with a title and send them to the loggers."""
        training = module.training
        module.eval()
        drawn = self._draw(trainer, module)
        module.train(training)
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(exist_ok=True)
        when = f"epoch {epochs}, {plain(folder.parent.name)}"
        for name, (picture, title) in drawn.items():
            pictures.titled(picture, title, when).save(folder / f"{name}.png")
            for logger in trainer.loggers:
                add_picture(logger, f"views/{name}", np.asarray(picture), trainer.global_step)

    def _draw(self, trainer: Any, module: Any) -> dict[str, tuple[Any, str]]:
        """The pictures by name, as PIL images of one or three channels, and their titles."""
        model, grey = module.model, module.model.image_shape[0] == 1
        shown = name_of_image(model)
        x, y = self._examples(trainer, module, self.num_reconstructions)
        pairs = pictures.reconstructions(model, x, labels(model, y))
        drawn = {
            "reconstructions": (pictures.image(pairs, grey), f"Images, each with {shown} at its code on the right")
        }
        if model.prior is not None:
            drawn["samples"] = (
                pictures.image(pictures.samples(model, self.num_samples), grey),
                f"Samples: {shown}, z from p(z)",
            )
        if model.latent_dim == 2 and not model.num_classes:
            x, y = self._examples(trainer, module, 5000)
            drawn["codes"] = pictures.image(pictures.codes(model, x, y)), "Codes, coloured by class"
            if model.prior is not None and isinstance(model.prior(model.infer), Independent):  # it has quantiles
                title = f"Manifold: {shown} at the prior's quantiles"
                drawn["manifold"] = pictures.image(pictures.manifold(model), grey), title
        return drawn

    @staticmethod
    def _examples(trainer: Any, module: Any, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, y = trainer.datamodule.examples(count, module.device)
        return x.to(module.dtype), y
