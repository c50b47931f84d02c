"""Pictures of the latent space: functions of a model and data that return a matplotlib Figure.

Images x are uint8 or in [0, 1]. As uint8, a large data set takes a quarter of the memory: only batches become floats.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from vaelab.distributions import Delta
from vaelab.errors import PartsError, UserError
from vaelab.evaluation import densities
from vaelab.evaluation.batches import batches, floats
from vaelab.evaluation.latent import rate_per_dim
from vaelab.interfaces import GenerativeModel, labels, name_of_image
from vaelab.noise import fixed_noise
from vaelab.pictures.grids import fit_to_content, framed, grid, in_rows, quantiles
from vaelab.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind readers can tell these ten colours apart with the digits beside them (Paul Tol, muted).
COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB",
)  # fmt: skip


@torch.no_grad()
def rates(model: GenerativeModel, x: Tensor, y: Tensor | None) -> Tensor:
    """KL(q(z_j | x) || p(z_j)) of each dimension j in nats, mean over images (B, C, H, W): (D,).

    Raises UserError unless q and p are factorised Gaussians.
    """
    try:
        posteriors = [model.infer(*part) for part in batches(x, labels(model, y))]
        return rate_per_dim(posteriors, model.prior(model.infer))
    except PartsError as error:
        raise UserError(f"single dimensions of this latent space have no rate: {error}") from error


@torch.no_grad()
def traversal(
    model: GenerativeModel, x: Tensor, y: Tensor | None, name: str = "a test image", steps: int = 13
) -> "Figure":
    """E[x | z] as one dimension of z moves and the others stay at the code of the first image of x (B, C, H, W).

    `name` is that of the image in the title. The dimensions are sorted by rate, highest first. Raises UserError as
    `rates` does.
    """
    rate = rates(model, x, y)
    order, p = rate.argsort(descending=True), model.prior(model.infer)
    units = torch.linspace(-3, 3, steps, device=x.device)
    first, label = next(batches(x, labels(model, y), 1))
    code = model.encode(first, label)
    z = code.repeat(len(order), steps, 1)  # (D, steps, D)
    z[range(len(order)), :, order] = p.mean[order, None] + p.stddev[order, None] * units
    figure = framed(
        grid(in_rows(model, z, label).flatten(0, 1), steps),
        f"{name_of_image(model)} around the code of {name}, one dimension at a time\n"
        f"(the rates add up to {rate.sum():.2f} nats)",
        [f"$z_{{{j}}}$   {rate[j]:.2f}" for j in order.tolist()], [f"{unit:+.1f}" for unit in units.tolist()],
        xlabel="$z_j$ in standard deviations of its prior; triangle: that of the image",
        ylabel="$z_j$, rate in nats",
    )  # fmt: skip
    own = ((code[0] - p.mean) / p.stddev)[order].clamp(-3, 3).cpu()
    places = ((own + 3) / 6 * (steps - 1) + 0.5).numpy(), [row + 0.1 for row in range(len(order))]
    figure.axes[0].plot(*places, "v", color=COLOURS[5], markersize=9, markeredgecolor="black")
    return figure


@torch.no_grad()
def codes(
    model: GenerativeModel, x: Tensor, y: Tensor | None, projection: str | None = None, seed: int = 0
) -> "Figure":
    """Codes (posterior means) of images x (B, C, H, W) in two dimensions, coloured by class y (B,), if it is given.

    `projection` is "pca" or "tsne". It is "pca" by default if there are more than two dimensions. `seed` has an effect
    on "tsne" only. Raises UserError for a latent space of one dimension.
    """
    from matplotlib.figure import Figure

    z = _encoded(model, x, y)
    names, of = ["$z_0$ (posterior mean)", "$z_1$ (posterior mean)"], ""
    if projection or model.latent_dim != 2:
        z, names = _project(z, projection or "pca", seed)
        of = f" of {model.latent_dim} dimensions"
    figure = Figure(figsize=(6.5, 6), layout="constrained", dpi=110)
    axes = figure.subplots()
    _scatter(axes, z, y)
    axes.set(xlabel=names[0], ylabel=names[1], title=f"Codes{of} of {len(z):,} images")
    if y is not None:
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, frameon=False)
    return figure


def _encoded(model: GenerativeModel, x: Tensor, y: Tensor | None) -> Tensor:
    """The codes of images, (N, D), on the CPU."""
    return torch.cat([model.encode(*part).float().cpu() for part in batches(x, labels(model, y))])


def _project(z: Tensor, projection: str, seed: int) -> tuple[Tensor, list[str]]:
    """Codes (N, D) -> (N, 2), and the names of the two axes. Raises UserError if D is 1."""
    if z.shape[1] < 2:
        raise UserError("codes are drawn in two dimensions, and this latent space has only one")
    if projection == "tsne":
        from sklearn.manifold import TSNE

        z = torch.from_numpy(TSNE(random_state=seed, perplexity=min(30, len(z) / 4)).fit_transform(z.numpy()))
        return z, [f"t-SNE axis {i + 1} (no unit: only neighbourhoods have a meaning)" for i in range(2)]
    z = z - z.mean(0)
    _, lengths, directions = torch.linalg.svd(z, full_matrices=False)
    shares = lengths.square() / lengths.square().sum()
    return z @ directions[:2].T, [f"principal component {i + 1} ({shares[i]:.0%} of the variance)" for i in range(2)]


def _scatter(axes: "Axes", z: Tensor, y: Tensor | None) -> None:
    """Points (N, 2) in the colours of their classes (N,), with the name of each class at the median of its points.

    Without classes, all points have one colour.
    """
    size = max(5, min(30, 15_000 / len(z)))
    if y is None:
        axes.scatter(z[:, 0], z[:, 1], s=size, linewidths=0, alpha=0.6, color=COLOURS[0])
        axes.set_aspect("equal", adjustable="datalim")
        return
    y = y.cpu()
    for label in y.unique().tolist():
        points, colour = z[y == label], COLOURS[label % len(COLOURS)]
        axes.scatter(points[:, 0], points[:, 1], s=size, linewidths=0, alpha=0.6, color=colour, label=str(label))
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        centre = tuple(points.median(0).values.tolist())
        axes.annotate(str(label), centre, ha="center", va="center", weight="bold", bbox=box)
    axes.set_aspect("equal", adjustable="datalim")


@torch.no_grad()
def prior(model: GenerativeModel, x: Tensor, y: Tensor | None, seed: int = 0, most: int = 20) -> "Figure":
    """The aggregate posterior, with one draw z ~ q(z | x) per image, against the prior.

    The left panel shows the first two dimensions, the right panel shows up to `most` dimensions, each alone. They are
    sorted by rate, or by variance if the rate is not defined. Raises UserError for a latent space of one dimension, and
    for codes that are not vectors of R^D.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    if model.latent_dim < 2:
        raise UserError("the prior is drawn over two dimensions of the latent space, and this one has only one")
    q = densities.codes(model, batches(x, y), seed)
    with fixed_noise(x.device, seed):
        density = model.prior(model.infer)
        p = torch.cat([density.sample(Size((1000,))) for _ in range(100)])  # a mixture samples all components
    try:
        order, by = rates(model, x, y).argsort(descending=True)[:most], "rate"
    except UserError:
        order, by = q.var(0).argsort(descending=True)[:most], "variance"
    q, p, order = q.cpu(), p.cpu(), order.cpu()
    figure = Figure(figsize=(10 + 0.2 * len(order), 5.8), layout="constrained", dpi=100)
    pair, alone = figure.subplots(1, 2, width_ratios=[6, 3.5 + 0.2 * len(order)])

    both = sorted(order[:2].tolist())
    *edges, mass = _histogram(q[:, both])
    pair.pcolormesh(*edges, mass, cmap="Blues", norm=PowerNorm(0.5))  # the square root makes low densities visible
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
    """Edges of both axes, and counts (z_1, z_0) of points (N, 2), smoothed three times over 3 x 3 bins."""
    ends = z.quantile(torch.tensor([0.0005, 0.9995]), dim=0).T  # leaves out one thousandth of the points on each axis
    edges = [torch.linspace(low, high, bins + 1) for low, high in ends.tolist()]
    mass = torch.histogramdd(z, edges).hist.T
    for _ in range(3):
        mass = F.avg_pool2d(mass[None], 3, 1, 1)[0]
    return edges[0].numpy(), edges[1].numpy(), mass.numpy()


@torch.no_grad()
def ae_vs_vae(panels: Sequence[tuple[str, GenerativeModel, Tensor, Tensor | None]], steps: int = 10) -> "Figure":
    """Several models decode the same two-dimensional codes, the quantiles of the last model's prior.

    A panel is a name, a model, its images and their classes or None. Raises UserError as `manifold` does.
    """
    from matplotlib.figure import Figure

    points = [quantiles(model, steps) for _, model, _, _ in panels][-1]
    z = points.unflatten(0, (steps, steps))
    pictures = [grid(in_rows(model, z).flatten(0, 1), steps) for _, model, _, _ in panels]
    size, gap = pictures[0].shape[1], 90
    width, height = size * len(panels) + gap * (len(panels) - 1), 2 * size + gap
    figure = Figure(dpi=96, figsize=(width / 96, height / 96))
    for i, ((name, model, x, y), picture) in enumerate(zip(panels, pictures, strict=True)):
        left, share = i * (size + gap) / width, (size / width, size / height)
        above = figure.add_axes((left, (size + gap) / height, *share))
        _scatter(above, _encoded(model, x, y), y)
        above.plot(*points.T.cpu().numpy(), "k+", markersize=5)
        kind = "an autoencoder" if isinstance(model.infer(floats(x[:1])), Delta) else "a VAE"
        title = f"{plain(name)}\n{kind}: codes of {len(x):,} test images, and {len(points)} points +"
        above.set(xlabel="$z_0$", ylabel="$z_1$")
        above.set_title(title, parse_math=False)  # the name of a folder can have dollar signs
        below = figure.add_axes((left, 0, *share))
        below.imshow(picture.movedim(0, -1).numpy(), aspect="auto", interpolation="none")
        below.set_title(f"{name_of_image(model)} at these {len(points)} points")
        below.set_axis_off()
    fit_to_content(figure)
    return figure
