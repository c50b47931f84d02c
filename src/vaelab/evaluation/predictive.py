"""Posterior predictive checks: are simple statistics of samples distributed like those of test images?

M samples and N test images are pooled, and R random splits of the pool into M and N images are drawn. If samples and
test images have the same distribution, the true split is one of R + 1 that are equally likely. So each statistic has

    p = (1 + #{r: D_r >= D}) / (1 + R)

with the difference D between samples and test images, and the difference D_r of the split r. D has no sign, so a
difference in either direction makes p small. The idea of such checks: Gelman, Meng and Stern 1996,
https://www.jstor.org/stable/24306036

All statistics are of the mean over channels. An image has ink where this mean is above 1/2.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SPLITS, TOGETHER = 999, 50  # R, and splits that are computed at a time
STATISTICS = {
    "ink": "sum of the pixels",
    "stroke_width": "2 x area / outline of the ink, in pixels",
    "components": "connected pieces of ink",
    "holes": "pieces of paper that ink encloses",
    "aspect_ratio": "width / height of the box around the ink",
    "centre": "distance of the centre of mass from the middle, in pixels",
}
MAPS = {"mean_map": "mean of each pixel", "variance_map": "variance of each pixel"}
BINS = 25  # of a histogram, about


class Predictive(NamedTuple):
    """The result of `predictive`."""

    samples: dict[str, Tensor]  # the statistics by name, (M,) each
    tests: dict[str, Tensor]  # (N,) each
    maps: Tensor  # (2, 2, H, W): mean and variance of each pixel, of samples and of test images
    distances: dict[str, float]  # D of each statistic and of each map
    p_values: dict[str, float]  # p of each
    p_value: float  # of all together
    floor: dict[str, float]  # D of training images instead of samples

    def record(self) -> dict[str, dict[str, Any]]:
        """Plain data by name: D and p. A statistic also has means, standard deviations and histograms (shares)."""
        found: dict[str, dict[str, Any]] = {
            name: {"distance": distance, "p_value": self.p_values[name], "floor": self.floor[name]}
            for name, distance in self.distances.items()
        }
        for name in STATISTICS:
            both = {"samples": self.samples[name], "tests": self.tests[name]}
            edges = _edges(torch.cat([*both.values()]))
            found[name]["edges"] = edges.tolist()
            for of, values in both.items():
                counts = torch.histogram(values.clamp(edges[0], edges[-1]), edges).hist
                shares = (counts / len(values)).tolist()
                found[name][of] = {"mean": values.mean().item(), "sd": values.std().item(), "shares": shares}
        return found


def largest(distances: Mapping[str, float]) -> float:
    """The largest D of a statistic, in [0, 1]."""
    return max(distances[name] for name in STATISTICS)


def predictive(samples: Tensor, tests: Tensor, real: Tensor, splits: int = SPLITS, seed: int = 0) -> Predictive:
    """Compare samples (M, C, H, W) with test images (N, C, H, W), and training images (L, C, H, W) as well.

    All are in [0, 1].

    D of a statistic is the Kolmogorov-Smirnov distance, the largest difference between the shares at or below a value.
    D of a map is the L2 norm of the difference. `p_value` is the p-value of the smallest p-value: the share of splits,
    with the true one, of which a p-value is as small. So it is a test of all statistics and maps at once, however they
    depend on each other (Westfall and Young 1993, minP).
    """
    count, generator = len(samples), torch.Generator().manual_seed(seed)
    first = torch.arange(len(real) + len(tests))[None] < len(real)
    floor = _differences(first, *_pooled(real, tests))[0]
    values, grey = _pooled(samples, tests)
    found, rest = [_differences(torch.arange(len(grey))[None] < count, values, grey)], splits
    while rest > 0:
        order = torch.rand(min(TOGETHER, rest), len(grey), generator=generator).argsort(1)
        found.append(_differences(order < count, values, grey))
        rest -= len(order)
    differences = torch.cat(found)  # (1 + R, statistics and maps)
    ordered = differences.T.sort().values.contiguous()
    below = torch.searchsorted(ordered, differences.T.contiguous()).T
    p = (len(differences) - below).double() / len(differences)
    least = p.min(1).values
    names, parts = (*STATISTICS, *MAPS), grey.unflatten(1, samples.shape[2:]).split([count, len(tests)])
    means, variances = [part.mean(0) for part in parts], [part.var(0, correction=0) for part in parts]
    return Predictive(
        {name: each[:count] for name, each in values.items()},
        {name: each[count:] for name, each in values.items()},
        torch.stack([torch.stack(moments) for moments in (means, variances)]),
        dict(zip(names, differences[0].tolist(), strict=True)),
        dict(zip(names, p[0].tolist(), strict=True)),
        (least <= least[0]).double().mean().item(),
        dict(zip(names, floor.tolist(), strict=True)),
    )


def _pooled(one: Tensor, other: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The statistics (N,) and the grey levels (N, H*W) of all images, on the CPU."""
    images = torch.cat([one, other]).cpu()
    return image_statistics(images), images.mean(1).flatten(1)


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """The statistics of images (N, C, H, W) on the CPU by name, (N,) each. Without ink, all but `ink` are 0.

    Pieces of ink are connected over edges and corners, and pieces of paper over edges. The outline counts the edges
    between ink and paper. The centre of mass is that of the grey levels.
    """
    grey = images.mean(1).float()
    ink = grey > 0.5
    (height, width), area = ink.shape[1:], ink.sum((1, 2))
    framed = F.pad(ink, (1, 1, 1, 1))
    outline = framed.diff(dim=1).sum((1, 2)) + framed.diff(dim=2).sum((1, 2))
    tall, wide = _extent(ink.any(2)), _extent(ink.any(1))
    mass = grey.sum((1, 2))
    offsets = []
    for dim, size in ((2, height), (1, width)):
        places = torch.arange(size) - (size - 1) / 2
        offsets.append(grey.sum(dim) @ places / mass.clamp(min=1e-6))
    found = {
        "ink": mass,
        "stroke_width": 2 * area / outline.clamp(min=1),
        "components": _pieces(ink, corners=True),
        "holes": _pieces(~framed, corners=False) - 1,  # one piece is around all ink
        "aspect_ratio": wide / tall.clamp(min=1),
        "centre": torch.stack(offsets).norm(dim=0) * (area > 0),
    }
    return {name: values.float() for name, values in found.items()}


def _extent(there: Tensor) -> Tensor:
    """The number of places from the first to the last that is True, (N, L) -> (N,)."""
    there = there.int()
    return (there.shape[1] - there.flip(1).argmax(1) - there.argmax(1)) * there.any(1)


def _pieces(there: Tensor, corners: bool) -> Tensor:
    """The number of connected pieces of each image (N, H, W) -> (N,)."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(3, 2 if corners else 1)
    structure[[0, 2]] = False  # pieces do not extend over images
    labels, count = ndimage.label(there.numpy(), structure)
    image = torch.empty(count + 1, dtype=torch.long)
    image[torch.from_numpy(labels).flatten().long()] = torch.arange(len(there)).repeat_interleave(there[0].numel())
    return image[1:].bincount(minlength=len(there))


def _differences(first: Tensor, values: dict[str, Tensor], grey: Tensor) -> Tensor:
    """D of each statistic and of each map, for splits (R, N) that are True at the images of one part: (R, S)."""
    m = int(first[0].sum())
    n = first.shape[1] - m
    weights = torch.where(first, n, -m)  # whole numbers, so that equal differences are equal
    found = []
    for each in values.values():
        ordered, order = each.sort()
        last = torch.cat([ordered[1:] != ordered[:-1], torch.tensor([True])])  # of equal values
        found.append(weights[:, order].cumsum(1)[:, last].abs().max(1).values.double() / (m * n))
    parts = []
    for moments in (grey, grey.square()):
        sums = first.float() @ moments
        parts.append((sums / m, (moments.sum(0) - sums) / n))
    (mean, other_mean), (square, other_square) = parts
    found.append((mean - other_mean).norm(dim=1).double())
    found.append((square - mean.square() - other_square + other_mean.square()).norm(dim=1).double())
    return torch.stack(found, 1)


def _edges(values: Tensor) -> Tensor:
    """The edges of a histogram of values (N,). The lowest and the highest thousandth belong to the bins at the ends.

    Whole numbers are in the middle of bins, or equally many are in each bin.
    """
    low, high = values.quantile(torch.tensor([0.001, 0.999])).tolist()
    if (values == values.round()).all():
        step = max(1, math.ceil((high - low) / BINS))
        return torch.arange(math.floor(low), math.ceil(high) + step + 1, step) - 0.5
    return torch.linspace(low, high if high > low else low + 1, BINS + 1)
