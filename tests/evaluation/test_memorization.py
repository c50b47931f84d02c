"""Nearest training images equal those of a brute-force search, and planted copies are found."""

import pytest
import torch
from torch import Tensor

from vaelab.evaluation import memorization as module
from vaelab.evaluation.memorization import memorization, nearest


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
