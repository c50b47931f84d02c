"""The plots show what they are given, and their colours can be seen on a light and on a dark page."""

import base64
import itertools
import re
from xml.etree import ElementTree

import pytest

from vaelab.reports import plots
from vaelab.reports.curves import Band

SVG = "{http://www.w3.org/2000/svg}"
STYLES = {key: plots.style(i) for i, key in enumerate("ABC")}


def tree(source: str) -> ElementTree.Element:
    kind, _, content = source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(content))


def texts(source: str) -> list[str]:
    return ["".join(element.itertext()) for element in tree(source).iter(f"{SVG}text")]


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_seen_on_both_pages() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for back, text in (plots.LIGHT, plots.DARK):
        assert contrast(back, text) > 7
        assert all(contrast(back, colour) >= 3 for colour in plots.COLOURS)


def test_lines_differ() -> None:
    most = len(plots.COLOURS) * len(plots.DASHES)
    assert len({plots.style(i) for i in range(most)}) == most
    assert plots.style(most) == plots.style(0)


def test_curves_have_a_band_and_the_key_at_the_end() -> None:
    bands = {"A": Band([0, 50, 100], [900.0, 3.0, 1.0], [5.0, 0.5, 0.0]), "B": Band([100], [2.0], [0.0])}
    source = plots.curves(bands, STYLES, "loss $x")
    assert {"A", "B", "loss $x", "step"} <= {*texts(source)}
    names = [element.get("id", "") for element in tree(source).iter()]
    assert sum(name.startswith("FillBetween") for name in names) == 2
    assert source == plots.curves(bands, STYLES, "loss $x")


def test_the_axis_fits_the_curves_after_the_first_tenth_of_the_steps() -> None:
    bands = [Band([0, 10, 100], [900.0, 3.0, 1.0], [5.0, 1.0, 0.0]), Band([5, 50], [500.0, 2.0], [0.0, 0.0])]
    assert plots.limits(bands) == pytest.approx((1 - 0.15, 4 + 0.15))
    assert plots.limits([Band([7], [2.0], [0.0])]) == (1.0, 3.0)
    assert plots.limits([Band([50, 100], [1.0, 1.0], [0.0, 0.0]), Band([2, 4], [8.0, 5.0], [0.0, 0.0])]) == (0.8, 5.2)


def test_a_plot_follows_the_page_and_loads_nothing() -> None:
    source = plots.rate_distortion({"A": [(10.0, 90.0), (12.0, 90.0)], "B": [(20.0, 70.0)]}, STYLES)
    text = base64.b64decode(source.partition(",")[2]).decode()
    assert "prefers-color-scheme: dark" in text
    assert "fill: currentColor" in text
    assert plots.INK not in text
    links = [value for element in tree(source).iter() for name, value in element.attrib.items() if "href" in name]
    assert links
    assert all(link.startswith("#") for link in links)


def test_the_scatter_names_groups_and_lines_of_equal_elbo() -> None:
    points = {"A": [(10.0, 90.0), (12.0, 90.0)], "B": [(20.0, 70.0)]}
    found = texts(plots.rate_distortion(points, STYLES))
    assert {"A", "B"} <= {*found}
    elbos = [float(text.removeprefix("ELBO ")) for text in found if text.startswith("ELBO")]
    assert len(elbos) >= 3
    assert all(-102 - 30 < elbo < -90 + 30 for elbo in elbos)


def test_rates_are_sorted() -> None:
    assert plots.rates({"A": [0.0, 3.0, 1.0]}, STYLES) == plots.rates({"A": [3.0, 1.0, 0.0]}, STYLES)
    assert plots.rates({"A": [0.0, 3.0, 1.0]}, STYLES) != plots.rates({"A": [0.0, 3.0, 2.0]}, STYLES)
    assert plots.rates({"A": [0.0]}, STYLES)


def test_keys_at_equal_heights_do_not_overlap() -> None:
    bands = {key: Band([0, 1], [5.0, 1.0], [0.0, 0.0]) for key in "ABC"}
    words = [
        element for element in tree(plots.curves(bands, STYLES, "loss")).iter(f"{SVG}text") if element.text in bands
    ]
    heights = sorted(float(re.findall(r"[\d.]+", word.attrib["transform"])[-1]) for word in words)
    assert len(heights) == 3
    assert all(below - above > 10 for above, below in itertools.pairwise(heights))  # points, the size of the letters


def test_distributions_have_the_cumulative_shares() -> None:
    parts = {"samples": {"shares": [0.25, 0.75]}, "tests": {"shares": [0.5, 0.5]}}
    checks = {key: {"edges": [0.0, 1.0, 3.0], **parts} for key in "AB"}
    source = plots.distributions(checks, STYLES, "ink")
    assert {"A", "B", "test images", "ink"} <= {*texts(source)}
    lines = [element.get("d") for element in tree(source).iter(f"{SVG}path") if element.get("clip-path")]
    assert lines[0] == lines[1] != lines[2]
    for line, share in zip(lines, (0.25, 0.25, 0.5), strict=True):
        heights = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", line)]
        assert (heights[0] - heights[1]) / (heights[0] - heights[2]) == pytest.approx(share, abs=1e-4)
