"""A test for copies of training images x_n among samples: the distance to the nearest one, L2 over pixels in [0, 1].

    d(x) = min_n |x - x_n|

The distances of samples are compared with those of test images, which cannot be copies: Meehan et al. 2020,
https://arxiv.org/abs/2004.05675
"""

import torch
from torch import Tensor

CHUNK = 5000  # training images compared at a time


def nearest(queries: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """d of each query (M, C, H, W), and the index of its nearest image of (N, C, H, W): (M,) each. Uint8 is scaled.

    The nearest image minimises |x_n|^2 - 2 x'x_n. Rounding may decide between equally near images; d itself is exact.
    The images may be on another device than the queries.
    """
    queries = _rows(queries)
    least = torch.full((len(queries),), torch.inf, device=queries.device)
    index = torch.zeros_like(least, dtype=torch.long)
    for number, chunk in enumerate(images.split(CHUNK)):
        rows = _rows(chunk.to(queries.device))
        found, place = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2).min(1)
        index = torch.where(found < least, place + number * CHUNK, index)
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


def _rows(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C*H*W) in [0, 1]."""
    return images.flatten(1).float() / (255 if images.dtype == torch.uint8 else 1)
