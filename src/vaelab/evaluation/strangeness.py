"""How strange images are to a model, compared with the test images of its own data set.

An image x is strange if few test images have a lower bound of log p(x). The bound is the importance-weighted one, the
same for both. A low log p(x) is a sign of an anomaly and no proof: plain images of another kind can have a high one, as
Nalisnick et al. 2019 show, https://arxiv.org/abs/1810.09136
"""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaelab.evaluation.likelihood import importance_weighted
from vaelab.interfaces import GenerativeModel


class Strangeness(NamedTuple):
    """One value per image, (N,) float64."""

    elbo: Tensor  # nats
    bound: Tensor  # nats, the importance-weighted bound of log p(x)
    percentile: Tensor  # share of test images with a bound at or below this one, in per cent: 0 is the strangest

    @property
    def order(self) -> list[int]:
        """The indices of the images, the strangest first."""
        return self.bound.argsort(stable=True).tolist()

    def table(self, names: Sequence[str]) -> str:
        """The values as CSV, with the names (N) of the images, the strangest first."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["rank", "name", *self._fields])
        for rank, i in enumerate(self.order, 1):
            values = [float(column[i]) for column in self]
            rows.writerow([rank, names[i], *(f"{value:.3f}" for value in values)])
        return text.getvalue()


def strangeness(model: GenerativeModel, x: Tensor, test: Tensor, num_samples: int, seed: int = 0) -> Strangeness:
    """Measure images x (N, C, H, W) against test images (M, C, H, W), with K = `num_samples` for each image.

    Raises NotOfferedError for a model without densities: an autoencoder or a VQ-VAE.
    """
    own = importance_weighted(model, x, num_samples=num_samples, seed=seed)
    others = importance_weighted(model, test, num_samples=num_samples, seed=seed).log_likelihood.sort().values
    below = torch.searchsorted(others, own.log_likelihood, right=True)
    return Strangeness(own.elbo, own.log_likelihood, 100 * below.double() / len(others))
