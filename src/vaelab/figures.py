"""Pictures of a model: pure functions, model and data in, image grid (3, height, width) or matplotlib Figure out."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Independent

from vaelab.trace import GenerativeModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Ten colours that colour-blind readers can tell apart with the digits written beside them (Paul Tol, muted).
COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB",
)  # fmt: skip


def grid(images: Tensor, columns: int, zoom: int = 2) -> Tensor:
    """Images (N, C, H, W) in [0, 1] -> one picture, row by row, each pixel `zoom` wide."""
    from torchvision.utils import make_grid

    picture = make_grid(images.detach().float().cpu().clamp(0, 1), nrow=columns, padding=1, pad_value=0.5)
    return picture.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)


@torch.no_grad()
def reconstructions(model: GenerativeModel, x: Tensor, y: Tensor | None = None, columns: int = 8) -> Tensor:
    """Pairs: an image of (B, C, H, W), and to its right E[x | z] at its posterior's mean."""
    return grid(torch.cat([x, model.reconstruct(x, y).mean], dim=-1), columns)


@torch.no_grad()
def samples(model: GenerativeModel, count: int = 64, seed: int = 0, columns: int = 8) -> Tensor:
    """E[x | z] at draws z ~ p(z) that depend on the seed alone; a class has its column, where there are any."""
    device = next(model.parameters()).device
    labels = None
    if model.num_classes:
        columns, count = model.num_classes, count - count % model.num_classes
        labels = torch.arange(count, device=device) % columns
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return grid(model.sample(count, labels).mean, columns)


@torch.no_grad()
def manifold(model: GenerativeModel, steps: int = 20) -> Tensor:
    """E[x | z] over a two-dimensional latent space with a Gaussian prior, at equally probable steps of each axis.

    The axes are the prior's quantiles at 1/(2 steps), 3/(2 steps), ... 1 - 1/(2 steps); z_0 to the right, z_1 upwards.
    Raises ValueError if the latent space has not two dimensions, or its prior no quantiles.
    """
    if model.latent_dim != 2:
        raise ValueError(f"the manifold is a picture of two latent dimensions, not of {model.latent_dim}")
    device = next(model.parameters()).device
    axis = (torch.arange(steps, device=device) + 0.5) / steps
    quantiles = torch.stack(torch.meshgrid(axis, axis.flip(0), indexing="xy"), dim=-1)  # (rows, columns, 2)
    prior = model.prior(model.infer)
    if not isinstance(prior, Independent):
        raise ValueError(f"the manifold needs quantiles of a factorised prior, which {type(prior).__name__} has not")
    z = prior.base_dist.icdf(quantiles)
    return grid(model.decode(z.flatten(0, 1)).mean, steps)


@torch.no_grad()
def codes(model: GenerativeModel, x: Tensor, y: Tensor) -> "Figure":
    """Posterior means of images in a two-dimensional latent space, coloured by class y (B,)."""
    from matplotlib.figure import Figure

    z = model.encode(x, y if model.num_classes else None).float().cpu()
    y = y.cpu()
    figure = Figure(figsize=(6.5, 6), layout="constrained", dpi=110)
    axes = figure.subplots()
    for label in y.unique().tolist():
        points, colour = z[y == label], COLOURS[label % len(COLOURS)]
        axes.scatter(points[:, 0], points[:, 1], s=5, linewidths=0, alpha=0.6, color=colour, label=str(label))
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        centre = tuple(points.median(0).values.tolist())
        axes.annotate(str(label), centre, ha="center", va="center", weight="bold", bbox=box)
    axes.set(xlabel="$z_0$ (posterior mean)", ylabel="$z_1$ (posterior mean)", title=f"Codes of {len(z):,} images")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, frameon=False)
    return figure
