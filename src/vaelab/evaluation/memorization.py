"""Tests for copies of training images x_n among samples, by the distance to the nearest one, L2 over pixels in [0, 1].

    d(x) = min_n |x - x_n|

The distances of samples are compared with those of test images, which cannot be copies. The test C_T does it within
cells of the space of images: Meehan et al. 2020, https://arxiv.org/abs/2004.05675. A sample is authentic if it is not
a copy with noise of the training image that is nearest to it: Alaa et al. 2022, https://arxiv.org/abs/2102.08921

Each function takes images (N, C, H, W) or features (N, D). Uint8 is scaled to [0, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 5000  # training images compared at a time
CELLS, IN_CELL = 50, 100  # most cells, and at least so many samples and test images in a cell, on average
FEW = 20  # samples; a cell with as many or fewer does not count
CLUSTERED = 10_000  # at most so many training images for the centres of the cells


def nearest(queries: Tensor, images: Tensor, but: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """d of each query (M, C, H, W), and the index of its nearest image of (N, C, H, W): (M,) each.

    `but` (M,) is the index of an image that does not count for a query, such as the query itself. The nearest image
    minimises |x_n|^2 - 2 x'x_n. Rounding may decide between equally near images; d itself is exact. The images may be
    on another device than the queries.
    """
    queries = _rows(queries)
    least = torch.full((len(queries),), torch.inf, device=queries.device)
    index = torch.zeros_like(least, dtype=torch.long)
    for number, chunk in enumerate(images.split(CHUNK)):
        rows, start = _rows(chunk.to(queries.device)), number * CHUNK
        scores = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)
        if but is not None:
            inside = ((but >= start) & (but < start + len(rows))).nonzero().squeeze(1)
            scores[inside, but[inside] - start] = torch.inf
        found, place = scores.min(1)
        index = torch.where(found < least, place + start, index)
        least = torch.minimum(least, found)
    return (queries - _rows(images[index.to(images.device)].to(queries.device))).norm(dim=1), index


def memorization(samples: Tensor, tests: Tensor) -> dict[str, float]:
    """Medians of the distances d of samples and of test images, and `nearer_share`.

    `nearer_share` is the share of samples that are nearer than 95 % of the test images. It is 0.05 if samples lie like
    test images. A higher value hints at copies. Means of p(x | z) are smoother than images, so they are nearer to all.
    """
    bar = tests.quantile(0.05)
    return {
        "sample_distance": samples.median().item(),
        "test_distance": tests.median().item(),
        "nearer_share": (samples < bar).float().mean().item(),
    }


def copying(
    samples: Tensor, tests: Tensor, train: Tensor, features: Callable[[Tensor], Tensor] | None, compared: int
) -> tuple[dict[str, float], dict[str, float]]:
    """C_T in pixels, in features if given, and authenticity: of samples (M, ...), and of test images (N, ...) instead.

    C_T of test images is that of a random half against the other half. Authenticity is that of the first `compared`
    images. A C_T that is not defined is NaN.
    """
    order = torch.randperm(len(tests), generator=torch.Generator().manual_seed(0)).to(tests.device)
    found, held = {}, {}
    spaces: dict[str, Callable[[Tensor], Tensor]] = {"data_copying": lambda x: x}
    spaces |= {"data_copying_features": features} if features else {}
    for name, space in spaces.items():
        own, other, known = map(space, (samples, tests, train))
        found[name] = data_copying(own, other, known, cells(known, min(len(own), len(other))))
        halves = other[order].chunk(2)
        held[name] = data_copying(halves[0], halves[1], known, cells(known, len(halves[1])))
    for metrics, images in ((found, samples), (held, tests)):
        metrics["authenticity"] = authenticity(images[:compared], train)
    return found, held


def authenticity(images: Tensor, train: Tensor) -> float:
    """The share of images (M, ...) that are authentic with respect to training images (N, ...), N > 1.

    An image with the nearest training image t is authentic if it is farther from t than t is from any other training
    image. The share is 0 for copies. Images of the same distribution as the training images are often not authentic by
    chance, so the value of test images is the one to compare with.
    """
    distances, index = nearest(images, train)
    own, place = index.unique(return_inverse=True)
    between, _ = nearest(train[own.to(train.device)].to(images.device), train, but=own)
    return (distances > between[place]).float().mean().item()


def cells(train: Tensor, count: int) -> Tensor:
    """The centres (k, D) of k cells, k-means of training images (N, ...), for samples and tests of at least `count`.

    k is `count` / IN_CELL, at least 1 and at most CELLS.
    """
    from sklearn.cluster import KMeans

    rows = _rows(train[:: -(-len(train) // CLUSTERED)]).cpu().numpy()
    number = max(1, min(CELLS, count // IN_CELL))
    return torch.from_numpy(KMeans(number, n_init=1, random_state=0).fit(rows).cluster_centers_)


def data_copying(samples: Tensor, tests: Tensor, train: Tensor, centres: Tensor) -> float:
    """C_T of samples (M, ...) against test images (N, ...), with cells around `centres` (k, D).

        C_T = sum_c N_c z_c / sum_c N_c

    z_c compares the distances to the nearest training image of cell c, of its samples and of its N_c test images, see
    `z_score`. If samples lie like test images, each z_c is about N(0, 1), and C_T is about N(0, 1 / k) for cells of
    equal sizes. Below -3 the samples are copies, above 3 they lie farther from training images than real images do.
    Cells with at most FEW samples, without a test image or without a training image do not count. The result is NaN if
    no cell counts.
    """
    images = [samples, tests, train]
    places = [
        torch.cat([nearest(part.to(samples.device), centres)[1] for part in each.split(CHUNK)]) for each in images
    ]
    total, weight = 0.0, 0
    for cell in range(len(centres)):
        own, held, known = (each[(place == cell).to(each.device)] for each, place in zip(images, places, strict=True))
        if len(own) > FEW and len(held) and len(known):
            total += len(held) * z_score(nearest(own, known)[0], nearest(held, known)[0])
            weight += len(held)
    return total / weight if weight else torch.nan


def z_score(one: Tensor, other: Tensor) -> float:
    """The z-score of the Mann-Whitney U statistic of values (M,) against values (N,): below 0 if the first are smaller.

        z = (U - M N / 2) / s,   U = #{one > other} + 1/2 #{one = other},
        s^2 = M N / 12 (L + 1 - sum_t (t^3 - t) / (L (L - 1))),   L = M + N, with t equal values at each tie

    It is 0 if all values are equal.
    """
    m, n = len(one), len(other)
    both = m + n
    _, place, counts = torch.cat([one, other]).unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    ranks = counts.cumsum(0) - (counts - 1) / 2
    u = ranks[place[:m]].sum() - m * (m + 1) / 2
    variance = m * n / 12 * (both + 1 - (counts**3 - counts).sum() / (both * (both - 1)))
    return ((u - m * n / 2) / variance.sqrt()).item() if variance > 0 else 0.0


def _rows(images: Tensor) -> Tensor:
    """(N, ...) -> (N, D) in [0, 1]."""
    return images.flatten(1).float() / (255 if images.dtype == torch.uint8 else 1)
