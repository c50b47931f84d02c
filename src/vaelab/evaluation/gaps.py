"""The amortization gap: the loss in ELBO because one encoder gives q(z | x) = N(mu, diag(sigma^2)) for all images.

    gap(x) = max over mu, sigma of ELBO(x; mu, sigma) - ELBO(x; encoder(x))

Cremer et al. 2018, https://arxiv.org/abs/1801.03558
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vaelab.distributions import is_factorised, path_log_prob
from vaelab.errors import UserError
from vaelab.interfaces import GenerativeModel
from vaelab.noise import fixed_noise
from vaelab.trace import Trace

WIDER = 1.2  # the proposal's standard deviation over that of the refined q


class Refined(NamedTuple):
    """The result of `refine` for N images."""

    before: Tensor  # (N,), the ELBO at the encoder's q, in nats
    after: Tensor  # (N,), the ELBO at the refined q, in nats
    q: Normal  # batch shape (N, D), the factors of the refined q

    def proposal(self) -> Normal:
        """A proposal for importance sampling, wider than q: the ELBO prefers a q that is narrower than the posterior.

        A posterior with heavier tails than the proposal has rare samples of large weights.
        """
        return Normal(self.q.loc, WIDER * self.q.scale)


@torch.no_grad()
def refine(
    model: GenerativeModel,
    x: Tensor,
    y: Tensor | None = None,
    steps: int = 1000,  # of Adam, which starts at the encoder's q
    num_samples: int = 100,  # noise samples of each ELBO
    seed: int = 0,
    lr: float = 0.03,  # the first learning rate; a cosine schedule ends at zero
    progress: Callable[[int], object] = lambda _: None,  # called with 1 after each step and after each noise sample
) -> Refined:
    """The ELBO of images (N, C, H, W) at the encoder's q, and at a q refined for each image.

    Both are means over the same noise, which the refinement does not use. The refined q counts even if its ELBO is
    lower, because a choice by noisy estimates would be biased. So the expected difference is at most the gap. The
    refinement uses the path gradient, which is zero at an exact posterior. It needs the memory of one training step on
    all images. Raises UserError unless q(z | x) is one factorised Gaussian.
    """

    def log_weight(mean: Tensor, log_std: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) at the last noise drawn, (N,)."""
        z = mean + log_std.exp() * noise
        log_q = path_log_prob(Independent(Normal(mean, log_std.exp()), 1), z)
        return model.decode(z, y).log_prob(x) + prior.log_prob(z) - log_q

    with fixed_noise(x.device, seed):
        q, prior = _gaussian(model, x, y), model.prior(model.infer)
        before = q.mean, q.stddev.log()
        after = tuple(parameter.clone().requires_grad_() for parameter in before)
        optimizer = torch.optim.Adam(after, lr, betas=(0.9, 0.99))  # 0.99 forgets the large first gradients soon
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            noise = torch.randn_like(q.mean)
            with torch.enable_grad():
                gradients = torch.autograd.grad(-log_weight(*after).sum(), after)  # no gradient for the decoder
            for parameter, gradient in zip(after, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            progress(1)
        elbos = x.new_zeros(2, len(x))
        for sample in range(num_samples):
            noise = torch.randn_like(q.mean)
            elbos.lerp_(torch.stack([log_weight(*before), log_weight(*after)]), 1 / (sample + 1))  # the running mean
            progress(1)
    mean, log_std = (parameter.detach() for parameter in after)
    return Refined(elbos[0], elbos[1], Normal(mean, log_std.exp()))


def _gaussian(model: GenerativeModel, x: Tensor, y: Tensor | None) -> Distribution:
    """q(z | x) of a model with one layer and a factorised Gaussian posterior. Raises UserError for any other model."""
    trace = model(x[:1], None if y is None else y[:1])
    latents = trace.latents if isinstance(trace, Trace) else ()
    q = latents[0].q if len(latents) == 1 else None
    if is_factorised(q):
        return model.infer(x, y)
    found = f"q = {type(q).__name__}" if q else f"{len(latents)} latents" if latents else "no density"
    raise UserError(f"refining q(z | x) for each image needs one factorised Gaussian, but this model has {found}")
