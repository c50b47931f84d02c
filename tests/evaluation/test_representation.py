"""Probes of codes that separate the classes, and of codes with shuffled labels."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from vaelab.evaluation.representation import agreement, representation


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
    probes = {"linear_accuracy", "knn_accuracy", "kmeans_accuracy", "kmeans_nmi", "kmeans_ari"}
    assert set(representation(x, y, test_x, test_y * 0)) == probes
    assert representation(x, y * 0, test_x[:3], test_y[:3]) == {}  # each of the three codes has another class
    assert set(representation(x[:3], y[:3], test_x, test_y)) == probes | {"silhouette"}


def test_clusters_of_separable_codes_are_the_classes() -> None:
    """The scale of all dimensions is one, because a cluster is round."""
    names = ("kmeans_accuracy", "kmeans_nmi", "kmeans_ari")
    one_scale = [(x / x.std(0), y) for x, y in (clusters(300, 0.01), clusters(200, 0.01))]
    metrics = representation(*one_scale[0], *one_scale[1])
    assert [metrics[name] for name in names] == pytest.approx([1] * 3)
    (x, y), (test_x, test_y) = one_scale
    shuffled = representation(x, y, test_x, test_y[torch.randperm(200)])
    assert shuffled["kmeans_accuracy"] < 0.4
    assert shuffled["kmeans_ari"] == pytest.approx(0, abs=0.05)
    equal = representation(0 * x, y, 0 * test_x, test_y)  # one cluster of all codes
    assert [equal[name] for name in names] == pytest.approx([0.1, 0, 0])


def test_labels_in_another_order_agree() -> None:
    labels = np.repeat([0, 1, 2, 3], [5, 6, 7, 8])
    assert agreement(np.array([2, 0, 3, 1])[labels], labels) == pytest.approx({"accuracy": 1, "nmi": 1, "ari": 1})


def test_agreement_of_six_images_by_hand() -> None:
    """The counts are [[2, 1], [0, 3]]; of 15 pairs, 4 are together in both, 6 in the labels, 7 in the clusters."""
    found = agreement(np.array([0, 0, 1, 1, 1, 1]), np.array([5, 5, 5, 8, 8, 8]))
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["ari"] == pytest.approx((4 - 6 * 7 / 15) / ((6 + 7) / 2 - 6 * 7 / 15))
    entropies = (math.log(2), math.log(3) / 3 + math.log(3 / 2) * 2 / 3)
    information = 2 / 6 * math.log(2) + 1 / 6 * math.log(1 / 2) + 3 / 6 * math.log(3 / 2)
    assert found["nmi"] == pytest.approx(2 * information / sum(entropies))


def test_the_matching_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        labels, clusters = random.integers(4, size=(2, 40))
        best = max((np.array(names)[clusters] == labels).mean() for names in itertools.permutations(range(4)))
        assert agreement(clusters, labels)["accuracy"] == pytest.approx(best)


def test_more_clusters_than_classes_leave_some_without_a_class() -> None:
    assert agreement(np.arange(6), np.array([0, 0, 0, 1, 1, 1]))["accuracy"] == pytest.approx(2 / 6)
    assert agreement(np.zeros(6, int), np.array([0, 0, 0, 0, 1, 2]))["accuracy"] == pytest.approx(4 / 6)


def test_independent_clusters_agree_by_chance() -> None:
    random = np.random.default_rng(0)
    found = agreement(random.integers(10, size=20_000), random.integers(10, size=20_000))
    assert found == pytest.approx({"accuracy": 0.1, "nmi": 0, "ari": 0}, abs=0.015)
