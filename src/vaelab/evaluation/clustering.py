"""Clusters against classes."""

import torch
from torch import Tensor


def clustering_accuracy(assignments: Tensor, labels: Tensor) -> float:
    """The share of images whose cluster is matched to their class, in [0, 1], under the best one-to-one matching.

    `assignments` (N,) are clusters and `labels` (N,) classes, whole numbers from 0. The Hungarian method finds the
    matching: Kuhn 1955, https://doi.org/10.1002/nav.3800020109. If there are more clusters than classes, the images of
    unmatched clusters count as wrong.
    """
    from scipy.optimize import linear_sum_assignment

    clusters, classes = 1 + int(assignments.max()), 1 + int(labels.max())
    counts = torch.bincount(assignments.cpu() * classes + labels.cpu(), minlength=clusters * classes)
    matrix = counts.view(clusters, classes).numpy()
    return float(matrix[linear_sum_assignment(matrix, maximize=True)].sum() / len(labels))
