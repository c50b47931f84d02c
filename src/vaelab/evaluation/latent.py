"""Statistics of the codes of N images, with the aggregate posterior q(z) = 1/N sum_n q(z | x_n):

    1/N sum_n KL(q(z | x_n) || p(z)) = I(x; z) + KL(q(z) || p(z))       total correlation = KL(q(z) || prod_d q(z_d))

Hoffman & Johnson 2016, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf; Chen et al. 2018,
https://arxiv.org/abs/1802.04942. All terms are means over the same codes, so the first equation holds exactly. I(x; z)
is the information in a code about its image. It is at most log N: 9.2 nats for 10,000 images.

N images stand for all images, which makes the estimates biased: by the convexity of KL, I(x; z) is too low on average,
and KL(q(z) || p(z)) is too high by as much. The total correlation is too high, too. If I(x; z) is near log N, the
posteriors hardly overlap, and the bias has no limit. A larger N makes it smaller.

A unit d is active if Var_x E[z_d | x] > 0.01: Burda et al. 2016, https://arxiv.org/abs/1509.00519
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vaelab.classes import Labelled
from vaelab.distributions import Delta, Product
from vaelab.errors import NotOfferedError, PartsError
from vaelab.evaluation.batches import batches
from vaelab.interfaces import GenerativeModel, draws_with_density, lies_on_vectors
from vaelab.noise import fixed_noise
from vaelab.trace import Latent

ACTIVE = 0.01  # variance of the posterior mean, above which a unit is active
BATCH, CHUNK = 500, 32  # images and codes in one array of densities: (32, 500, D) floats fit into a core's cache

# Settings to train with if units have collapsed. Free bits need a KL for each unit.
REMEDIES = (
    "objective=elbo objective/beta=linear (the weight of the rate rises slowly)",
    "objective=elbo objective.free_bits=0.1 (the loss does not push the rate of a unit below 0.1 nats)",
    "objective=iwae (a tighter bound)",
)
REMEDIES_WITHOUT_RATES = (
    REMEDIES[0],
    "objective=elbo objective/beta=cyclical (the weight of the rate rises several times)",
    "objective=elbo objective.beta=0.5 (the rate has half its weight)",
)


class LatentStatistics(NamedTuple):
    """Statistics of the posteriors of N images. For a ladder, they are those of its top layer."""

    metrics: dict[str, float]  # active_units; in nats mean_kl, mutual_information and its limit, aggregate_kl, ...
    absent: dict[str, str]  # undefined metric -> reason; mutual_information stands for mean_kl and aggregate_kl, too
    codes: Tensor  # (N, D), E[z | x]
    variances: Tensor  # (D,), Var_x E[z | x]
    rates: Tensor | None  # (D,), the KL of each dimension in nats, if q and p are factorised Gaussians
    collapsed: list[int]  # the units that are not active

    def collapse(self) -> str | None:
        """A message with the collapsed units and three remedies, which are overrides of train.py, or None."""
        if not self.collapsed:
            return None
        names = ", ".join(f"z_{d}" for d in self.collapsed[:10]) + ", ..." * (len(self.collapsed) > 10)
        first, second, third = REMEDIES_WITHOUT_RATES if self.rates is None else REMEDIES
        return (
            f"{len(self.collapsed)} of {len(self.variances)} units have collapsed ({names}): the variance of their "
            f"posterior means over images is at most {ACTIVE}, so the decoder gets almost no information from them. "
            f"If fewer units are enough, do nothing; to use more units, train with {first}, {second} or {third}."
        )


@torch.no_grad()
def latent_statistics(
    model: GenerativeModel, x: Tensor, y: Tensor | None = None, num_samples: int = 1, seed: int = 0
) -> LatentStatistics:
    """Statistics of images x (N, C, H, W), with `num_samples` codes per image. The draws depend on the seed alone."""
    parts = list(batches(x, y, BATCH))
    codes = torch.cat([model.encode(*part) for part in parts])
    variances = codes.var(0, correction=0)
    metrics: dict[str, float] = {}
    absent: dict[str, str] = {}
    rates = None
    try:
        posteriors = [model.infer(*part) for part in parts]
        units, why = _units(posteriors[0]), _unknown(posteriors[0])
    except NotOfferedError as error:  # a VQ-VAE (which has no prior), or a ladder with inference=bottom_up
        units, why = [model.prior is not None] * len(variances), str(error)
    collapsed = [d for d, unit in enumerate(units) if unit and variances[d] <= ACTIVE]
    if any(units):
        metrics["active_units"] = sum(units) - len(collapsed)
    else:
        absent["active_units"] = "units are counted only if q(z | x) is a density on R^D"
    if why:
        absent |= dict.fromkeys(("rate_per_dim", "mutual_information", "total_correlation"), why)
        return LatentStatistics(metrics, absent, codes, variances, rates, collapsed)
    prior = model.prior(model.infer)
    try:
        rates = rate_per_dim(posteriors, prior)
    except PartsError as error:
        absent["rate_per_dim"] = str(error)
    with fixed_noise(x.device, seed):
        samples = [q.sample(Size((num_samples,))) for q in posteriors]  # (S, B, D) each
    log_q = torch.cat([q.log_prob(z).flatten() for q, z in zip(posteriors, samples, strict=True)])  # (S * N,)
    chunks = torch.cat([z.flatten(0, 1) for z in samples]).split(CHUNK)
    log_p = torch.cat([prior.log_prob(z) for z in chunks])
    log_aggregate = torch.cat([_log_aggregate(posteriors, z) for z in chunks])
    terms = {
        "mean_kl": log_q - log_p,
        "mutual_information": log_q - log_aggregate,
        "aggregate_kl": log_aggregate - log_p,
    }
    if isinstance(posteriors[0], Independent | MultivariateNormal):
        terms["total_correlation"] = log_aggregate - torch.cat([_log_marginals(posteriors, z) for z in chunks])
    else:
        absent["total_correlation"] = "the density of a single dimension is known for Gaussians only"
    metrics |= {name: term.cpu().double().mean().item() for name, term in terms.items()}
    metrics["information_limit"] = math.log(len(x))
    return LatentStatistics(metrics, absent, codes, variances, rates, collapsed)


def rate_per_dim(posteriors: Sequence[Distribution], prior: Distribution) -> Tensor:
    """KL(q(z_d | x) || p(z_d)) in nats, mean over all images of the posteriors, (D,).

    Raises PartsError unless q and p are factorised Gaussians.
    """
    undrawn = torch.empty(0)  # because the closed form needs no sample
    return torch.cat([Latent(undrawn, q, prior).kl_per_dim()[0] for q in posteriors]).mean(0)


def _log_aggregate(posteriors: Sequence[Distribution], z: Tensor) -> Tensor:
    """log q(z) of codes (M, D), (M,), where q(z) is the mean of all posteriors."""
    sums = torch.stack([q.log_prob(z.unsqueeze(1)).logsumexp(1) for q in posteriors])  # (M, B) -> (M,) each
    return sums.logsumexp(0) - math.log(sum(q.batch_shape.numel() for q in posteriors))


def _log_marginals(posteriors: Sequence[Distribution], z: Tensor) -> Tensor:
    """sum_d log q(z_d) of codes (M, D), (M,). It is finite, because the posterior of each code's image is included."""
    densities = [Normal(q.mean, q.stddev).log_prob(z.unsqueeze(1)).exp().sum(1) for q in posteriors]  # (M, D) each
    images = sum(q.batch_shape.numel() for q in posteriors)
    return (torch.stack(densities).sum(0) / images).log().sum(-1)


def _units(q: Distribution) -> list[bool]:
    """Whether each coordinate of the code is a unit with a density on R, unlike one-hot vectors, spheres and points."""
    if isinstance(q, Product):
        return [unit for factor in q.factors for unit in _units(factor)]
    if isinstance(q, Labelled):
        return [*_units(q.component_distribution), *q.sizes[1] * [False]]
    return [lies_on_vectors(q) and not isinstance(q, Delta)] * q.event_shape[0]


def _unknown(q: Distribution) -> str:
    """Why the density of each code under the posterior of each image is not available, or an empty string."""
    if isinstance(q, Product):
        return next(filter(None, map(_unknown, q.factors)), "")
    if isinstance(q, Delta):
        return "a point mass has no density"
    if draws_with_density(q):
        return "a flow would have to run once for each pair of a code and an image, which is too slow"
    return ""
