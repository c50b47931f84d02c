"""Callbacks: checkpoints, progress, pictures. None of them draws from the random stream that training uses."""

import contextlib
import io
import logging
import math
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import PassThroughProfiler
from torch.distributions import Independent
from tqdm import tqdm

from vaelab import baselines, checks, figures
from vaelab.files import read_plain, write_atomically
from vaelab.likelihoods import Gaussian
from vaelab.objectives import ELBO
from vaelab.priors import StandardNormal

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """Training was stopped by a signal, after a checkpoint was written. Ends a sweep, too."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files are replaced whole, beside the next steps: the disk takes longer than an epoch's pictures.

    A checkpoint is the bytes it had when it was saved. Two may wait for the disk, best and last of an epoch: a third, a
    load and `teardown` wait until they are written, in turn, and raise their OSError.
    """

    def __init__(self) -> None:
        self._writer: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)
        self._wait(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._writer or ThreadPoolExecutor(1)
        self._waiting.append(self._writer.submit(write_atomically, path, content.getbuffer()))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """A file, as plain data: Lightning's own would run what an address on the web gives it."""
        self._wait()
        return read_plain(Path(path))

    def teardown(self) -> None:
        self._wait()

    def _wait(self, allowed: int = 0) -> None:
        """Until so few are left to be written."""
        while len(self._waiting) > allowed:
            self._waiting.pop(0).result()


class RunCheckpoint(ModelCheckpoint):
    """One file in the run's folder checkpoints/, replaced whole at the end of an epoch."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename=filename, save_on_train_epoch_end=True, enable_version_counter=False)

    @property
    def state_key(self) -> str:
        """Lightning asks for it at each hook of each step, and its own writes all arguments out."""
        return type(self).__qualname__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Its file lies in the run's folder as it is now: any other that a stranger names would be read or deleted."""
        file = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        here = {key: file if key.endswith("_path") and path else path for key, path in state_dict.items()}
        scores = dict(zip([file], state_dict["best_k_models"].values(), strict=False))
        super().load_state_dict({**here, "dirpath": self.dirpath, "best_k_models": scores})


class BestCheckpoint(RunCheckpoint):
    """best.ckpt: the weights of the epoch with the lowest monitored figure; without validation images, of the last."""

    def __init__(self) -> None:
        super().__init__("best")
        self.save_weights_only = True

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(RunCheckpoint):
    """last.ckpt: the end of the latest epoch, or the step at which Ctrl-C or SIGTERM stopped the run.

    A signal is answered between two steps, so that the resumed run goes on bit for bit: Interrupted is raised after the
    checkpoint is written. A second Ctrl-C gives that up and stops at once.
    """

    def __init__(self) -> None:
        super().__init__("last")
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def signalled(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signal is not None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._handlers = {signum: signal.signal(signum, self._remember) for signum in (signal.SIGINT, signal.SIGTERM)}

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
        trainer.strategy.checkpoint_io.teardown()  # which waits until all is written
        log.info(
            "stopped at step %s and saved %s; go on with: python train.py resume=%s",
            f"{trainer.global_step:,}", self.best_model_path, os.path.relpath(trainer.default_root_dir),
        )  # fmt: skip
        raise Interrupted(128 + (self._signal or signal.SIGTERM))

    def _stop(self, trainer: Any) -> bool:
        """Whether a signal came; all ranks have to agree, and ask each other now and then only."""
        every = trainer.log_every_n_steps if trainer.world_size > 1 else 1
        due = trainer.is_last_batch or trainer.global_step % every == 0
        return due and trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self._restore_handlers()
        trainer.strategy.checkpoint_io.teardown()  # the last file's error belongs to the training

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._restore_handlers()
        try:
            trainer.strategy.checkpoint_io.teardown()
        except OSError as error:  # what ended the run is not hidden by it
            log.error("a checkpoint could not be written: %s", error)

    def _restore_handlers(self) -> None:
        """Before Lightning restores those that it had found."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


class Progress(ProgressBar):
    """One bar over all optimiser steps, redrawn every `refresh_every_n_steps`, 0 for no bar, and ten lines of log."""

    def __init__(self, refresh_every_n_steps: int = 50) -> None:
        super().__init__()
        self.refresh_every_n_steps = refresh_every_n_steps
        self._bar = tqdm(disable=True)
        self._reported = 0

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first, whose bar is never drawn."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        drawn = trainer.is_global_zero and self.refresh_every_n_steps
        hidden = None if drawn else True  # None: unless the output is a terminal
        total = trainer.estimated_stepping_batches
        self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", file=sys.stdout, disable=hidden)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.refresh_every_n_steps and trainer.global_step % self.refresh_every_n_steps == 0:
            self._redraw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._redraw(trainer, pl_module)
        tenth = int(10 * trainer.global_step / trainer.estimated_stepping_batches)
        if tenth > self._reported:
            self._reported = tenth
            self._bar.clear()
            epoch, step = trainer.current_epoch + 1, trainer.global_step
            log.info("epoch %d, step %s: %s", epoch, f"{step:,}", _losses(pl_module))

    def _redraw(self, trainer: Any, module: Any) -> None:
        self._bar.n = trainer.global_step
        self._bar.set_postfix_str(f"epoch {trainer.current_epoch + 1}, {_losses(module)}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._bar.close()


def _losses(module: Any) -> str:
    shown = ((split, module.figures.get(f"{split}/loss")) for split in ("train", "val"))
    return ", ".join(f"{split}/loss {value:.2f}" for split, value in shown if value is not None)


class Figures(Callback):
    """Draws the model `count` times a run, evenly, before the first step too: to TensorBoard, the latest also as PNG.

    Inputs beside reconstructions, samples at fixed noise where there is a prior and, with two latent dimensions, the
    decoded manifold and the codes coloured by class.
    """

    def __init__(self, count: int = 20, num_reconstructions: int = 32, num_samples: int = 64) -> None:
        checks.whole(0, count=count, num_reconstructions=num_reconstructions, num_samples=num_samples)
        self.count, self.num_reconstructions, self.num_samples = count, num_reconstructions, num_samples
        self._drawn = -1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        due = int(self.count * trainer.global_step / trainer.estimated_stepping_batches)
        if due > self._drawn and trainer.is_global_zero:
            self._drawn = due
            training = pl_module.training
            pl_module.eval()
            self._draw(trainer, pl_module)
            pl_module.train(training)

    on_train_start = on_train_epoch_end

    def _draw(self, trainer: Any, module: Any) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torchvision.transforms.functional import to_pil_image

        model = module.model
        x, y = (part.to(module.device) for part in trainer.datamodule.examples(self.num_reconstructions))
        labels = y if model.num_classes else None
        pictures: dict[str, Any] = {"reconstructions": figures.reconstructions(model, x, labels)}
        if model.prior is not None:
            pictures["samples"] = figures.samples(model, self.num_samples)
        if model.latent_dim == 2 and not model.num_classes:
            pictures["codes"] = figures.codes(model, *(p.to(module.device) for p in trainer.datamodule.examples(5000)))
            if model.prior is not None and isinstance(model.prior(model.infer), Independent):  # which has quantiles
                pictures["manifold"] = figures.manifold(model)
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir(exist_ok=True)
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for name, picture in pictures.items():
            png = io.BytesIO()
            if isinstance(picture, torch.Tensor):
                picture = picture[:1] if model.image_shape[0] == 1 else picture
                picture = to_pil_image((255 * picture).round().byte())
                picture.save(png, "png", compress_level=1)
            else:
                picture.savefig(png)
            (folder / f"{name}.png").write_bytes(png.getvalue())
            for board in boards:  # whose add_image would compress it once more, which takes four times as long
                width, height = Image.open(png).size
                image = Summary.Image(encoded_image_string=png.getvalue(), width=width, height=height)
                value = Summary.Value(tag=name, image=image)
                board._get_file_writer().add_summary(Summary(value=[value]), trainer.global_step)


class AverageLoss(Callback):
    """The tutorial's own figure, squared error + KL per image, from the loss in nats.

    For n pixels and a Gaussian likelihood of variance 1/2, -log p(x | z) = ||x - mean||^2 + (n/2) log pi, so the
    figure is the loss less (n/2) log pi: an identity, no second computation. Logged as train/average_loss. Raises
    ValueError if the likelihood is another, or the loss is not the plain ELBO.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        objective, likelihood = pl_module.objective, pl_module.model.likelihood
        log_scale: Any = getattr(likelihood, "log_scale", None)
        fixed = isinstance(likelihood, Gaussian) and log_scale is not None and not log_scale.requires_grad
        plain = isinstance(objective, ELBO) and objective.beta == 1 and not objective.free_bits
        if not (fixed and plain and math.isclose(2 * log_scale, -math.log(2), rel_tol=1e-5)):
            needed = "model/likelihood=gaussian with scale sqrt(1/2), objective=elbo, beta 1 and no free bits"
            raise ValueError(f"callbacks.average_loss turns nats into squared error + KL, which needs {needed}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pixels = math.prod(pl_module.model.image_shape)
        average = pl_module.curves.means(trainer, "train")["train/loss"] - pixels / 2 * math.log(math.pi)
        pl_module.curves.record(trainer, {"train/average_loss": average})
        log.info("epoch %d: average loss %.4f (squared error + KL per image)", trainer.current_epoch + 1, average)


class ClosedForm(Callback):
    """Starts a linear model at its optimum over the training images, which has a closed form: see vaelab.baselines.

    `method` is "pca" for the autoencoder, "ppca" for the VAE with a learned noise scale. Raises ValueError if it is
    neither, the model is not the linear one it needs, or binarisation is dynamic.
    """

    def __init__(self, method: str) -> None:
        checks.one_of(("pca", "ppca"), method=method)
        self.method = method

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        model, vae = pl_module.model, self.method == "ppca"
        optimum = getattr(baselines, self.method)(_training_images(trainer), model.latent_dim)
        shapes, needed = ({name: w.shape for name, w in state.items()} for state in (model.state_dict(), optimum))
        linear = isinstance(model.likelihood, Gaussian) and model.likelihood.mean == "identity"
        standard = isinstance(model.prior, StandardNormal) and bool((model.prior.std == 1).all())
        if not (linear and standard and shapes == needed):
            raise ValueError(
                f"callbacks.closed_form with method={self.method} needs model/network=linear, model/posterior="
                f"{'diagonal_gaussian' if vae else 'point_mass'}, model/prior=standard_normal of scale 1 and model/"
                f"likelihood=gaussian with mean=identity and {'scale=learned' if vae else 'a number as its scale'}"
            )
        model.load_state_dict(optimum)  # a resumed run's own weights are restored after this, over these


class PrincipalAngle(Callback):
    """The largest angle between the column spaces of decoder and PCA, in degrees, logged as train/principal_angle.

    A linear autoencoder at its optimum has 0: it finds the subspace of PCA, though not its axes. Baldi & Hornik 1989,
    https://doi.org/10.1016/0893-6080(89)90014-2. Raises ValueError if the decoder is more than one linear layer, or
    binarisation is dynamic.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        optimum = baselines.pca(_training_images(trainer), pl_module.model.latent_dim)
        self._principal, bias = optimum["decoder.layers.0.weight"], optimum["decoder.layers.0.bias"]
        shapes = [part.shape for part in pl_module.model.decoder.parameters()]
        if shapes != [self._principal.shape, bias.shape]:
            needed = "model/network=linear, one likelihood parameter per pixel and no labels"
            raise ValueError(f"callbacks.principal_angle looks at the columns of one matrix: it needs {needed}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        weight, _ = pl_module.model.decoder.parameters()
        angle = baselines.principal_angle(weight.detach().cpu(), self._principal)
        pl_module.curves.record(trainer, {"train/principal_angle": angle})
        log.info("epoch %d: %.2f degrees from the subspace of PCA", trainer.current_epoch + 1, angle)


def _training_images(trainer: Any) -> torch.Tensor:
    """(N, C, H, W) in [0, 1], on the CPU."""
    if trainer.datamodule.binarization == "dynamic":
        raise ValueError("data.binarization=dynamic redraws the images; a closed form needs fixed ones: choose none")
    return trainer.datamodule.splits["train"][0].float().div_(255)


class NoProfiler(PassThroughProfiler):
    """One context for all that Lightning would measure: its own makes a generator each of thirty times a step."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing
