"""The plots of a report, as SVG in data addresses. Lines and letters take the colours of the page, light or dark."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vaelab.reports.curves import Band

# These colours have a contrast of at least 3 with both backgrounds of the page
COLOURS = ("#0A7DB5", "#D1590A", "#0B8F6A", "#B9529B", "#8F7A1D", "#6F6FD0", "#C4485A", "#6B7F87")
DASHES = ((), (6, 3), (2, 2), (8, 2, 2, 2))  # if all colours are taken, the next kind of line; in line widths
LIGHT, DARK = ("#ffffff", "#1b1f24"), ("#14171b", "#e3e7ec")  # background and text of the page
INK = "#010203"  # stands for the text's colour in a figure, in which nothing else has it
THEME = f"svg {{color: {LIGHT[1]}}} @media (prefers-color-scheme: dark) {{svg {{color: {DARK[1]}}}}}"
STYLE: Any = {  # of matplotlib
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6},
    **{"font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "vaelab"},
    "text.parse_math": False,  # a name in a run's files is no formula
}
FEW = 20  # points of a curve that are marked


class Style(NamedTuple):
    """The line of a setting in all plots."""

    colour: str
    dash: tuple[int, ...]

    def line(self) -> dict[str, Any]:
        """The arguments of a line in matplotlib."""
        return {"color": self.colour, "dashes": self.dash, "linewidth": 1.5}


def style(index: int) -> Style:
    """The line of the setting with this number."""
    return Style(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])


def curves(bands: Mapping[str, Band], styles: Mapping[str, Style], name: str) -> str:
    """Mean curves by key, each with a band of one standard deviation and with its key at its end.

    The vertical axis fits the curves after the first tenth of the steps, because they often start far outside.
    """
    with rc_context(STYLE):
        figure, axes = _axes()
        for key, band in bands.items():
            axes.plot(
                band.steps, band.mean, marker="o" if len(band.steps) < FEW else "", markersize=3, **styles[key].line()
            )
            axes.fill_between(band.steps, *_edges(band), color=styles[key].colour, alpha=0.25, linewidth=0)
        axes.set(xlabel="step", ylabel=name, ylim=limits(list(bands.values())))
        axes.set_xlim(left=0)
        axes.locator_params("x", nbins=6)
        _label(axes, {key: band.mean[-1] for key, band in bands.items()}, styles, 1.01)
        return address(figure)


def limits(bands: Sequence[Band]) -> tuple[float, float]:
    """The range of the bands after the first tenth of the steps, and of the end of each, with a margin."""
    start = max(band.steps[-1] for band in bands) / 10
    pairs = [zip(band.steps, *_edges(band), strict=True) for band in bands]
    kept = [(low, high) for pair, band in zip(pairs, bands, strict=True) for step, low, high in pair
            if step >= start or step == band.steps[-1]]  # fmt: skip
    low, high = min(low for low, _ in kept), max(high for _, high in kept)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _edges(band: Band) -> tuple[list[float], list[float]]:
    """The lower and the upper edge of a band."""
    both = list(zip(band.mean, band.spread, strict=True))
    return [mean - spread for mean, spread in both], [mean + spread for mean, spread in both]


def rate_distortion(points: Mapping[str, Sequence[tuple[float, float]]], styles: Mapping[str, Style]) -> str:
    """The rates and the distortions of the runs of each key. On a grey line, distortion + rate = -ELBO is constant."""
    with rc_context(STYLE):
        figure, axes = _axes()
        for key, pairs in points.items():
            axes.plot(*zip(*pairs, strict=True), "o", color=styles[key].colour, markersize=5)
            place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "weight": "bold"}
            axes.annotate(key, max(pairs), (7, 0), color=styles[key].colour, **place)
        axes.margins(0.2)
        axes.autoscale_view()
        axes.autoscale(False)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for total in MaxNLocator(6).tick_values(left + bottom, right + top):
            axes.plot((left, right), (total - left, total - right), color="#888888", linewidth=0.6, zorder=0)
            if bottom < total - right < top:
                axes.annotate(f"ELBO {-total:g}", (right, total - right), (3, 0), textcoords="offset points",
                              va="center", fontsize=8, annotation_clip=False)  # fmt: skip
        axes.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
        return address(figure)


def rates(values: Mapping[str, Sequence[float]], styles: Mapping[str, Style]) -> str:
    """The rate of each dimension of the code by key, highest first."""
    with rc_context(STYLE):
        figure, axes = _axes()
        most = max(map(len, values.values()))
        for key, rate in values.items():
            axes.plot(
                range(1, len(rate) + 1), sorted(rate, reverse=True), marker="o", markersize=3, **styles[key].line()
            )
        axes.set(xlabel="dimensions of the code, by rate", ylabel="rate, nats", xlim=(1 - 0.1 * most, most + 0.5))
        axes.set_ylim(bottom=0)
        axes.set_xticks([tick for tick in MaxNLocator(integer=True).tick_values(1, most) if 1 <= tick <= most])
        _label(axes, {key: max(rate) for key, rate in values.items()}, styles, 0.02)
        return address(figure)


def distributions(checks: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Style], name: str) -> str:
    """The shares of samples at or below each value of a statistic by key, and those of test images, of the first key.

    The curve of the test images has the colour of the text.
    """
    with rc_context(STYLE):
        figure, axes = _axes()
        for key, check in checks.items():
            axes.plot(*_cumulative(check, "samples"), label=key, **styles[key].line())
        axes.plot(*_cumulative(next(iter(checks.values())), "tests"), label="test images", color=INK, linewidth=1)
        axes.set(xlabel=name, ylabel="share of images at or below", ylim=(0, 1.02))
        axes.legend(loc="lower right", frameon=False, fontsize=9, ncols=1 + len(checks) // 8)
        return address(figure)


def _cumulative(check: Mapping[str, Any], of: str) -> tuple[list[float], list[float]]:
    """The edges of the bins, and the shares below them."""
    return check["edges"], [0.0, *accumulate(check[of]["shares"])]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, heights: Mapping[str, float], styles: Mapping[str, Style], x: float) -> None:
    """Write each key at its height and at the share x of the width. Keys that would overlap are moved up."""
    bottom, top = axes.get_ylim()
    apart, place = min(0.08, 1 / len(heights)), -1.0
    for key, height in sorted(heights.items(), key=lambda item: item[1]):
        place = max((height - bottom) / (top - bottom), place + apart)
        where: dict[str, Any] = {"xycoords": "axes fraction", "va": "center", "annotation_clip": False}
        axes.annotate(key, (x, place), color=styles[key].colour, weight="bold", **where)


def address(figure: Figure) -> str:
    """A figure as SVG in a data address. Its text is text, in a font of the reader."""
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Creator": "VAE Lab", "Date": None})
    text = content.getvalue().replace(INK, "currentColor").replace("</style>", f"{THEME}</style>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
