"""Pictures of a model: pure functions, model and data in, image grid (3, height, width) or matplotlib Figure out."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Independent

from vaelab import densities
from vaelab.distributions import PointMass
from vaelab.errors import PartsError, UserError
from vaelab.evaluation.latent import rate_per_dim
from vaelab.trace import GenerativeModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


def framed(
    picture: Tensor, title: str, rows: Sequence[str] = (), columns: Sequence[str] = (), **labels: str
) -> "Figure":
    """An image grid with a title, names of its rows and columns, and axis labels; its pixels are those of the PNG."""
    from matplotlib.figure import Figure

    height, width = picture.shape[1:]
    figure = Figure(dpi=96, figsize=(width / 96, height / 96))  # a browser's dpi: exact in an SVG, too
    axes = figure.add_axes((0, 0, 1, 1))
    extent = (0, len(columns) or 1, len(rows) or 1, 0)
    axes.imshow(picture.movedim(0, -1).numpy(), extent=extent, aspect="auto", interpolation="none")
    axes.set_xticks([i + 0.5 for i in range(len(columns))], labels=columns)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], labels=rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
    axes.set(**labels)
    _fit(figure)
    return figure


def _fit(figure: "Figure", margin: int = 10) -> None:
    """Widen a figure by whole pixels until all that stands beside its axes is inside: nothing is resampled."""
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
    """Pairs: an image of (B, C, H, W), and to its right E[x | z] at its posterior's mean."""
    return grid(torch.cat([x, model.reconstruct(x, y).mean], dim=-1), columns)


@torch.no_grad()
def samples(
    model: GenerativeModel, count: int = 64, seed: int = 0, columns: int = 8, label: int | None = None
) -> Tensor:
    """E[x | z] at draws z ~ p(z) that depend on the seed alone, all of the class `label` if it is given.

    A class has its column otherwise, where there are any.
    """
    device = next(model.parameters()).device
    labels = None
    if label is not None:
        labels = one_class(model, label).expand(count)
    elif model.num_classes:
        columns, count = model.num_classes, count - count % model.num_classes
        labels = torch.arange(count, device=device) % columns
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return grid(model.sample(count, labels).mean, columns)


def one_class(model: GenerativeModel, label: int) -> Tensor:
    """A class as the model takes it, (); ValueError for one that it does not know."""
    if not model.num_classes:
        raise UserError(f"label={label}, but this model was trained without labels: model.num_classes=10 takes them")
    if type(label) is not int or not 0 <= label < model.num_classes:
        raise UserError(f"label={label}: the classes of this model are 0 to {model.num_classes - 1}")
    return torch.tensor(label, device=next(model.parameters()).device)


@torch.no_grad()
def manifold(model: GenerativeModel, steps: int = 20, label: int | None = None) -> Tensor:
    """E[x | z] over a two-dimensional latent space with a Gaussian prior, at equally probable steps of each axis.

    The axes are the prior's quantiles at 1/(2 steps), 3/(2 steps), ... 1 - 1/(2 steps); z_0 to the right, z_1 upwards.
    Raises ValueError if the latent space has not two dimensions, or its prior no quantiles, or classes no `label`.
    """
    if model.num_classes and label is None:
        raise UserError("each class of a conditional model has a manifold of its own: choose one, such as label=3")
    z = _quantiles(model, steps)
    return grid(model.decode(z, None if label is None else one_class(model, label)).mean, steps)


def _quantiles(model: GenerativeModel, steps: int) -> Tensor:
    """The manifold's codes, (steps^2, 2), row by row from the top left."""
    if model.latent_dim != 2:
        raise UserError(f"the manifold is a picture of two latent dimensions, not of {model.latent_dim}")
    device = next(model.parameters()).device
    axis = (torch.arange(steps, device=device) + 0.5) / steps
    quantiles = torch.stack(torch.meshgrid(axis, axis.flip(0), indexing="xy"), dim=-1)  # (rows, columns, 2)
    prior = model.prior(model.infer)
    if not isinstance(prior, Independent):
        raise UserError(f"the manifold needs quantiles of a factorised prior, which {type(prior).__name__} has not")
    return prior.base_dist.icdf(quantiles).flatten(0, 1)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of vectors a, b (..., D): sin((1-t) w)/sin(w) a + sin(t w)/sin(w) b, w their angle.

    A vector's length stays what it is where both have one length; the line, where they are parallel. Shoemake 1985,
    https://doi.org/10.1145/325165.325242; in latent spaces: White 2016, https://arxiv.org/abs/1609.04468
    """
    angle = F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().unsqueeze(-1)
    arc = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    return torch.where(angle.sin() < 1e-3, torch.lerp(a, b, t), arc)


@torch.no_grad()
def interpolation(model: GenerativeModel, x: Tensor, y: Tensor, count: int = 5, steps: int = 11) -> "Figure":
    """E[x | z] on the line and on the arc between the codes of two images of (B, C, H, W), `count` times.

    The two are of different classes, or for a model that is given classes y (B,), of one. Raises ValueError for more
    pairs than there are.
    """
    pairs = torch.arange(len(y) // 2 * 2, device=y.device).view(-1, 2)
    pairs = pairs[(y[pairs[:, 0]] == y[pairs[:, 1]]) == (model.num_classes > 0)][:count]
    if len(pairs) < count:
        raise UserError(f"{count} pairs of images were asked for, but {len(y):,} images give {len(pairs):,}")
    (first, last), labels = x[pairs.T], _given(model, y[pairs[:, 0]])
    a, b = model.encode(first, labels), model.encode(last, labels)
    t = torch.linspace(0, 1, steps, device=x.device).view(-1, 1, 1)
    paths = torch.stack([torch.lerp(a, b, t), slerp(a, b, t)])  # (2, steps, N, D)
    between = model.decode(paths, labels).mean.movedim(2, 0)  # (N, 2, steps, C, H, W)
    start, end = (image[:, None, None].expand(-1, 2, 1, -1, -1, -1) for image in (first, last))
    columns = ["image", *(f"{share:.1f}" for share in t.flatten().tolist()), "image"]
    return framed(
        grid(torch.cat([start, between, end], dim=2).flatten(0, 2), len(columns)),
        "E[x | z] on two ways between the codes of two test images",
        ["linear", "spherical"] * count, columns, xlabel="share of the way from one code to the other",
    )  # fmt: skip


def _given(model: GenerativeModel, y: Tensor) -> Tensor | None:
    """Classes for a model that takes them."""
    return y if model.num_classes else None


@torch.no_grad()
def rates(model: GenerativeModel, x: Tensor, y: Tensor) -> Tensor:
    """KL(q(z_j | x) || p(z_j)) of each dimension j in nats, mean over images (B, C, H, W): (D,).

    Raises ValueError where q and p are no factorised Gaussians.
    """
    try:
        parts = zip(x.split(1000), y.split(1000), strict=True)
        posteriors = [model.infer(images, _given(model, classes)) for images, classes in parts]
        return rate_per_dim(posteriors, model.prior(model.infer))
    except PartsError as error:
        raise UserError(f"single dimensions of this latent space have no rate: {error}") from error


@torch.no_grad()
def traversal(model: GenerativeModel, x: Tensor, y: Tensor, steps: int = 13) -> "Figure":
    """E[x | z] as one dimension of z moves and the others stay at the code of the first image of x (B, C, H, W).

    Dimensions in the order of their rate, highest first. Raises ValueError as `rates` does.
    """
    rate = rates(model, x, y)
    order, p = rate.argsort(descending=True), model.prior(model.infer)
    units = torch.linspace(-3, 3, steps, device=x.device)
    code = model.encode(x[:1], _given(model, y[:1]))
    z = code.repeat(len(order), steps, 1)  # (D, steps, D)
    z[range(len(order)), :, order] = p.mean[order, None] + p.stddev[order, None] * units
    figure = framed(
        grid(model.decode(z, _given(model, y[:1])).mean.flatten(0, 1), steps),
        f"E[x | z] around a test image's code, one dimension at a time\n(the rates add up to {rate.sum():.2f} nats)",
        [f"$z_{{{j}}}$   {rate[j]:.2f}" for j in order.tolist()], [f"{unit:+.1f}" for unit in units.tolist()],
        xlabel="$z_j$ in standard deviations of its prior; triangle: that of the image",
        ylabel="$z_j$, rate in nats",
    )  # fmt: skip
    own = ((code[0] - p.mean) / p.stddev)[order].clamp(-3, 3).cpu()
    places = ((own + 3) / 6 * (steps - 1) + 0.5).numpy(), [row + 0.1 for row in range(len(order))]
    figure.axes[0].plot(*places, "v", color=COLOURS[5], markersize=9, markeredgecolor="black")
    return figure


@torch.no_grad()
def codes(model: GenerativeModel, x: Tensor, y: Tensor, projection: str | None = None, seed: int = 0) -> "Figure":
    """Posterior means of images in a two-dimensional latent space, coloured by class y (B,).

    More dimensions are projected to two, by "tsne", whose seed it is, or without a word by "pca".
    """
    from matplotlib.figure import Figure

    z = _encoded(model, x, y)
    names, of = ["$z_0$ (posterior mean)", "$z_1$ (posterior mean)"], ""
    if projection or model.latent_dim != 2:
        z, names = _project(z, projection or "pca", seed)
        of = f" of {model.latent_dim} dimensions"
    figure = Figure(figsize=(6.5, 6), layout="constrained", dpi=110)
    axes = figure.subplots()
    _scatter(axes, z, y.cpu())
    axes.set(xlabel=names[0], ylabel=names[1], title=f"Codes{of} of {len(z):,} images")
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, frameon=False)
    return figure


def _encoded(model: GenerativeModel, x: Tensor, y: Tensor) -> Tensor:
    """Codes of images, (N, D) on the CPU, of 1,000 at a time."""
    parts = zip(x.split(1000), y.split(1000), strict=True)
    return torch.cat([model.encode(images, _given(model, classes)).float().cpu() for images, classes in parts])


def _project(z: Tensor, projection: str, seed: int) -> tuple[Tensor, list[str]]:
    """Codes (N, D) -> (N, 2), and what the two axes are; ValueError for fewer dimensions."""
    if z.shape[1] < 2:
        raise UserError("codes are drawn in two dimensions, and this latent space has only one")
    if projection == "tsne":
        from sklearn.manifold import TSNE

        z = torch.from_numpy(TSNE(random_state=seed, perplexity=min(30, len(z) / 4)).fit_transform(z.numpy()))
        return z, [f"t-SNE axis {i + 1} (no unit: neighbours alone mean something)" for i in range(2)]
    z = z - z.mean(0)
    _, lengths, directions = torch.linalg.svd(z, full_matrices=False)
    shares = lengths.square() / lengths.square().sum()
    return z @ directions[:2].T, [f"principal component {i + 1} ({shares[i]:.0%} of the variance)" for i in range(2)]


def _scatter(axes: "Axes", z: Tensor, y: Tensor) -> None:
    """Points (N, 2) in the colours of their classes (N,), whose names stand at the medians."""
    size = max(5, min(30, 15_000 / len(z)))
    for label in y.unique().tolist():
        points, colour = z[y == label], COLOURS[label % len(COLOURS)]
        axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, alpha=0.6, color=colour, label=str(label))
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        centre = tuple(points.median(0).values.tolist())
        axes.annotate(str(label), centre, ha="center", va="center", weight="bold", bbox=box)
    axes.set_aspect("equal", adjustable="datalim")


@torch.no_grad()
def prior(model: GenerativeModel, x: Tensor, y: Tensor, seed: int = 0, most: int = 20) -> "Figure":
    """The aggregate posterior, one draw z ~ q(z | x) an image, against the prior: a pair of dimensions, and each alone.

    Dimensions in the order of their rate, or where that is not defined, of their variance. Raises ValueError for a
    single dimension, and for codes that are no vectors of R^D.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    if model.latent_dim < 2:
        raise UserError("the prior is drawn over two dimensions of the latent space, and this one has only one")
    q = densities.codes(model, zip(x.split(1000), y.split(1000), strict=True), seed)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        density = model.prior(model.infer)
        p = torch.cat([density.sample(Size((1000,))) for _ in range(100)])  # a mixture draws from all components
    try:
        order, by = rates(model, x, y).argsort(descending=True)[:most], "rate"
    except UserError:
        order, by = q.var(0).argsort(descending=True)[:most], "variance"
    q, p, order = q.cpu(), p.cpu(), order.cpu()
    figure = Figure(figsize=(10 + 0.2 * len(order), 5.8), layout="constrained", dpi=100)
    pair, alone = figure.subplots(1, 2, width_ratios=[6, 3.5 + 0.2 * len(order)])

    both = sorted(order[:2].tolist())
    *edges, mass = _histogram(q[:, both])
    pair.pcolormesh(*edges, mass, cmap="Blues", norm=PowerNorm(0.5))  # the root: thin parts are seen, too
    pair.set_facecolor(colormaps["Blues"](0.0))
    *edges, mass = _histogram(p[:, both])
    inside = mass.flatten()[mass.flatten().argsort()[::-1]]
    shares = {
        float(inside[(inside.cumsum() < share * inside.sum()).sum()]): f"{share:.0%}" for share in (0.99, 0.9, 0.5)
    }
    lines = pair.contour(*((edge[1:] + edge[:-1]) / 2 for edge in edges), mass, list(shares), colors=COLOURS[7])
    pair.clabel(lines, fmt=shares, fontsize=9)
    pair.set(
        xlabel=f"$z_{{{both[0]}}}$", ylabel=f"$z_{{{both[1]}}}$", title="q(z) blue; lines hold 50, 90, 99% of p(z)"
    )

    for z, side, colour, name in ((q, "low", COLOURS[1], "q(z)"), (p[: len(q)], "high", COLOURS[7], "p(z)")):
        for half in alone.violinplot(z[:, order].numpy(), side=side, widths=0.9, showextrema=False)["bodies"]:
            half.set(facecolor=colour, edgecolor="none", alpha=1)
        alone.fill([], [], color=colour, label=name)
    alone.set_xticks(range(1, len(order) + 1), labels=[f"$z_{{{j}}}$" for j in order.tolist()])
    more = "all" if len(order) == model.latent_dim else f"{len(order)} of the"
    alone.set(xlabel=f"{more} {model.latent_dim} dimensions, by {by}", ylabel="$z_j$", title="each dimension alone")
    alone.legend(loc="upper right", frameon=False, ncols=2)
    figure.suptitle(f"Aggregate posterior q(z) of {len(q):,} test images against the prior p(z)")
    return figure


def _histogram(z: Tensor, bins: int = 60) -> tuple[Any, Any, Any]:
    """Edges of both axes and counts of points (N, 2), (z_1, z_0), smoothed by moving averages over 3 x 3 bins."""
    ends = z.quantile(torch.tensor([0.0005, 0.9995]), dim=0).T  # leave out the farthest thousandth
    edges = [torch.linspace(low, high, bins + 1) for low, high in ends.tolist()]
    mass = torch.histogramdd(z, edges).hist.T
    for _ in range(3):
        mass = F.avg_pool2d(mass[None], 3, 1, 1)[0]
    return edges[0].numpy(), edges[1].numpy(), mass.numpy()


@torch.no_grad()
def ae_vs_vae(panels: Sequence[tuple[str, GenerativeModel, Tensor, Tensor]], steps: int = 10) -> "Figure":
    """What two-dimensional latent spaces make of the same codes, the quantiles of the last model's prior.

    A panel is a name, a model, images and their classes. Raises ValueError as `manifold` does.
    """
    from matplotlib.figure import Figure

    points = [_quantiles(model, steps) for _, model, _, _ in panels][-1]
    pictures = [grid(model.decode(points).mean, steps) for _, model, _, _ in panels]
    size, gap = pictures[0].shape[1], 90
    width, height = size * len(panels) + gap * (len(panels) - 1), 2 * size + gap
    figure = Figure(dpi=96, figsize=(width / 96, height / 96))
    for i, ((name, model, x, y), picture) in enumerate(zip(panels, pictures, strict=True)):
        left, share = i * (size + gap) / width, (size / width, size / height)
        above = figure.add_axes((left, (size + gap) / height, *share))
        _scatter(above, _encoded(model, x, y), y.cpu())
        above.plot(*points.T.cpu().numpy(), "k+", markersize=5)
        kind = "an autoencoder" if isinstance(model.infer(x[:1]), PointMass) else "a VAE"
        title = f"{name}\n{kind}: codes of {len(x):,} test images, and {len(points)} points +"
        above.set(xlabel="$z_0$", ylabel="$z_1$", title=title)
        below = figure.add_axes((left, 0, *share))
        below.imshow(picture.movedim(0, -1).numpy(), aspect="auto", interpolation="none")
        below.set_title(f"E[x | z] at these {len(points)} points")
        below.set_axis_off()
    _fit(figure)
    return figure
