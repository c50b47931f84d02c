"""Comparisons of a run with a closed form: the tutorial's loss, the optima of linear models, and their collapse."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from vaelab import checks, linear
from vaelab.errors import UserError
from vaelab.likelihoods import Gaussian
from vaelab.noise import fixed_noise
from vaelab.objectives import ELBO, IWAE
from vaelab.objectives.objective import value_at
from vaelab.priors import StandardNormal

log = logging.getLogger(__name__)
IMAGES = 1000  # that foretell a collapse; with more, the largest eigenvalue of MNIST changes by one per cent
OPTIMA = {"pca": linear.pca, "ppca": linear.ppca}


def foretold_collapse(module: Any, data: Any) -> str | None:
    """A sentence if the settings of a run leave a linear VAE no unit on its training images, or None.

    A unit is kept if an eigenvalue of the pixels' covariance is above beta sigma^2: see `linear.units_kept`. A Gaussian
    likelihood of fixed sigma and the final beta of an ELBO count; in an importance-weighted bound, beta is 1. A
    nonlinear decoder can keep a unit that a linear one loses, but not far below the threshold.
    """
    objective, scale = module.objective, _fixed_scale(module.model.likelihood)
    if scale is None or not isinstance(objective, ELBO | IWAE):
        return None
    plain = isinstance(objective, ELBO)
    if plain and objective.has_free_bits:
        return None
    noise = scale**2 * (float(value_at(objective.beta, None)) if plain else 1)
    images = data.splits["train"][0]
    with fixed_noise(images.device):
        few = images[torch.randperm(len(images))[:IMAGES]].float() / 255  # the first ones may be of one class
        few = few.bernoulli() if data.binarization == "dynamic" else few
    eigenvalues = linear.spectrum(few)
    if linear.units_kept(eigenvalues, noise):
        return None
    return (
        f"The code will almost certainly collapse: beta * sigma^2 = {noise:.3g} is above the largest eigenvalue of the "
        f"pixels' covariance ({float(eigenvalues[0]):.3g}, from {len(few):,} training images), so a linear VAE keeps "
        "no unit. Lower model.likelihood.scale or the weight beta of the rate."
    )


class AverageLoss(Callback):
    """Logs the tutorial's loss, squared error + KL per image, as train/average_loss.

        -log p(x | z) = ||x - mean||^2 + (n/2) log pi,     n pixels, a Gaussian likelihood of variance 1/2

    The tutorial's loss is therefore the loss in nats minus (n/2) log pi. Raises UserError for another likelihood, and
    for an objective other than the plain ELBO.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        objective, scale = pl_module.objective, _fixed_scale(pl_module.model.likelihood)
        plain = isinstance(objective, ELBO) and objective.beta == 1 and not objective.free_bits
        if not (scale and plain and math.isclose(scale**2, 0.5, rel_tol=1e-5)):
            needed = "model/likelihood=gaussian with scale sqrt(1/2), objective=elbo, beta 1 and no free bits"
            raise UserError(f"callbacks.average_loss computes squared error + KL from nats, which needs {needed}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pixels = math.prod(pl_module.model.image_shape)
        average = pl_module.measured["train/loss"] - pixels / 2 * math.log(math.pi)
        pl_module.record({"train/average_loss": average})
        log.info("epoch %d: average loss %.4f (squared error + KL per image)", trainer.current_epoch + 1, average)


class ClosedForm(Callback):
    """Starts a linear model at its optimum on the training images, which has a closed form: see vaelab/linear.py.

    `method` is "pca" for the autoencoder or "ppca" for the VAE with a learned noise scale. Raises UserError for another
    method, for a model that is not the linear model of the method, and for dynamic binarisation.
    """

    def __init__(self, method: str) -> None:
        checks.one_of(tuple(OPTIMA), method=method)
        self.method = method

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        model, vae = pl_module.model, self.method == "ppca"
        optimum = OPTIMA[self.method](_training_images(trainer), model.latent_dim)
        shapes, needed = ({name: w.shape for name, w in state.items()} for state in (model.state_dict(), optimum))
        is_linear = isinstance(model.likelihood, Gaussian) and model.likelihood.mean == "identity"
        standard = isinstance(model.prior, StandardNormal) and bool((model.prior.std == 1).all())
        if not (is_linear and standard and shapes == needed):
            raise UserError(
                f"callbacks.closed_form with method={self.method} needs model/network=linear, model/posterior="
                f"{'diagonal_gaussian' if vae else 'point_mass'}, model/prior=standard_normal of scale 1 and model/"
                f"likelihood=gaussian with mean=identity and {'scale=learned' if vae else 'a number as its scale'}"
            )
        model.load_state_dict(optimum)  # a resumed run later replaces these weights by its own


class PrincipalAngle(Callback):
    """Logs train/principal_angle: the largest angle between the column spaces of the decoder and PCA, in degrees.

    The angle is 0 for a linear autoencoder at its optimum, which finds the subspace of PCA but not its axes. Raises
    UserError if the decoder is not one linear layer, and for dynamic binarisation. Baldi & Hornik 1989,
    https://doi.org/10.1016/0893-6080(89)90014-2
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        optimum = linear.pca(_training_images(trainer), pl_module.model.latent_dim)
        self._principal, bias = optimum["decoder.layers.0.weight"], optimum["decoder.layers.0.bias"]
        shapes = [part.shape for part in pl_module.model.decoder.parameters()]
        if shapes != [self._principal.shape, bias.shape]:
            needed = "model/network=linear, one likelihood parameter per pixel and no labels"
            raise UserError(f"callbacks.principal_angle compares the columns of one matrix, which needs {needed}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        weight, _ = pl_module.model.decoder.parameters()
        angle = linear.principal_angle(weight.detach().cpu(), self._principal)
        pl_module.record({"train/principal_angle": angle})
        log.info("epoch %d: %.2f degrees from the subspace of PCA", trainer.current_epoch + 1, angle)


def _fixed_scale(likelihood: Any) -> float | None:
    """The scale of a Gaussian likelihood, if it is a given number."""
    if isinstance(likelihood, Gaussian) and "log_scale" in dict(likelihood.named_buffers()):
        return float(likelihood.log_scale.exp())
    return None


def _training_images(trainer: Any) -> torch.Tensor:
    """The training images (N, C, H, W) in [0, 1], on the CPU. Raises UserError for dynamic binarisation."""
    if trainer.datamodule.binarization == "dynamic":
        raise UserError("data.binarization=dynamic redraws the images, but a closed form needs fixed ones: choose none")
    return trainer.datamodule.splits["train"][0].float().div_(255)
