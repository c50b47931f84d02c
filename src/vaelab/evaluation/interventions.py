"""Scores of disentanglement from images that share the value of one factor.

Both take codes (N, D) and factors (N, F), whole numbers. `points` batches of `batch` images are drawn with replacement
from those N images, so that in each batch one factor is held, and a simple rule has to say which one it is. The result
is its accuracy, in [0, 1], on half as many batches again. A guess has 1 / F. disentanglement_lib has twice as many
batches, and makes new images for them.
"""

import numpy as np

from vaelab.evaluation.disentanglement import Array, Whole

POINTS = 5000  # batches from which the rule learns
LEAST_DEVIATION = (
    0.05  # standard deviation of a dimension; below it the dimension is collapsed, as in disentanglement_lib
)
PARTS = 50  # of the batches, whose codes are in memory at the same time


def beta_vae_score(codes: Array, factors: Whole, points: int = POINTS, batch: int = 64, seed: int = 0) -> float:
    """The accuracy of logistic regression on the mean distance |z - z'| (D,) of pairs that share one factor's value.

    All distances are divided by the mean distance of the dimension in which it is largest, because the regression has a
    penalty, and the score must not depend on the scale of the code. disentanglement_lib does not divide.
    Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl
    """
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(seed)
    held = random.integers(factors.shape[1], size=points + points // 2)
    first = random.integers(len(codes), size=(len(held), batch))
    second = partners(factors, held, first, random)
    parts = zip(np.array_split(first, PARTS), np.array_split(second, PARTS), strict=True)
    distances = np.concatenate([np.abs(codes[one] - codes[other]).mean(1) for one, other in parts])
    distances /= distances.mean(0).max() or 1.0
    rule = LogisticRegression(max_iter=1000, random_state=seed).fit(distances[:points], held[:points])
    return float(rule.score(distances[points:], held[points:]))


def factor_vae_score(codes: Array, factors: Whole, points: int = POINTS, batch: int = 64, seed: int = 0) -> float:
    """The accuracy of a majority vote on the dimension that varies least while one factor has one value.

    Variances are relative to those of all codes, and collapsed dimensions are left out. If all are collapsed, the
    score is 0. Kim & Mnih 2018, https://arxiv.org/abs/1802.05983
    """
    random = np.random.default_rng(seed)
    used = codes[:, codes.std(0, ddof=1) >= LEAST_DEVIATION]
    if not used.shape[1]:
        return 0.0
    held = random.integers(factors.shape[1], size=points + points // 2)
    anchors = np.broadcast_to(random.integers(len(used), size=(len(held), 1)), (len(held), batch))
    images = partners(factors, held, anchors, random)
    variances = np.concatenate([used[part].var(1, ddof=1) for part in np.array_split(images, PARTS)])
    least = (variances / used.var(0, ddof=1)).argmin(1)
    votes = np.zeros((used.shape[1], factors.shape[1]))
    np.add.at(votes, (least[:points], held[:points]), 1)
    return float(np.mean(votes.argmax(1)[least[points:]] == held[points:]))


def partners(factors: Whole, held: Whole, images: Whole, random: np.random.Generator) -> Whole:
    """A random image with the same value of the factor `held` (P,), for each of the images (P, B): (P, B).

    It can be the image itself, and it is if no other image has the value.
    """
    found = np.empty_like(images)
    for k in range(factors.shape[1]):
        order = np.argsort(factors[:, k], kind="stable")
        _, inverse, counts = np.unique(factors[:, k], return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        mine = inverse[images[held == k]]
        found[held == k] = order[starts[mine] + random.integers(counts[mine])]
    return found
