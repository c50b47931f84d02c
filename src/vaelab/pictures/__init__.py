"""Pictures of a model: grids of images, the latent space, and picture files."""

from vaelab.pictures.files import image, save, titled, training
from vaelab.pictures.grids import (
    drawn_classes,
    framed,
    grid,
    interpolation,
    manifold,
    one_class,
    reconstructions,
    samples,
    slerp,
)
from vaelab.pictures.latent import COLOURS, ae_vs_vae, codes, prior, rates, traversal
from vaelab.pictures.predictive import predictive_checks

__all__ = [
    "COLOURS", "ae_vs_vae", "codes", "drawn_classes", "framed", "grid", "image", "interpolation", "manifold",
    "one_class", "predictive_checks", "prior", "rates", "reconstructions", "samples", "save", "slerp", "titled",
    "training", "traversal",
]  # fmt: skip
