"""The drawings of the tutorial. Each function takes `say`, which translates a label, and returns a Figure.

One unit of a drawing is one inch, so that the sizes of boxes and of letters fit together.
"""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch, Polygon

from vaelab.pictures import COLOURS

Say = Callable[..., str]
INDIGO, GREEN, SAND, ROSE = (COLOURS[i] for i in (0, 3, 5, 6))
GREY = "#777777"


def paper(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes without a frame, in inches."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def text(axes: Axes, x: float, y: float, words: str, **style: Any) -> None:
    axes.text(x, y, words, **{"ha": "center", "va": "center", "fontsize": 10} | style)


def box(axes: Axes, x: float, y: float, words: str, colour: str, width: float = 1.0, height: float = 0.5) -> None:
    """A box with rounded corners around (x, y)."""
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, alpha=0.18, linewidth=0))
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, fill=False, edgecolor=colour))
    text(axes, x, y, words)


def funnel(axes: Axes, x: float, y: float, words: str, colour: str, opens: bool = False) -> None:
    """An encoder, which narrows to the right, or a decoder, which opens."""
    left, right = (0.3, 0.7) if opens else (0.7, 0.3)
    corners = [(x - 0.6, y - left), (x - 0.6, y + left), (x + 0.6, y + right), (x + 0.6, y - right)]
    axes.add_patch(Polygon(corners, facecolor=colour, alpha=0.18))
    axes.add_patch(Polygon(corners, fill=False, edgecolor=colour))
    text(axes, x, y, words)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "black", **style: Any
) -> None:
    properties = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0} | style
    axes.annotate("", end, start, arrowprops=properties)


def bottleneck(say: Say) -> Figure:
    """An encoder, a code and a decoder as layers of units, and what is compared."""
    figure, axes = paper(10, 3.2)
    layers = [(2.0, 9), (3.5, 5), (5.0, 2), (6.5, 5), (8.0, 9)]
    heights = [1.8 + 0.26 * (np.arange(count) - (count - 1) / 2) for _, count in layers]
    for (x, _), (following, _), low, high in zip(layers, layers[1:], heights, heights[1:], strict=False):
        for start in low:
            axes.plot([[x] * len(high), [following] * len(high)], [[start] * len(high), high], color="#cccccc", lw=0.6)
    for (x, count), height, colour in zip(layers, heights, (GREY, GREEN, INDIGO, ROSE, GREY), strict=True):
        axes.plot([x] * count, height, "o", color=colour, markersize=11)
    text(axes, 0.85, 1.8, say("image x\n{} numbers", 784))
    text(axes, 9.15, 1.8, say("reconstruction x̂\n{} numbers", 784))
    text(axes, 5.0, 2.55, say("code z: the bottleneck"), color=INDIGO)
    text(axes, 3.2, 3.0, say("encoder  z = e(x)"), color=GREEN)
    text(axes, 6.8, 3.0, say("decoder  x̂ = d(z)"), color=ROSE)
    axes.plot([2.0, 2.0, 8.0, 8.0], [0.6, 0.4, 0.4, 0.6], color="black", linewidth=1)
    text(axes, 5.0, 0.2, say("the squared error ‖x − x̂‖² compares both ends"))
    return figure


def selection_and_extraction(say: Say) -> Figure:
    """Two ways from six old features to three new ones."""
    figure, axes = paper(10, 2.5)
    for left, title, kept in ((0.6, say("selection: keep some of the old features"), {1: 1, 3: 3, 4: 4}),
                              (5.6, say("extraction: compute new ones from the old"), None)):  # fmt: skip
        old = [left + 0.75 * i for i in range(6)]
        new = [old[i] for i in kept] if kept else [left + 0.75 * (i + 1.5) for i in range(3)]
        for i, x in enumerate(old):
            used = kept is None or i in kept
            box(axes, x, 1.75, f"x{'₁₂₃₄₅₆'[i]}", GREEN if used else "#bbbbbb", 0.5, 0.4)
        for i, x in enumerate(new):
            name = f"x{'₁₂₃₄₅₆'[[*kept][i]]}" if kept else f"z{'₁₂₃'[i]}"
            box(axes, x, 0.45, name, INDIGO, 0.5, 0.4)
            for start in [x] if kept else old:
                arrow(axes, (start, 1.53), (x, 0.68), GREY, linewidth=0.8, mutation_scale=8)
        text(axes, left + 1.875, 2.3, title)
    return figure


def lossless_and_lossy(say: Say) -> Figure:
    """Points on a line come back from one number as they were; points around a line do not."""
    figure, rows = plt.subplots(2, 3, figsize=(9.5, 4.2))
    generator = np.random.default_rng(0)
    along = np.sort(generator.uniform(-2, 2, 12))
    direction = np.array([np.cos(0.5), np.sin(0.5)])
    across = np.array([-direction[1], direction[0]])
    for row, spread, verdict in (
        (rows[0], 0.0, say("lossless: d(e(x)) = x")),
        (rows[1], 0.5, say("lossy: d(e(x)) ≠ x")),
    ):
        x = along[:, None] * direction + spread * generator.standard_normal((12, 1)) * across
        z = x @ direction
        back = z[:, None] * direction
        colours = plt.get_cmap("viridis")((along + 2) / 4)
        row[0].scatter(*x.T, color=colours, s=30)
        row[1].scatter(z, np.zeros(12), color=colours, s=30)
        row[1].axhline(0, color=GREY, linewidth=0.8, zorder=0)
        row[2].plot(*np.stack([x, back]).transpose(2, 0, 1), color=GREY, linewidth=0.8, zorder=0)
        row[2].scatter(*x.T, facecolors="none", edgecolors=GREY, s=30)
        row[2].scatter(*back.T, color=colours, s=30)
        row[0].set_ylabel(verdict)
        for axes in row:
            axes.set(xlim=(-2.6, 2.6), ylim=(-1.8, 1.8), xticks=[], yticks=[])
    titles = (say("x: two numbers"), say("encoded z = e(x): one number"), say("decoded d(e(x)); hollow: x"))
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title)
    return figure


def ae_and_vae(say: Say) -> Figure:
    """An autoencoder encodes an image as a point, a VAE as a distribution."""
    figure, axes = paper(10, 4.2)
    for y, name, loss in ((3.2, say("autoencoder"), "‖x − x̂‖²"),
                          (1.1, say("variational\nautoencoder"), "‖x − x̂‖² + KL")):  # fmt: skip
        text(axes, 0.65, y, name, fontsize=11)
        box(axes, 1.75, y, "x", GREY, 0.5)
        funnel(axes, 3.0, y, say("encoder"), GREEN)
        funnel(axes, 7.0, y, say("decoder"), ROSE, opens=True)
        box(axes, 8.2, y, "x̂", GREY, 0.5)
        text(axes, 9.3, y, say("loss:") + f"\n{loss}")
        arrow(axes, (2.0, y), (2.4, y))
        arrow(axes, (7.6, y), (7.95, y))
    axes.plot(5.0, 3.2, "o", color=INDIGO, markersize=8)
    text(axes, 5.0, 3.55, say("z: a point"), color=INDIGO)
    arrow(axes, (3.6, 3.2), (4.87, 3.2))
    arrow(axes, (5.13, 3.2), (6.4, 3.2))
    for scale, alpha in ((1.0, 0.12), (0.66, 0.2), (0.33, 0.3)):
        axes.add_patch(Ellipse((5.0, 1.1), 1.3 * scale, 0.9 * scale, color=INDIGO, alpha=alpha, linewidth=0))
    axes.plot(5.25, 1.25, "o", color="black", markersize=6)
    text(axes, 5.0, 1.8, say("q(z | x): a distribution"), color=INDIGO)
    text(axes, 3.95, 1.35, "μ, σ")
    text(axes, 5.0, 0.35, say("z: drawn from it"))
    arrow(axes, (5.12, 0.5), (5.24, 1.15), GREY, linewidth=0.8, mutation_scale=8)
    arrow(axes, (3.6, 1.1), (4.33, 1.1))
    arrow(axes, (5.32, 1.23), (6.4, 1.12))
    return figure


def reparameterisation(say: Say) -> Figure:
    """What a gradient can pass: nothing that was drawn, but everything that was computed."""
    figure, axes = paper(10, 4.4)
    for left, title in (
        (0.1, say("z is drawn inside the network")),
        (5.1, say("z is computed; only the noise is drawn")),
    ):
        text(axes, left + 2.4, 4.15, title, fontsize=11)
        inside = left + 1.55 if left > 1 else left
        corner = (inside, 0.55) if left > 1 else (left, 0.55)
        frame = {"boxstyle": "round,pad=0,rounding_size=0.1", "fill": False, "edgecolor": GREY, "linestyle": "--"}
        axes.add_patch(FancyBboxPatch(corner, left + 4.75 - inside, 3.25, **frame))
        centre = left + 3.1
        box(axes, centre, 0.95, say("encoder"), GREEN, 1.7, 0.4)
        box(axes, centre - 0.5, 1.75, "μ", GREEN, 0.6, 0.4)
        box(axes, centre + 0.5, 1.75, "σ", GREEN, 0.6, 0.4)
        box(axes, centre, 3.45, say("decoder, loss"), ROSE, 1.7, 0.4)
        for x in (centre - 0.5, centre + 0.5):
            arrow(axes, (x - 0.08, 1.15), (x - 0.08, 1.55))
            arrow(axes, (x - 0.08, 1.95), (x - 0.08, 2.4))
        arrow(axes, (centre - 0.08, 2.8), (centre - 0.08, 3.25))
        arrow(axes, (centre + 0.08, 3.25), (centre + 0.08, 2.8), ROSE)
        words = "z = μ + σ ε" if left > 1 else "z ~ N(μ, σ²)"
        box(axes, centre, 2.6, words, INDIGO if left > 1 else SAND, 1.7, 0.4)
        if left > 1:
            for x in (centre - 0.5, centre + 0.5):
                arrow(axes, (x + 0.08, 2.4), (x + 0.08, 1.95), ROSE)
                arrow(axes, (x + 0.08, 1.55), (x + 0.08, 1.15), ROSE)
            box(axes, left + 0.65, 2.6, "ε ~ N(0, 1)", SAND, 1.1, 0.4)
            arrow(axes, (left + 1.2, 2.6), (centre - 0.85, 2.6))
            text(axes, left + 0.65, 2.05, say("outside: one\nmore input"), fontsize=9)
        else:
            text(axes, centre + 0.09, 2.18, "✕", color=ROSE, fontsize=14)
            text(axes, left + 1.0, 2.6, say("a draw has\nno derivative"), fontsize=9)
    text(
        axes, 5.0, 0.25, say("black: forwards; red: the gradient, backwards; dashed: what backpropagation has to pass")
    )
    return figure
