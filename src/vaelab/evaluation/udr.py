"""The unsupervised disentanglement ranking of models that differ in their seed.

Models whose codes answer to the true factors find the same dimensions again, up to order, sign and scale. Duan et al.
2020, https://arxiv.org/abs/1905.12614
"""

from collections.abc import Sequence

import numpy as np

from vaelab.evaluation.disentanglement import Array

LEAST_KL = 0.01  # nats; a dimension below it has no information


def udr(codes: Sequence[Array], kl: Sequence[Array]) -> list[float]:
    """The score of each of S >= 2 models, in [0, 1]: the median over the other models j of

        UDR_ij = 1 / (d_i + d_j) [ sum_b r_b^2 / sum_a R_ab  +  sum_a r_a^2 / sum_b R_ab ].

    R (d_i, d_j) has the absolute rank correlations (Spearman) of the informative dimensions of both models, r_a and
    r_b are the largest values of its rows and of its columns. codes (N, D) are of the same N images for all models,
    and kl (D,) is the rate of each dimension in nats.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(code[:, rate > LEAST_KL], axis=0) for code, rate in zip(codes, kl, strict=True)]
    pairs = {(i, j): _pair(ranks[i], ranks[j]) for i in range(len(ranks)) for j in range(i)}
    return [
        float(np.median([pairs[max(i, j), min(i, j)] for j in range(len(ranks)) if j != i])) for i in range(len(ranks))
    ]


def _pair(first: Array, second: Array) -> float:
    size = first.shape[1] + second.shape[1]
    if not first.shape[1] or not second.shape[1]:
        return 0.0
    similar = np.abs(np.corrcoef(first.T, second.T)[: first.shape[1], first.shape[1] :])
    rows, columns = (similar.max(axis) ** 2 / similar.sum(axis) for axis in (1, 0))
    return float((rows.sum() + columns.sum()) / size)
