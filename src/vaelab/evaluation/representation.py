"""Probes that predict the class from the code: trained on codes of training images, scored on test images.

Codes are posterior means. The linear probe is multinomial logistic regression on standardised codes. The neighbours and
the silhouette use codes that are not standardised, so collapsed units have no weight. The silhouette is
(b - a) / max(a, b), with mean distances a to the code's class and b to the nearest other class: Rousseeuw 1987,
https://doi.org/10.1016/0377-0427(87)90125-7

k-means finds one cluster of training codes for each class. They are not standardised either. A test code belongs to the
cluster with the nearest centre.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def representation(codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor) -> dict[str, float]:
    """`linear_accuracy` and `knn_accuracy` (5 neighbours), in [0, 1], on test codes (M, D), trained on codes (N, D).

    `kmeans_accuracy`, `kmeans_nmi` and `kmeans_ari` are those of `agreement`, on test codes. `silhouette` is in [-1, 1]
    and uses at most 2,000 test codes. If there is only one class, metrics are absent.
    """
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = (part.cpu().numpy() for part in (codes, labels, test_codes, test_labels))
    metrics = {}
    if len(set(y)) > 1:
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
        neighbours = KNeighborsClassifier(min(5, len(x))).fit(x, y)
        metrics["linear_accuracy"] = float(linear.score(test_x, test_y))
        metrics["knn_accuracy"] = float(neighbours.score(test_x, test_y))
        count = min(len(set(y)), len(np.unique(x, axis=0)))  # codes of a model without information can be equal
        clusters = KMeans(count, n_init=10, random_state=0).fit(x).predict(test_x)
        metrics |= {f"kmeans_{name}": value for name, value in agreement(clusters, test_y).items()}
    every = -(-len(test_x) // 2000)
    some_x, some_y = test_x[::every], test_y[::every]
    if 1 < len(set(some_y)) < len(some_y):
        metrics["silhouette"] = float(silhouette_score(some_x, some_y))
    return metrics


def agreement(clusters: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """How well clusters (M,) agree with labels (M,), whatever the numbers of both are.

    * `accuracy`: the share of images whose cluster is matched to their class, under the best one-to-one matching (the
      Hungarian method), in [0, 1]
    * `nmi`: 2 I / (H + H'), the mutual information by the mean of both entropies, in [0, 1]
    * `ari`: the adjusted Rand index, whose expectation for random clusters is 0, and whose largest value is 1: Hubert &
      Arabie 1985, https://doi.org/10.1007/BF01908075
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, clusters)
    return {
        "accuracy": float(table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }
