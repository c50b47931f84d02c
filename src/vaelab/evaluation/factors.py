"""The metrics of disentanglement of a code, for images with known factors."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaelab.errors import UserError
from vaelab.evaluation import disentanglement
from vaelab.evaluation.interventions import POINTS, beta_vae_score, factor_vae_score
from vaelab.interfaces import true_factors

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST = 100  # dimensions, because SAP has a machine for each dimension and each factor
NAMES = (
    *("mig", "modularity", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness"),
    *("beta_vae_score", "factor_vae_score"),
)


class FactorMetrics(NamedTuple):
    """The result of `factor_metrics`, all three by name. They are empty for data without known factors."""

    metrics: dict[str, float]
    standard_errors: dict[str, float]  # over test images, or for the two scores over batches of them
    absent: dict[str, str]  # name -> reason


def check_factors(data: Any) -> None:
    """Raise UserError unless the factors of training and test images are whole numbers (N, F), for all N images."""
    widths = set()
    for split in ("train", "test"):
        count, factors = len(data.splits[split][0]), true_factors(data, split)
        if factors is None:
            continue
        kind = getattr(factors, "dtype", type(factors).__name__)
        shape = tuple(getattr(factors, "shape", ()))
        widths.add(shape[-1:])
        if kind not in WHOLE or len(shape) != 2 or shape[0] < count or len(widths) > 1:
            raise UserError(
                f"factors[{split!r}] of {data.name} has the type {kind} and the shape {shape}, but a tensor of whole "
                f"numbers ({count}, F) is needed, with the same F for training and test images"
            )


def factor_metrics(data: Any, codes: Tensor, test_codes: Tensor, seed: int = 0) -> FactorMetrics:
    """The metrics NAMES of codes (N, D) of the first training images and of codes (M, D) of the first test images.

    A factor that has one value among these images does not count.
    """
    known, test_known = true_factors(data, "train", len(codes)), true_factors(data, "test", len(test_codes))
    if known is None or test_known is None:
        return FactorMetrics({}, {}, {})
    train, test = known.numpy(), test_known.numpy()
    varied = [len(set(column)) > 1 < len(set(other)) for column, other in zip(train.T, test.T, strict=True)]
    train, test = train[:, varied], test[:, varied]
    x, test_x = (z.double().cpu().numpy() for z in (codes, test_codes))
    if train.shape[1] < 2:
        return FactorMetrics({}, {}, dict.fromkeys(NAMES, "fewer than two factors vary among the images"))
    if x.shape[1] > MOST:
        return FactorMetrics({}, {}, dict.fromkeys(NAMES, f"the code has {x.shape[1]:,} dimensions, more than {MOST}"))
    forests = disentanglement.dci(x, train, test_x, test, seed)
    metrics = {
        "mig": disentanglement.mig(test_x, test),
        "modularity": disentanglement.modularity(test_x, test),
        "sap": disentanglement.sap(x, train, test_x, test),
        "dci_disentanglement": forests.disentanglement,
        "dci_completeness": forests.completeness,
        "dci_informativeness": float(forests.hits.mean()),
        "beta_vae_score": beta_vae_score(test_x, test, seed=seed),
        "factor_vae_score": factor_vae_score(test_x, test, seed=seed),
    }
    errors = {"dci_informativeness": float(forests.hits.std(ddof=1) / np.sqrt(len(test)))}
    for name in ("beta_vae_score", "factor_vae_score"):
        errors[name] = float(np.sqrt(metrics[name] * (1 - metrics[name]) / (POINTS // 2)))
    return FactorMetrics(metrics, errors, {})
