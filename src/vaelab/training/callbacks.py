"""Callbacks: checkpoints, progress, pictures. None of them draws from the random stream that training uses.

Hooks get Lightning's Trainer and our VAEModule.
"""

import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributions import Independent
from tqdm import tqdm

from vaelab import baselines, figures
from vaelab.files import write_atomically
from vaelab.likelihoods import Gaussian
from vaelab.priors import StandardNormal

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """Training was stopped by a signal, after a checkpoint was written. Ends a sweep, too."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own moves a finished file over the old one, which is a copy, byte by byte, between file systems."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, content.getbuffer())


class RunCheckpoint(ModelCheckpoint):
    """One file in the run's folder checkpoints/, replaced whole at the end of an epoch."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename=filename, save_on_train_epoch_end=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run's folder may have moved since: its checkpoints lie where it is now."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best_k_models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best_k_models, "dirpath": self.dirpath})


class BestCheckpoint(RunCheckpoint):
    """best.ckpt: the epoch with the lowest monitored figure; without validation images, the last epoch."""

    def __init__(self) -> None:
        super().__init__("best")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(RunCheckpoint):
    """last.ckpt: the end of the latest epoch, or the step at which Ctrl-C or SIGTERM stopped the run.

    A signal is answered between two steps, so that the resumed run goes on bit for bit; a second Ctrl-C stops at once.

    Raises:
        Interrupted: after the checkpoint is written.
    """

    def __init__(self) -> None:
        super().__init__("last")
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._handlers[signum] = signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signum
        log.info("%s: saving, then stopping", signal.Signals(signum).name)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # no gradient waits to be applied
        if stepped and not trainer.is_last_batch and self._stop(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._interrupt(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._stop(trainer) and trainer.current_epoch + 1 != trainer.max_epochs:
            self._interrupt(trainer)

    def _interrupt(self, trainer: Any) -> None:
        log.info(
            "stopped at step %s and saved %s; go on with: python train.py resume=%s",
            f"{trainer.global_step:,}", self.best_model_path, os.path.relpath(trainer.default_root_dir),
        )  # fmt: skip
        raise Interrupted(128 + (self._signal or signal.SIGTERM))

    def _stop(self, trainer: Any) -> bool:
        """Whether a signal came; all ranks have to agree, and ask each other now and then only."""
        if trainer.world_size == 1:
            return self._signal is not None
        if trainer.global_step % trainer.log_every_n_steps and not trainer.is_last_batch:
            return False
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers.clear()


class Progress(ProgressBar):
    """One bar over all optimiser steps, redrawn every `refresh_every_n_steps`, and ten lines of log a run."""

    def __init__(self, refresh_every_n_steps: int = 50) -> None:
        super().__init__()
        self.refresh_every_n_steps = refresh_every_n_steps
        self._bar: tqdm | None = None
        self._reported = 0

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self.refresh_every_n_steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.refresh_every_n_steps:
            steps = trainer.estimated_stepping_batches
            total = None if math.isinf(steps) else int(steps)
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", file=sys.stdout, disable=None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self._bar is not None and trainer.global_step % self.refresh_every_n_steps == 0:
            self._redraw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._bar is None:
            return
        self._redraw(trainer, pl_module)
        tenth = int(10 * trainer.global_step / trainer.estimated_stepping_batches)
        if tenth > self._reported:
            self._reported = tenth
            self._bar.clear()
            log.info("epoch %d, step %s: %s", trainer.current_epoch + 1, f"{trainer.global_step:,}", _losses(pl_module))

    def _redraw(self, trainer: Any, module: Any) -> None:
        assert self._bar is not None
        if not self._bar.disable:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(f"epoch {trainer.current_epoch + 1}, {_losses(module)}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _losses(module: Any) -> str:
    shown = ((split, module.figures.get(f"{split}/loss")) for split in ("train", "val"))
    return ", ".join(f"{split}/loss {value:.2f}" for split, value in shown if value is not None)


class Figures(Callback):
    """Draws the model `count` times a run, evenly, before the first step too: to TensorBoard, the latest also as PNG.

    Inputs beside reconstructions, samples at fixed noise where there is a prior and, with two latent dimensions, the
    decoded manifold and the codes coloured by class.
    """

    def __init__(self, count: int = 20, num_reconstructions: int = 32, num_samples: int = 64) -> None:
        counts = {"count": count, "num_reconstructions": num_reconstructions, "num_samples": num_samples}
        for name, value in counts.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"callbacks.figures.{name}={value}: a whole number, at least zero, is needed")
        self.count, self.num_reconstructions, self.num_samples = count, num_reconstructions, num_samples
        self._drawn = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._draw_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._draw_if_due(trainer, pl_module)

    def _draw_if_due(self, trainer: Any, module: Any) -> None:
        due = int(self.count * trainer.global_step / trainer.estimated_stepping_batches)
        if due > self._drawn and trainer.is_global_zero:
            self._drawn = due
            training = module.training
            module.eval()
            self._draw(trainer, module)
            module.train(training)

    def _draw(self, trainer: Any, module: Any) -> None:
        model = module.model
        x, y = (part.to(module.device) for part in trainer.datamodule.examples(self.num_reconstructions))
        labels = y if model.num_classes else None
        pictures: dict[str, Callable[[], Any]] = {"reconstructions": lambda: figures.reconstructions(model, x, labels)}
        if model.prior is not None:
            pictures["samples"] = lambda: figures.samples(model, self.num_samples)
        if model.latent_dim == 2 and not model.num_classes:
            many = [part.to(module.device) for part in trainer.datamodule.examples(5000)]
            pictures["codes"] = lambda: figures.codes(model, *many)
            if model.prior is not None and isinstance(model.prior(model.infer), Independent):  # which has quantiles
                pictures["manifold"] = lambda: figures.manifold(model)
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir(exist_ok=True)
        for name, draw in pictures.items():
            self._write(draw(), name, folder / f"{name}.png", trainer)

    def _write(self, picture: Any, name: str, path: Path, trainer: Any) -> None:
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if isinstance(picture, torch.Tensor):
            from torchvision.utils import save_image

            save_image(picture, path)
            for board in boards:
                board.add_image(name, picture, trainer.global_step)
        else:
            picture.savefig(path)
            for board in boards:
                board.add_figure(name, picture, trainer.global_step)


class AverageLoss(Callback):
    """The tutorial's own figure, squared error + KL per image, from the loss in nats.

    For n pixels and a Gaussian likelihood of variance 1/2, -log p(x | z) = ||x - mean||^2 + (n/2) log pi, so the
    figure is the loss less (n/2) log pi: an identity, no second computation. Logged as train/average_loss.

    Raises:
        ValueError: the likelihood is no Gaussian with scale sqrt(1/2), or the loss is not the plain ELBO.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        log_scale = getattr(pl_module.model.likelihood, "log_scale", None)
        if log_scale is None or log_scale.requires_grad or not math.isclose(2 * log_scale, -math.log(2), rel_tol=1e-5):
            raise ValueError(
                "callbacks.average_loss turns nats into squared error, which needs "
                "model/likelihood=gaussian with scale sqrt(1/2)"
            )
        if getattr(pl_module.objective, "beta", None) != 1 or pl_module.objective.free_bits:
            raise ValueError(
                "callbacks.average_loss is squared error + KL: it goes with objective=elbo, beta 1 and no free bits; "
                "~callbacks.average_loss leaves it out"
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pixels = math.prod(pl_module.model.image_shape)
        means = pl_module.reduce(pl_module.totals["train"])
        average = means["loss"] - pixels / 2 * math.log(math.pi)
        _record(trainer, pl_module, "train/average_loss", average)
        log.info("epoch %d: average loss %.4f (squared error + KL per image)", trainer.current_epoch + 1, average)


class ClosedForm(Callback):
    """Starts a linear model at its optimum over the training images, which has a closed form: see vaelab.baselines.

    Args:
        method: "pca" for the autoencoder, "ppca" for the VAE with a learned noise scale.

    Raises:
        ValueError: the method is neither, the model is not the linear one it needs, or binarisation is dynamic.
    """

    def __init__(self, method: str) -> None:
        if method not in ("pca", "ppca"):
            raise ValueError(f"callbacks.closed_form.method={method}: choose pca or ppca")
        self.method = method

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        model, vae = pl_module.model, self.method == "ppca"
        pixels, rows = math.prod(model.image_shape), (1 + vae) * model.latent_dim
        needed = {
            "posterior.linear.weight": (rows, pixels),
            "posterior.linear.bias": (rows,),
            "decoder.layers.0.weight": (pixels, model.latent_dim),
            "decoder.layers.0.bias": (pixels,),
        } | ({"likelihood.log_scale": ()} if vae else {})
        linear = isinstance(model.likelihood, Gaussian) and model.likelihood.mean == "identity"
        standard = isinstance(model.prior, StandardNormal) and bool((model.prior.std == 1).all())
        found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        if not (linear and standard and found == needed):
            raise ValueError(
                f"callbacks.closed_form with method={self.method} needs model/network=linear, model/posterior="
                f"{'diagonal_gaussian' if vae else 'point_mass'}, model/prior=standard_normal of scale 1 and model/"
                f"likelihood=gaussian with mean=identity and {'scale=learned' if vae else 'a number as its scale'}"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.ckpt_path:  # a resumed run goes on from its own weights
            optimum = getattr(baselines, self.method)(_training_images(trainer), pl_module.model.latent_dim)
            pl_module.model.load_state_dict(optimum)


class PrincipalAngle(Callback):
    """The largest angle between the column spaces of decoder and PCA, in degrees, logged as train/principal_angle.

    A linear autoencoder at its optimum has 0: it finds the subspace of PCA, though not its axes. Baldi & Hornik 1989,
    https://doi.org/10.1016/0893-6080(89)90014-2

    Raises:
        ValueError: the decoder is more than one linear layer, or binarisation is dynamic.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        model = pl_module.model
        pixels = math.prod(model.image_shape)
        if [tuple(part.shape) for part in model.decoder.parameters()] != [(pixels, model.latent_dim), (pixels,)]:
            raise ValueError(
                "callbacks.principal_angle looks at the columns of one matrix: it needs model/network=linear, one "
                "likelihood parameter per pixel and no labels"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        optimum = baselines.pca(_training_images(trainer), pl_module.model.latent_dim)
        self._principal = optimum["decoder.layers.0.weight"]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        weight, _ = pl_module.model.decoder.parameters()
        angle = baselines.principal_angle(weight.detach().cpu(), self._principal)
        _record(trainer, pl_module, "train/principal_angle", angle)
        log.info("epoch %d: %.2f degrees from the subspace of PCA", trainer.current_epoch + 1, angle)


def _training_images(trainer: Any) -> torch.Tensor:
    """(N, C, H, W) in [0, 1], on the CPU."""
    if trainer.datamodule.binarization == "dynamic":
        raise ValueError(
            "data.binarization=dynamic redraws the images, of which a closed form needs fixed ones: choose none"
        )
    return trainer.datamodule.splits["train"][0].float().div_(255)


def _record(trainer: Any, module: Any, name: str, value: float) -> None:
    """A figure of the epoch: for metrics.json and the loggers."""
    module.figures[name] = value
    for logger in trainer.loggers:
        logger.log_metrics({name: value}, trainer.global_step)
