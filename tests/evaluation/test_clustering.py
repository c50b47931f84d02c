import itertools

import pytest
import torch

from vaelab.evaluation.clustering import clustering_accuracy


def test_the_matching_is_the_best_of_all() -> None:
    torch.manual_seed(0)
    for _ in range(5):
        labels, assignments = torch.randint(4, (2, 40))
        best = max(
            (torch.tensor(names)[assignments] == labels).float().mean().item()
            for names in itertools.permutations(range(4))
        )
        assert clustering_accuracy(assignments, labels) == pytest.approx(best)


def test_renamed_classes_are_right_and_one_cluster_names_one_class() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert clustering_accuracy(torch.tensor([2, 0, 1])[labels], labels) == 1
    assert clustering_accuracy(torch.zeros(6, dtype=torch.long), labels) == 0.5  # the largest class
    assert clustering_accuracy(torch.tensor([2, 2, 0, 1, 1, 0]), labels) == pytest.approx(5 / 6)


def test_clusters_without_a_class_are_wrong() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert clustering_accuracy(torch.tensor([0, 0, 1, 2, 2, 3]), labels) == pytest.approx(4 / 6)
    assert clustering_accuracy(labels, torch.tensor([0, 1, 2, 3, 4, 5])) == pytest.approx(2 / 6)
