"""The unsupervised disentanglement ranking of models that differ in their seed.

Models whose codes answer to the true factors find the same dimensions again, up to order, sign and scale. Duan et al.
2020, https://arxiv.org/abs/1905.12614
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.evaluation import report
from vaelab.evaluation.batches import batches
from vaelab.evaluation.disentanglement import Array
from vaelab.interfaces import GenerativeModel, labels

LEAST_KL = 0.01  # nats; a dimension below it has no information


def udr(codes: Sequence[Array], kl: Sequence[Array]) -> list[float]:
    """The score of each of S >= 2 models, in [0, 1]: the median over the other models j of

        UDR_ij = 1 / (d_i + d_j) [ sum_b r_b^2 / sum_a R_ab  +  sum_a r_a^2 / sum_b R_ab ].

    R (d_i, d_j) has the absolute rank correlations (Spearman) of the informative dimensions of both models, r_a and
    r_b are the largest values of its rows and of its columns. codes (N, D) are of the same N images for all models,
    and kl (D,) is the rate of each dimension in nats. The authors have the weights of a lasso as a second choice of R.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(code[:, rate > LEAST_KL], axis=0) for code, rate in zip(codes, kl, strict=True)]
    pairs = {(i, j): _pair(ranks[i], ranks[j]) for i in range(len(ranks)) for j in range(i)}
    return [
        float(np.median([pairs[max(i, j), min(i, j)] for j in range(len(ranks)) if j != i])) for i in range(len(ranks))
    ]


def _pair(first: Array, second: Array) -> float:
    size = first.shape[1] + second.shape[1]
    similar = np.abs(_standard(first).T @ _standard(second)) / len(first)
    if not similar.any():
        return 0.0
    sums = [similar.max(axis) ** 2 / np.maximum(similar.sum(axis), np.finfo(float).tiny) for axis in (1, 0)]
    return float((sums[0].sum() + sums[1].sum()) / size)


def _standard(ranks: Array) -> Array:
    """Ranks (N, D) with mean 0 and variance 1. The ranks of a dimension that is constant are all 0."""
    deviation = ranks.std(0)
    return (ranks - ranks.mean(0)) / np.where(deviation > 0, deviation, 1)


@torch.no_grad()
def compare_seeds(
    models: Sequence[GenerativeModel],
    images: Sequence[tuple[Tensor, Tensor | None]],  # the same images and labels for each model, on its device
    records: Sequence[dict[str, Any]],
) -> None:
    """Add `udr` to the evaluations of models that differ only in the seed, and `udr_runs`, their number.

    Nothing is added unless all models have a rate for each dimension.
    """
    rates = [record["rate_per_dim"] for record in records]
    if None in rates:
        return
    pairs = zip(models, images, strict=True)
    codes = [torch.cat([model.encode(*part) for part in batches(x, labels(model, y))]) for model, (x, y) in pairs]
    scores = udr([code.double().cpu().numpy() for code in codes], [np.array(rate) for rate in rates])
    for record, score in zip(records, scores, strict=True):
        record["metrics"]["udr"], record["udr_runs"] = score, len(models)
        record["meanings"] |= report.meanings(record["protocol"], ["udr"])
