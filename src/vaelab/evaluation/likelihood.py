"""The importance-weighted estimate of log p(x), and the exact log p(x) of linear models.

    log p(x) ~ log 1/K sum_k w_k,   w_k = p(x, z_k) / q(z_k | x),   z_k ~ q(z | x),   ESS = (sum_k w_k)^2 / sum_k w_k^2

The expectation of the estimate is a lower bound that rises to log p(x) with K; K = 1 is the ELBO: Burda et al. 2016,
https://arxiv.org/abs/1509.00519. The nearer q is to the posterior, the closer is the bound. If the effective sample
size ESS is near 1, K samples are too few: the bound can then be many nats too low.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.overrides import TorchFunctionMode

from vaelab import checks
from vaelab.distributions import Delta, is_factorised
from vaelab.errors import NotOfferedError
from vaelab.interfaces import GenerativeModel
from vaelab.linear import log_likelihood
from vaelab.noise import fixed_noise
from vaelab.trace import Trace, draw


class Estimate(NamedTuple):
    """One value per image, (N,) float64. `ess` is between 1 and K, all others are in nats."""

    log_likelihood: Tensor
    elbo: Tensor  # -(distortion + rate), at the same samples
    rate: Tensor  # E_q[log q(z | x) - log p(z)]
    distortion: Tensor  # -E_q[log p(x | z)]
    ess: Tensor


@torch.no_grad()
def importance_weighted(
    model: GenerativeModel,
    x: Tensor,  # (N, C, H, W)
    y: Tensor | None = None,  # (N,) for a model with classes
    num_samples: int = 5000,  # K
    seed: int = 0,
    progress: Callable[[int], Any] = lambda _: None,  # called with the number of images of each finished chunk
    proposal: Normal | None = None,  # batch shape (N, D): a q(z | x) for each image, in place of the encoder's
) -> Estimate:
    """Estimate log p(x) of each image, in chunks of samples and images to limit memory.

    The noise depends on the seed and the size of the chunks alone, and torch's random state does not change. Raises
    NotOfferedError for a model without densities: an autoencoder or a VQ-VAE.
    """
    checks.whole(num_samples=num_samples)
    rows = rows_at_once(model, x[:1], None if y is None else y[:1])
    size = max(1, rows // min(num_samples, 100))  # images per chunk; 100 samples of each make its encoding cheap
    most = max(1, rows // size)
    counts = [min(most, num_samples - done) for done in range(0, num_samples, most)]
    estimates = []
    with fixed_noise(x.device, seed):
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            batch, labels = x[part], None if y is None else y[part]
            q = None if proposal is None else Independent(Normal(proposal.loc[part], proposal.scale[part]), 1)
            sums = torch.zeros(2, len(batch), dtype=torch.float64, device=x.device)  # of rate (KL term) and distortion
            log_sums = sums.new_full((2, len(batch)), -math.inf)  # log sum w, log sum w^2
            for count in counts:
                trace = _trace(model, batch, labels, count, q)
                log_p = trace.likelihood.log_prob(batch).double()  # (K, B)
                rate = torch.stack([latent.log_q - latent.p.log_prob(latent.z) for latent in trace.latents]).sum(0)
                log_w = log_p - rate
                sums += torch.stack([rate, -log_p]).sum(1)
                log_sums = torch.logaddexp(log_sums, torch.stack([log_w, 2 * log_w]).logsumexp(1))
            rate, distortion = sums / num_samples
            total, squares = log_sums
            bound, ess = total - math.log(num_samples), (2 * total - squares).exp()
            estimates.append(torch.stack([bound, -(rate + distortion), rate, distortion, ess]))
            progress(len(batch))
    return Estimate(*torch.cat(estimates, dim=1))


def _trace(model: GenerativeModel, x: Tensor, y: Tensor | None, count: int, q: Distribution | None) -> Trace:
    """The trace of `count` samples per image, of the encoder's q or of the given one."""
    if q is None:
        return model(x, y, num_samples=count)
    (latent,) = draw(q, model.prior(model.infer), Size((count,)))
    return Trace((latent,), model.decode(latent.z, y))


def rows_at_once(model: GenerativeModel, x: Tensor, y: Tensor | None) -> int:
    """The number of samples per chunk: its largest tensor takes 2 MB, or a hundredth of the memory of a GPU."""
    probe = 64
    with _Largest() as largest, fixed_noise(x.device):
        trace = model(x, y, num_samples=probe)
        if not isinstance(trace, Trace) or any(isinstance(latent.q, Delta) for latent in trace.latents):
            raise NotOfferedError(f"{type(model).__name__} with a point as its code has no density to estimate")
        trace.log_weight(x)
    budget = torch.cuda.get_device_properties(x.device).total_memory / 100 if x.device.type == "cuda" else 2 * 2**20
    return max(256, int(budget * probe / largest.bytes))


class _Largest(TorchFunctionMode):
    """A mode that records the size in bytes of the largest tensor that any operation returns."""

    bytes = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.bytes = max(self.bytes, out.nbytes)
        return out


@torch.no_grad()
def exact_log_likelihood(model: GenerativeModel, x: Tensor) -> Tensor | None:
    """log p(x) = log N(x; b, s^2 W W' + sigma^2 I), (N,) float64, or None for a model that is not linear and Gaussian.

    A linear model has p(x | z) = N(W z + b, sigma^2 I) and p(z) = N(0, s^2 I). The test uses the model's distributions.
    The result for a ladder is None, because `decode` leaves out the noise of its lower layers.
    """
    if model.num_classes or model.prior is None:
        return None
    prior = model.prior(model.infer)
    if not is_factorised(prior) or prior.mean.any():
        return None
    with fixed_noise(x.device):
        if len(model(x[:1]).latents) > 1:
            return None
    z = torch.randn(8, model.latent_dim, generator=torch.Generator().manual_seed(0)).to(x.device)
    axes = torch.cat([torch.zeros_like(z[:1]), torch.eye(model.latent_dim, device=x.device), z])
    likelihood = model.decode(axes)
    density = likelihood.base_dist if isinstance(likelihood, Independent) else None
    if not isinstance(density, Normal):
        return None
    means, scales = density.mean.flatten(1).double(), density.stddev.flatten(1).double()
    b, w = means[0], means[1:-8] - means[0]
    if not torch.allclose(b + z.double() @ w, means[-8:], atol=1e-3) or not torch.equal(
        scales, scales[:1].expand_as(scales)
    ):
        return None
    return log_likelihood(x, b, (prior.stddev.double().unsqueeze(1) * w).T, scales[0])
