"""The picture of posterior predictive checks: histograms of statistics, and maps of pixels."""

import textwrap
from typing import TYPE_CHECKING, Any

from vaelab.evaluation.predictive import MAPS, STATISTICS, Predictive
from vaelab.pictures.latent import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF = {"samples": COLOURS[6], "tests": COLOURS[0]}  # the colours of both


def predictive_checks(found: Predictive) -> "Figure":
    """A histogram of each statistic, and mean and variance of each pixel side by side. Each title has D and p."""
    from matplotlib.figure import Figure

    record = found.record()
    names = {"samples": "samples", "tests": "test images"}
    figure = Figure(figsize=(11, 6), layout="constrained", dpi=100)
    halves: Any = figure.subfigures(1, 2, width_ratios=[3, 2])
    left, right = halves
    for axes, name in zip(left.subplots(2, 3).flat, STATISTICS, strict=True):
        edges = record[name]["edges"]
        for of, colour in OF.items():
            axes.stairs(record[name][of]["shares"], edges, color=colour, linewidth=1.5, label=names[of])
            axes.stairs(record[name][of]["shares"], edges, fill=True, color=colour, alpha=0.2)
        title = f"{name.replace('_', ' ')}\n{_difference(record[name])}"
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(textwrap.fill(STATISTICS[name], 30), fontsize=8)
        axes.set_yticks([])
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    handles, labels = axes.get_legend_handles_labels()
    left.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    for row, (axes, name) in enumerate(zip(right.subplots(2, 2), MAPS, strict=True)):
        pair, most = found.maps[row], found.maps[row].max().item()
        for one, image, of in zip(axes, pair, names.values(), strict=True):
            shown = one.imshow(image.numpy(), cmap="gray" if row == 0 else "magma", vmin=0, vmax=most)
            one.set(xticks=[], yticks=[])
            one.set_title(f"{name.replace('_map', '')} of {of}", fontsize=9)
        axes[0].set_xlabel(_difference(record[name]), fontsize=9)
        right.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=8)
    figure.suptitle(f"{len(found.samples['ink']):,} samples against {len(found.tests['ink']):,} test images, "
                    f"all checks together: p = {found.p_value:.3g}", fontsize=11)  # fmt: skip
    return figure


def _difference(check: dict[str, float]) -> str:
    return f"D = {check['distance']:.3f}, p = {check['p_value']:.3g}"
