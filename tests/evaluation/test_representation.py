"""Probes of codes that separate the classes, and of codes with shuffled labels."""

import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from vaelab.evaluation.representation import representation


def clusters(count: int, spread: float = 0.1, classes: int = 10) -> tuple[Tensor, Tensor]:
    """One cluster of codes for each class, with scales per dimension that differ by a factor of 1,000."""
    y = torch.arange(count) % classes
    return (torch.eye(classes)[y] + spread * torch.randn(count, classes)) * torch.logspace(-1.5, 1.5, classes), y


def test_separable_codes() -> None:
    metrics = representation(*clusters(300, spread=0.01), *clusters(200, spread=0.01))
    assert metrics["linear_accuracy"] == 1
    one_scale = [(x / x.std(0), y) for x, y in (clusters(300, 0.01), clusters(200, 0.01))]
    metrics = representation(*one_scale[0], *one_scale[1])
    assert metrics["knn_accuracy"] == 1
    assert metrics["silhouette"] > 0.9


def test_shuffled_labels_leave_chance() -> None:
    (x, y), (test_x, test_y) = clusters(2000), clusters(2000)
    metrics = representation(x, y[torch.randperm(2000)], test_x, test_y[torch.randperm(2000)])
    assert metrics["linear_accuracy"] == pytest.approx(0.1, abs=0.03)
    assert metrics["knn_accuracy"] == pytest.approx(0.1, abs=0.03)
    assert metrics["silhouette"] < 0


def test_probes_learn_from_training_codes_alone() -> None:
    """The training labels are shifted by one class, so every prediction is wrong."""
    (x, y), (test_x, test_y) = clusters(300, 0.01), clusters(100, 0.01)
    metrics = representation(x, (y + 1) % 10, test_x, test_y)
    assert metrics["linear_accuracy"] == 0
    assert representation(x, (y + 1) % 10, test_x, (test_y + 1) % 10)["linear_accuracy"] == 1


def test_a_dead_unit_does_not_change_nearest_neighbours() -> None:
    """With standardised units, the noise of dead units would count as much as the units that separate classes."""
    (x, y), (test_x, test_y) = clusters(300, 0.01, 2), clusters(200, 0.01, 2)
    noise = [1e-6 * torch.randn(len(codes), 200) for codes in (x, test_x)]
    metrics = representation(torch.cat([x, noise[0]], 1), y, torch.cat([test_x, noise[1]], 1), test_y)
    assert metrics["knn_accuracy"] == 1
    assert metrics["silhouette"] > 0.9


def test_silhouette_of_at_most_2000_codes_of_the_whole_set() -> None:
    (x, y), (test_x, test_y) = clusters(50), clusters(4500)
    some = slice(None, None, 3)
    expected = silhouette_score(test_x[some].numpy(), test_y[some].numpy())
    assert representation(x, y, test_x, test_y)["silhouette"] == pytest.approx(expected)


def test_a_missing_class_costs_accuracy_and_nothing_else() -> None:
    (x, y), (test_x, test_y) = clusters(300, 0.01), clusters(200, 0.01)
    unseen = representation(x[y < 8], y[y < 8], test_x, test_y)
    assert unseen["linear_accuracy"] == pytest.approx(0.8)
    untested = representation(x, y, test_x[test_y > 4], test_y[test_y > 4])
    assert untested["linear_accuracy"] == 1


def test_without_two_classes_there_is_nothing_to_tell_apart() -> None:
    (x, y), (test_x, test_y) = clusters(100), clusters(100)
    assert set(representation(x, y * 0, test_x, test_y)) == {"silhouette"}
    assert set(representation(x, y, test_x, test_y * 0)) == {"linear_accuracy", "knn_accuracy"}
    assert representation(x, y * 0, test_x[:3], test_y[:3]) == {}  # each of the three codes has another class
    assert set(representation(x[:3], y[:3], test_x, test_y)) == {"linear_accuracy", "knn_accuracy", "silhouette"}
