"""The codes of a model that quantises, as maps of indices k (h, w): how they are used, and a prior p(k) fitted to them.

    perplexity = exp(-sum_j f_j log f_j),     f_j: the share of all places of all images that have code j
    log p(x) >= log p(x | z_q(x)) + log p(k(x))

The bound leaves out all codes but that of the encoder: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from vaelab.errors import UserError
from vaelab.evaluation.batches import floats
from vaelab.interfaces import code_prior, device_of
from vaelab.noise import fixed_noise

SIZE = 1000  # images encoded, or maps scored, at a time


@torch.no_grad()
def code_maps(model: Any, images: Tensor) -> Tensor:
    """The maps of indices (N, h, w) of images (N, C, H, W), uint8 or in [0, 1], on the device of the model."""
    return torch.cat([model.indices(floats(part.to(device_of(model)))) for part in images.split(SIZE)])


def usage(maps: Tensor, num_codes: int) -> tuple[float, float]:
    """The perplexity of the codes in maps (N, h, w), and the share of all codes that occur in them."""
    counts = maps.flatten().bincount(minlength=num_codes).double()
    shares = counts / counts.sum()
    return torch.xlogy(shares, shares).sum().neg().exp().item(), (counts > 0).double().mean().item()


@torch.no_grad()
def nats(prior: Any, maps: Tensor) -> Tensor:
    """-log p(k) of each map (N, h, w) in nats, (N,)."""
    return -torch.cat([prior.log_prob(part) for part in maps.split(SIZE)])


@torch.no_grad()
def codebook_statistics(model: Any, images: Tensor, x: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of the codes of training images (uint8) and test images x (N, C, H, W), and those with a value per image.

    Perplexities and shares of used codes need no prior. With a prior over codes, each test image has `code_nats`,
    -log p(k), and `code_bound`, the bound of log p(x), (N,) each.
    """
    maps = {"train": code_maps(model, images), "test": code_maps(model, x)}
    metrics = {}
    for split, each in maps.items():
        metrics[f"{split}_perplexity"], metrics[f"{split}_codes_used"] = usage(each, len(model.codebook))
    if (prior := code_prior(model)) is None:
        return metrics, {}
    rate = nats(prior, maps["test"]).double()
    log_p = torch.cat([model.reconstruct(part).log_prob(part) for part in x.split(SIZE)])
    return metrics, {"code_nats": rate, "code_bound": log_p.double() - rate}


class Fit(NamedTuple):
    """The weights of a fitted prior, and how well it fits."""

    state: dict[str, Tensor]
    nats: float  # nats per image, of the validation maps with these weights, or of the training maps without any
    epoch: int  # after which the weights were taken


def fit_prior(
    prior: Any,  # a module with `log_prob`, such as PixelCNN, on the device of the maps
    maps: Tensor,  # (N, h, w), of training images
    validation: Tensor | None,  # (M, h, w)
    epochs: int = 12,
    batch_size: int = 128,
    lr: float = 2e-3,  # the first learning rate of Adam; a cosine schedule ends at zero
    seed: int = 0,  # of the order of the maps
    progress: Callable[[int, float, float | None], object] = lambda *_: None,  # epoch, train and validation nats
) -> Fit:
    """Fit p(k) to maps of indices by maximum likelihood, with a progress bar. The weights of the best epoch are kept.

    This is the epoch with the lowest validation nats, or the last one without validation maps. Torch's random state
    does not change. Raises UserError if the loss is not a finite number.
    """
    batches = -(-len(maps) // batch_size)
    optimizer = torch.optim.Adam(prior.parameters(), lr)
    decay = CosineAnnealingLR(optimizer, epochs * batches)
    best: Fit | None = None
    bar = tqdm(total=epochs * batches, desc="fitting a prior", unit="step", leave=False, disable=None)
    with bar, fixed_noise(maps.device, seed):
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=maps.device)
            for part in torch.randperm(len(maps), device=maps.device).split(batch_size):
                loss = -prior.log_prob(maps[part]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
                total += loss.detach() * len(part)
                bar.update()
            train = total.item() / len(maps)
            if not math.isfinite(train):
                raise UserError(f"the loss of the prior is not a finite number in epoch {epoch}: set a smaller lr")
            checked = None if validation is None else nats(prior, validation).mean().item()
            progress(epoch, train, checked)
            reached = train if checked is None else checked
            if best is None or checked is None or reached < best.nats:
                best = Fit(copy.deepcopy(prior.state_dict()), reached, epoch)
    assert best is not None
    prior.load_state_dict(best.state)
    return best
