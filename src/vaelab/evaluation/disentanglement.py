"""Disentanglement: how the dimensions of a code answer to the factors that generated the images.

All functions take codes (N, D) and factors (N, F), whole numbers. There are at least two factors, and each has at least
two values. Results are in [0, 1], and higher is better. Locatello et al. 2019, https://arxiv.org/abs/1811.12359,
compare these metrics. The definitions are those of their disentanglement_lib, except for the trees of DCI.

Mutual informations are in nats, with each dimension in BINS bins of equal width. Few images make them too large: a
dimension that is independent of a factor of V values seems to have about (BINS - 1) (V - 1) / (2 N) nats.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
BINS = 20
TREES = 20  # of the random forest of DCI


def information(codes: Array, factors: Whole) -> Array:
    """The mutual information (D, F) of each dimension, in BINS bins of equal width, and each factor, in nats."""
    from sklearn.metrics import mutual_info_score

    binned = [np.digitize(column, np.histogram_bin_edges(column, BINS)[1:-1]) for column in codes.T]
    return np.array([[mutual_info_score(column, factor) for factor in factors.T] for column in binned])


def mig(codes: Array, factors: Whole) -> float:
    """The mutual information gap: 1/F sum_k (I_1k - I_2k) / H(v_k).

    I_1k and I_2k are the largest and the second largest mutual information of a dimension and factor k, and H(v_k) is
    the entropy of the factor. Chen et al. 2018, https://arxiv.org/abs/1802.04942, estimate the information in samples
    of q(z | x); here it is that in the codes, which are means, as in disentanglement_lib.
    """
    from sklearn.metrics import mutual_info_score

    found = np.sort(np.vstack([information(codes, factors), np.zeros(factors.shape[1])]), axis=0)
    entropies = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    return float(np.mean((found[-1] - found[-2]) / entropies))


def modularity(codes: Array, factors: Whole) -> float:
    """The mean over dimensions of 1 - sum_{k != k*} I_k^2 / ((F - 1) I_k*^2), where k* is the factor of the largest I.

    A dimension without information counts as zero. Ridgeway & Mozer 2018, https://arxiv.org/abs/1802.05312
    """
    squares = information(codes, factors) ** 2
    largest = squares.max(1)
    rest = (squares.sum(1) - largest) / (squares.shape[1] - 1)
    return float(np.mean(np.where(largest > 0, 1 - rest / np.where(largest > 0, largest, 1), 0)))


def sap(codes: Array, factors: Whole, test_codes: Array, test_factors: Whole) -> float:
    """The separated attribute predictability: 1/F sum_k (S_1k - S_2k).

    S_1k and S_2k are the best and the second best accuracy of test images with which a linear support vector machine
    predicts factor k from one dimension. A factor of more than two values is seldom predicted well, because each value
    needs a threshold of its own. Kumar et al. 2018, https://arxiv.org/abs/1711.00848
    """
    from sklearn.svm import LinearSVC

    scores = np.zeros((codes.shape[1] + 1, factors.shape[1]))
    for d in range(codes.shape[1]):
        for k in range(factors.shape[1]):
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(codes[:, d : d + 1], factors[:, k])
            scores[d, k] = machine.score(test_codes[:, d : d + 1], test_factors[:, k])
    scores.sort(axis=0)
    return float(np.mean(scores[-1] - scores[-2]))


class DCI(NamedTuple):
    """The result of `dci`."""

    disentanglement: float
    completeness: float
    hits: Array  # (M,), the share of the factors of each test image that are predicted; informativeness is its mean


def dci(codes: Array, factors: Whole, test_codes: Array, test_factors: Whole, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness: Eastwood & Williams 2018, https://openreview.net/forum?id=By-7dz-AZ

    R (D, F) has the importance of each dimension for a random forest that predicts a factor.

    * Disentanglement: sum_d rho_d (1 - H_F(P_d)), where P_d = R_d / sum_k R_dk, and rho_d is the share of dimension d
      in the sum of R. H_F has the base F: the value is 1 if a dimension serves one factor.
    * Completeness: the same over the columns, with the base D: the value is 1 if one dimension serves a factor.
    * Informativeness: the mean accuracy of the predicted factors on test images.

    The authors have forests of regression trees with a depth that is chosen for each factor. disentanglement_lib has
    gradient boosting. Here all trees are complete, so a factor that cannot be predicted has importances everywhere.
    """
    from sklearn.ensemble import RandomForestClassifier

    forests = [
        RandomForestClassifier(TREES, max_features=None, random_state=seed).fit(codes, factor) for factor in factors.T
    ]
    importance = np.array([forest.feature_importances_ for forest in forests]).T
    hits = [forest.predict(test_codes) == factor for forest, factor in zip(forests, test_factors.T, strict=True)]
    return DCI(concentration(importance), concentration(importance.T), np.mean(hits, axis=0))


def concentration(importance: Array) -> float:
    """The mean over rows of 1 minus the entropy of a row (R, C), with the base C. Rows weigh as much as their sums.

    Without any importance, as that of a constant code, it is 0.
    """
    sums = importance.sum(1)
    if not sums.any():
        return 0.0
    shares = importance[sums > 0] / sums[sums > 0, None]
    logs = np.log(np.where(shares > 0, shares, 1)) / np.log(max(importance.shape[1], 2))
    return float(np.average(1 + (shares * logs).sum(1), weights=sums[sums > 0]))
