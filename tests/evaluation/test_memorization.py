"""Nearest training images equal those of a brute-force search, and generators that copy are told from real images."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from vaelab.evaluation import memorization as module
from vaelab.evaluation.memorization import authenticity, cells, copying, data_copying, memorization, nearest, z_score


@pytest.mark.parametrize("chunk", [7, 5000])
def test_nearest_is_that_of_all_distances(
    digits: tuple[Tensor, Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    images, queries = digits[0][:300], torch.rand(20, 1, 28, 28)
    expected, index = torch.cdist(queries.flatten(1).double(), images.flatten(1).double() / 255).min(1)
    distances, found = nearest(queries, images)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(found, index)


def test_levels_of_a_byte_are_grey_levels(digits: tuple[Tensor, Tensor]) -> None:
    images, queries = digits[0][:100], digits[0][100:120]
    expected = nearest(queries.float() / 255, images.float() / 255)
    for pair in ((queries, images), (queries.float() / 255, images), (queries, images.float() / 255)):
        distances, index = nearest(*pair)
        torch.testing.assert_close(distances, expected[0])
        assert torch.equal(index, expected[1])


def test_planted_copies_are_found_at_distance_zero(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:1000]
    planted = torch.tensor([3, 999, 0, 512])
    distances, index = nearest(images[planted], images)
    assert torch.equal(index, planted)
    assert distances.tolist() == [0, 0, 0, 0]


def test_copies_show_in_the_share(digits: tuple[Tensor, Tensor]) -> None:
    images, tests = digits[0][:1000], digits[0][1000:1400]
    honest, copies = digits[0][1400:1800], images[torch.arange(400)]
    test_distances = nearest(tests, images)[0]
    found = memorization(nearest(honest, images)[0], test_distances)
    assert found["nearer_share"] == pytest.approx(0.05, abs=0.03)
    assert found["sample_distance"] == pytest.approx(found["test_distance"], rel=0.05)
    half = torch.cat([honest[:200], copies[:200]])
    assert memorization(nearest(half, images)[0], test_distances)["nearer_share"] == pytest.approx(0.525, abs=0.02)


def test_summary_by_hand() -> None:
    tests = torch.arange(101.0)  # its 5 % quantile is 5
    assert memorization(torch.tensor([30.0, 0.0, 4.9, 5.0, 40.0]), tests) == {
        "sample_distance": 5.0,
        "test_distance": 50.0,
        "nearer_share": pytest.approx(0.4),
    }


@pytest.mark.parametrize("chunk", [7, 5000])
def test_an_image_that_does_not_count_is_left_out(
    digits: tuple[Tensor, Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    images = digits[0][:100]
    all_distances = torch.cdist(images.flatten(1).double(), images.flatten(1).double()) / 255
    expected, index = all_distances.fill_diagonal_(torch.inf).min(1)
    distances, found = nearest(images, images, but=torch.arange(100))
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(found, index)


def test_the_z_score_by_hand_and_against_scipy() -> None:
    """1, 2 against 3, 4, 5: U = 0, its mean is 3 and its variance 2 * 3 * 6 / 12 = 3."""
    assert z_score(torch.tensor([1.0, 2]), torch.tensor([3.0, 4, 5])) == pytest.approx(-3 / math.sqrt(3))
    assert z_score(torch.tensor([3.0, 4, 5]), torch.tensor([1.0, 2])) == pytest.approx(3 / math.sqrt(3))
    assert z_score(torch.ones(5), torch.ones(7)) == 0
    for one, other in (
        (torch.rand(40).double(), torch.rand(60).double() - 0.1),
        (torch.randint(5, (40,)), torch.randint(6, (60,))),
    ):
        z = z_score(one, other)
        expected = stats.mannwhitneyu(one, other, use_continuity=False, method="asymptotic")
        assert 2 * stats.norm.sf(abs(z)) == pytest.approx(expected.pvalue, rel=1e-9)
        assert (z < 0) == (expected.statistic < 40 * 60 / 2)


def test_authenticity_by_hand() -> None:
    train = torch.tensor([[0.0], [1.0], [10.0]])  # the distances to the nearest other one are 1, 1 and 9
    for query, share in {0.0: 0, 0.4: 0, 12.0: 0, 18.9: 0, 19.1: 1, -0.9: 0, -1.1: 1, 5.0: 1}.items():
        assert authenticity(torch.tensor([[query]]), train) == share, query
    assert authenticity(torch.tensor([[0.4], [30.0], [30.0], [10.0]]), train) == 0.5


def test_c_t_by_hand() -> None:
    """Two cells, of training images 0 and 100, with 30 test images in one and 10 in the other."""
    train, centres = torch.tensor([[0.0], [100.0]]), torch.tensor([[1.0], [99.0]])
    left, right = torch.rand(30, 1), 100 - torch.rand(10, 1)
    tests = torch.cat([left, right])
    near, far = torch.rand(25, 1) / 2, 100 + torch.rand(40, 1)
    one, other = z_score(near[:, 0], left[:, 0]), z_score(far[:, 0] - 100, 100 - right[:, 0])
    expected = (30 * one + 10 * other) / 40
    assert data_copying(torch.cat([near, far]), tests, train, centres) == pytest.approx(expected, abs=1e-3)
    assert data_copying(torch.cat([near[:20], far]), tests, train, centres) == pytest.approx(other, abs=1e-3)
    assert math.isnan(data_copying(near[:20], tests, train, centres))


def test_c_t_of_real_data_is_about_normal() -> None:
    centres = torch.tensor([[-1.0, 0], [1.0, 0]])
    scores = [data_copying(torch.randn(120, 2), torch.randn(100, 2), torch.randn(50, 2), centres) for _ in range(100)]
    assert stats.kstest(2**0.5 * torch.tensor(scores).double(), "norm").pvalue > 0.01


def test_cells_have_enough_images(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:400]
    assert [len(cells(images, count)) for count in (10, 250, 399)] == [1, 2, 3]
    torch.testing.assert_close(cells(images, 10)[0], images.flatten(1).float().mean(0) / 255)


def test_copies_are_called_out_and_real_images_are_not(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0].float() / 255
    train, tests, held = images[:2000], images[2000:3000], images[3000:4000]
    copies, centres = train[:1000], cells(train, 1000)

    def noisy(size: float) -> Tensor:
        return (copies + size * torch.randn_like(copies)).clamp(0, 1)

    found = {
        "copies": copies, "noisy": noisy(0.1), "half": torch.cat([copies[:500], held[:500]]), "held": held,
        "wide": noisy(0.5), "mixed": (held + held.roll(1, 0)) / 2,
    }  # fmt: skip
    scores = {name: data_copying(each, tests, train, centres) for name, each in found.items()}
    assert max(scores["copies"], scores["noisy"], scores["half"]) < -3
    assert scores["copies"] < scores["noisy"] < scores["half"]
    assert abs(scores["held"]) < 3
    assert min(scores["wide"], scores["mixed"]) > 3
    authentic = {name: authenticity(each[::2], train) for name, each in found.items()}
    assert authentic["copies"] == 0
    assert authentic["noisy"] < 0.1 < authentic["half"] < 0.4 < authentic["held"] < authentic["mixed"]
    assert authentic["wide"] == 1
    assert authentic["held"] == pytest.approx(authenticity(tests[::2], train), abs=0.1)


def test_metrics_of_copies_and_of_real_images(digits: tuple[Tensor, Tensor]) -> None:
    train, tests, held = (digits[0][:1000].float() / 255).split([600, 200, 200])
    samples = torch.cat([train[:150], held[:50]])
    metrics, others = copying(samples, tests, train, lambda x: F.avg_pool2d(x, 4), compared=180)
    assert metrics.keys() == others.keys()
    assert metrics["data_copying"] == data_copying(samples, tests, train, cells(train, 200))
    for name in ("data_copying", "data_copying_features"):
        assert metrics[name] < -3 < others[name] < 3
    assert metrics["data_copying"] != metrics["data_copying_features"]
    assert metrics["authenticity"] == pytest.approx(authenticity(held[:30], train) / 6)
    assert others["authenticity"] == authenticity(tests[:180], train) > 0.4
