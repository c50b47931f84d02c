"""Grids of images: functions of a model and data that return a picture (3, height, width) or a matplotlib Figure.

Images x are uint8 or in [0, 1].
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent

from vaelab.errors import UserError
from vaelab.evaluation.batches import floats
from vaelab.interfaces import (
    GenerativeModel,
    classes_of_codes,
    device_of,
    image_of,
    labels,
    name_of_image,
    quantises,
)
from vaelab.noise import fixed_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(images: Tensor, columns: int, zoom: int = 2) -> Tensor:
    """Images (N, C, H, W) in [0, 1] in rows of `columns`: one picture (3, height, width), each pixel `zoom` wide.

    One channel is grey, and three are red, green and blue. Of more channels, the first three are shown, and two are
    shown as red and green.
    """
    from torchvision.utils import make_grid

    shown = images[:, :3].detach().float().cpu().clamp(0, 1)
    shown = F.pad(shown, (0, 0, 0, 0, 0, 1)) if shown.shape[1] == 2 else shown
    picture = make_grid(shown, nrow=columns, padding=1, pad_value=0.5)
    return picture.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)


def framed(
    picture: Tensor, title: str, rows: Sequence[str] = (), columns: Sequence[str] = (), **labels: str
) -> "Figure":
    """A picture with a title, names of rows and columns, and axis labels. One pixel of it is one pixel of the file."""
    from matplotlib.figure import Figure

    height, width = picture.shape[1:]
    figure = Figure(dpi=96, figsize=(width / 96, height / 96))  # browsers use 96 dpi, so pixels are exact in an SVG
    axes = figure.add_axes((0, 0, 1, 1))
    extent = (0, len(columns) or 1, len(rows) or 1, 0)
    axes.imshow(picture.movedim(0, -1).numpy(), extent=extent, aspect="auto", interpolation="none")
    axes.set_xticks([i + 0.5 for i in range(len(columns))], labels=columns)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], labels=rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
    axes.set(**labels)
    fit_to_content(figure)
    return figure


def fit_to_content(figure: "Figure", margin: int = 10) -> None:
    """Widen a figure by whole pixels until the text beside its axes fits in. Images are not resampled."""
    width, height = (round(size * figure.dpi) for size in figure.get_size_inches())
    boxes: list[Any] = [axes.get_tightbbox() for axes in figure.axes]
    left, bottom = (margin + math.ceil(max(-getattr(box, side) for box in boxes)) for side in ("x0", "y0"))
    right, top = math.ceil(max(box.x1 for box in boxes)) - width, math.ceil(max(box.y1 for box in boxes)) - height
    full_width, full_height = left + width + right + margin, bottom + height + top + margin
    for axes in figure.axes:
        x, y, w, h = axes.get_position().bounds
        axes.set_position(
            ((left + x * width) / full_width, (bottom + y * height) / full_height,
             w * width / full_width, h * height / full_height)
        )  # fmt: skip
    figure.set_size_inches(full_width / figure.dpi, full_height / figure.dpi)


@torch.no_grad()
def reconstructions(model: GenerativeModel, x: Tensor, y: Tensor | None = None, columns: int = 8) -> Tensor:
    """A grid of pairs: each image of x (B, C, H, W), and on its right E[x | z] at the mean of its posterior.

    If E[x | z] is not known, this picture and all others show a draw of p(x | z) in its place.
    """
    x = floats(x)
    with fixed_noise(x.device):
        return grid(torch.cat([x, image_of(model, model.reconstruct(x, y))], dim=-1), columns)


@torch.no_grad()
def samples(
    model: GenerativeModel, count: int = 64, seed: int = 0, columns: int = 8, label: int | None = None
) -> Tensor:
    """E[x | z] at draws z ~ p(z) that depend on the seed alone.

    A model with classes draws the class `label` if it is given, otherwise one column for each class, with at least one
    row.
    """
    device, y = device_of(model), None
    if label is not None:
        y = one_class(model, label).expand(count)
    elif classes := drawn_classes(model):
        columns, count = classes, max(count // classes, 1) * classes
        y = torch.arange(count, device=device) % columns
    with fixed_noise(device, seed):
        return grid(image_of(model, model.sample(count, y)), columns)


def drawn_classes(model: GenerativeModel) -> int:
    """The number of classes that a model can draw, or 0: those that it is conditioned on, or those of its codes."""
    return model.num_classes or classes_of_codes(model)


def one_class(model: GenerativeModel, label: int) -> Tensor:
    """A class as a 0-dim tensor. Raises UserError for a class that the model does not have."""
    classes = drawn_classes(model)
    if not classes:
        advice = "" if quantises(model) else ": train with model.num_classes=10"  # which no VQ-VAE takes
        raise UserError(f"label={label}, but this model was trained without labels{advice}")
    if type(label) is not int or not 0 <= label < classes:
        raise UserError(f"label={label}: the classes of this model are 0 to {classes - 1}")
    return torch.tensor(label, device=device_of(model))


@torch.no_grad()
def manifold(model: GenerativeModel, steps: int = 20, label: int | None = None) -> Tensor:
    """E[x | z] over a two-dimensional latent space with a Gaussian prior, at equally probable steps of each axis.

    The axes are the prior's quantiles at 1/(2 steps), 3/(2 steps), ... 1 - 1/(2 steps). z_0 rises to the right, z_1 up.
    Raises UserError if the latent space does not have two dimensions, if the prior has no quantiles, or if a
    conditional model gets no `label`.
    """
    if model.num_classes and label is None:
        raise UserError("each class of a conditional model has its own manifold: choose a class, such as label=3")
    z = quantiles(model, steps).unflatten(0, (steps, steps))
    return grid(in_rows(model, z, None if label is None else one_class(model, label)).flatten(0, 1), steps)


def in_rows(model: GenerativeModel, z: Tensor, y: Tensor | None = None) -> Tensor:
    """The images of rows of codes z (N, steps, ..., D), (N, steps, ..., C, H, W), for a picture.

    If E[x | z] is not known, all images of a row are drawn with the same noise, so that they differ by z alone.
    """
    images = []
    for column in z.unbind(1):
        with fixed_noise(z.device):
            images.append(image_of(model, model.decode(column, y)))
    return torch.stack(images, dim=1)


def quantiles(model: GenerativeModel, steps: int) -> Tensor:
    """The codes of the manifold, (steps^2, 2), row by row from the top left. Raises UserError as `manifold` does."""
    if model.latent_dim != 2:
        wrong = f"the manifold is a picture of two latent dimensions, not of {model.latent_dim}"
        raise UserError(f"{wrong}: train with model.latent_dim=2")
    device = device_of(model)
    axis = (torch.arange(steps, device=device) + 0.5) / steps
    shares = torch.stack(torch.meshgrid(axis, axis.flip(0), indexing="xy"), dim=-1)  # (rows, columns, 2)
    prior = model.prior(model.infer)
    if not isinstance(prior, Independent):
        raise UserError(f"the manifold needs the quantiles of a factorised prior, and {type(prior).__name__} has none")
    return prior.base_dist.icdf(shares).flatten(0, 1)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of vectors a, b (..., D): sin((1-t) w)/sin(w) a + sin(t w)/sin(w) b, with angle w.

    If a and b have the same length, all vectors between them have it too. If they are parallel, the result is linear
    interpolation. Shoemake 1985, https://doi.org/10.1145/325165.325242; for latent spaces: White 2016,
    https://arxiv.org/abs/1609.04468
    """
    angle = F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().unsqueeze(-1)
    arc = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    return torch.where(angle.sin() < 1e-3, torch.lerp(a, b, t), arc)


@torch.no_grad()
def interpolation(model: GenerativeModel, x: Tensor, y: Tensor | None, count: int = 5, steps: int = 11) -> "Figure":
    """E[x | z] on the line and on the arc between the codes of two images, for `count` pairs of x (B, C, H, W).

    The two images have different classes y (B,) if there are several, and the same class for a conditional model. With
    None for y, the pairs are those of the order.
    Raises UserError if there are fewer pairs than `count`.
    """
    y = torch.zeros(len(x), dtype=torch.long, device=x.device) if y is None else y
    alike = model.num_classes > 0 or len(y.unique()) == 1
    pairs = torch.arange(len(x) // 2 * 2, device=x.device).view(-1, 2)
    pairs = pairs[(y[pairs[:, 0]] == y[pairs[:, 1]]) == alike][:count]
    if len(pairs) < count:
        raise UserError(f"{count} pairs of images are needed, but {len(x):,} images give {len(pairs):,}: take fewer")
    (first, last), given = floats(x[pairs.T]), labels(model, y[pairs[:, 0]])
    a, b = model.encode(first, given), model.encode(last, given)
    t = torch.linspace(0, 1, steps, device=x.device).view(-1, 1, 1)
    paths = torch.stack([torch.lerp(a, b, t), slerp(a, b, t)])  # (2, steps, N, D)
    between = in_rows(model, paths, given).movedim(2, 0)  # (N, 2, steps, C, H, W)
    start, end = (image[:, None, None].expand(-1, 2, 1, -1, -1, -1) for image in (first, last))
    columns = ["image", *(f"{share:.1f}" for share in t.flatten().tolist()), "image"]
    return framed(
        grid(torch.cat([start, between, end], dim=2).flatten(0, 2), len(columns)),
        f"{name_of_image(model)} on two ways between the codes of two test images",
        ["linear", "spherical"] * count, columns, xlabel="share of the way from one code to the other",
    )  # fmt: skip
