"""Statistics are those counted by hand, p-values of real images are uniform, and each check finds its change."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from vaelab.evaluation.predictive import MAPS, STATISTICS, image_statistics, largest, predictive


def drawn(*rows: str) -> Tensor:
    """An image (1, H, W) whose pixels are 1 at each #."""
    return torch.tensor([[float(pixel == "#") for pixel in row] for row in rows])[None]


def values(image: Tensor) -> dict[str, float]:
    return {name: each.item() for name, each in image_statistics(image[None]).items()}


def test_statistics_by_hand() -> None:
    bar = drawn("......", ".####.", ".####.", "......", "......")
    assert values(bar) == pytest.approx(
        {"ink": 8, "stroke_width": 16 / 12, "components": 1, "holes": 0, "aspect_ratio": 2, "centre": 0.5}
    )
    eight = drawn("####", "#..#", "####", "#..#", "####")
    assert values(eight) == pytest.approx(
        {"ink": 16, "stroke_width": 32 / 30, "components": 1, "holes": 2, "aspect_ratio": 0.8, "centre": 0}
    )
    corners = drawn(".#..", "#.#.", ".#..", "..#.")  # ink is connected over corners, and paper is not
    assert values(corners)["components"] == 1
    assert values(corners)["holes"] == 1
    cup = drawn("#..#", "#..#", "####")  # open at the border of the image
    assert values(cup)["holes"] == 0
    assert values(drawn("#.#", "...", "###"))["components"] == 3
    assert values(torch.zeros(1, 4, 5)) == dict.fromkeys(STATISTICS, 0)


def test_grey_levels_and_colours() -> None:
    grey = torch.tensor([[[0.6, 0.4, 0.0, 0.2]]])
    assert values(grey) == pytest.approx({"ink": 1.2, "stroke_width": 0.5, "components": 1, "holes": 0,
                                          "aspect_ratio": 1, "centre": abs(0.4 + 0.6 - 1.5 * 1.2) / 1.2})  # fmt: skip
    colour = torch.stack([3 * grey[0] / 2, grey[0] / 2, grey[0]])
    assert values(colour) == pytest.approx(values(grey))


def test_pieces_do_not_extend_over_images() -> None:
    images = torch.ones(3, 1, 4, 4)
    images[1, 0, 1:3, 1:3] = 0
    found = image_statistics(images)
    assert found["components"].tolist() == [1, 1, 1]
    assert found["holes"].tolist() == [0, 1, 0]


def test_distances_and_p_values_are_those_of_an_exact_test(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:90].float() / 255
    samples, tests = images[:40] * 0.97, images[40:]
    found = predictive(samples, tests, tests, splits=1999)
    for name in STATISTICS:
        exact = stats.ks_2samp(found.samples[name], found.tests[name], method="exact")
        assert found.distances[name] == pytest.approx(exact.statistic, abs=1e-12)
        if name in ("ink", "centre"):  # scipy takes no ties into account
            assert found.p_values[name] == pytest.approx(exact.pvalue, abs=4 * math.sqrt(0.25 / 2000))
    assert found.distances["mean_map"] == pytest.approx((samples.mean(0) - tests.mean(0)).norm().item(), rel=1e-4)
    spread = samples.var(0, correction=0) - tests.var(0, correction=0)
    assert found.distances["variance_map"] == pytest.approx(spread.norm().item(), rel=1e-4)
    torch.testing.assert_close(found.maps[0, 0], samples.mean((0, 1)))
    torch.testing.assert_close(found.maps[1, 1], tests.var((0, 1), correction=0))


def test_p_values_by_hand() -> None:
    """Ink 1, 2, 3 against 4, 5, 6: of the 20 splits, two have D = 1."""
    ink = torch.arange(1, 7).view(6, 1, 1, 1) * torch.ones(1, 1, 2, 2) / 10
    found = predictive(ink[:3], ink[3:], ink, splits=3999)
    assert found.distances["ink"] == 1
    assert found.p_values["ink"] == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 4000))
    assert found.p_values["holes"] == 1


def test_p_values_of_real_images_are_uniform(digits: tuple[Tensor, Tensor]) -> None:
    pairs = (digits[0][torch.randperm(5000)].float() / 255).view(50, 2, 50, 1, 28, 28)
    found = [predictive(one, other, other, splits=99, seed=i) for i, (one, other) in enumerate(pairs)]
    together = [each.p_value for each in found]
    single = [each.p_values[name] for each in found for name in STATISTICS if name not in ("components", "holes")]
    for p_values in (together, [each.p_values["mean_map"] for each in found]):
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert sum(p <= 0.1 for p in single) / len(single) == pytest.approx(0.1, abs=0.06)
    assert sum(p <= 0.5 for p in single) / len(single) == pytest.approx(0.5, abs=0.12)


CHANGES = {
    "ink": lambda x: 0.9 * x,
    "stroke_width": lambda x: F.max_pool2d(x, 3, 1, 1),
    "components": lambda x: torch.cat([x[..., :-2, :], torch.eye(28)[:2].expand(*x.shape[:2], 2, 28)], 2),
    "holes": lambda x: torch.where(x.cumsum(2).gt(1) & x.flip(2).cumsum(2).flip(2).gt(1), 1.0, x),
    "aspect_ratio": lambda x: F.interpolate(F.pad(x, (0, 0, 14, 14)), (28, 28)),
    "centre": lambda x: x.roll(2, 3),
    "mean_map": lambda x: x.flip(3),
    "variance_map": lambda x: x.mean(0).expand_as(x),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_check_finds_its_change(name: str, digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:600].float() / 255
    found = predictive(CHANGES[name](images[:300]), images[300:], images, splits=199)
    assert found.p_values[name] == pytest.approx(1 / 200)
    assert found.p_value < 0.05
    untouched = {"ink": ("components", "holes"), "centre": ("ink", "stroke_width", "holes", "aspect_ratio"),
                 "mean_map": ("ink", "stroke_width", "components", "holes", "aspect_ratio")}  # fmt: skip
    assert all(found.p_values[other] > 0.02 for other in untouched.get(name, ()))


def test_the_record_is_plain_data(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:200].float() / 255
    real = digits[0][200:400].float() / 255
    found = predictive(images[:100], images[100:], real, splits=19)
    record = found.record()
    assert record.keys() == {*STATISTICS, *MAPS}
    holes, ink = record["holes"], record["ink"]
    assert holes["edges"] == [0.5 * k for k in range(-1, 2 * len(holes["edges"]) - 1, 2)]
    zero = (found.samples["holes"] == 0).double().mean().item()
    assert holes["samples"]["shares"][0] == pytest.approx(zero)
    assert ink["tests"]["mean"] == pytest.approx(images[100:].sum((1, 2, 3)).mean().item(), rel=1e-5)
    for name in STATISTICS:
        for of in ("samples", "tests"):
            assert sum(record[name][of]["shares"]) == pytest.approx(1)
            assert len(record[name][of]["shares"]) == len(record[name]["edges"]) - 1
    floor = predictive(real, images[100:], images, splits=0).distances
    assert {name: check["floor"] for name, check in record.items()} == floor
    assert largest(found.distances) == max(record[name]["distance"] for name in STATISTICS)
