"""The evidence lower bound: log p(x) >= ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z)) = -(distortion + rate).

The distortion is the reconstruction term -E_q[log p(x | z)], and the rate is the KL term.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vaelab import checks
from vaelab.distributions import path_log_prob
from vaelab.errors import PartsError, UserError
from vaelab.objectives.objective import Objective, elbo_terms, value_at
from vaelab.trace import Latent, Trace


class ELBO(Objective):
    """The ELBO, with options: loss = distortion + beta * rate, in nats per image, summed over pixels and dimensions.

    `elbo` is always the bound itself: beta and free_bits change the loss only.

    * beta != 1 is the beta-VAE of Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl
    * free_bits > 0, in nats, replaces the rate in the loss by sum_d max(free_bits, mean over the batch of KL_d): Kingma
      et al. 2016, https://arxiv.org/abs/1606.04934. Raises UserError unless the KL is analytic, and PartsError unless
      posterior and prior are factorised Gaussians
    * sticking_the_landing samples the KL and holds the parameters of log q fixed (the path gradient). With one layer,
      its gradient is zero at the exact posterior: Roeder et al. 2017, https://arxiv.org/abs/1703.09194
    """

    beta: Any  # a number as a 0-dim tensor, or a schedule
    free_bits: Tensor

    def __init__(
        self,
        beta: float | Callable[[Tensor | None], Tensor | float] = 1.0,  # a number or a schedule of the optimiser step
        free_bits: float = 0.0,
        num_samples: int = 1,  # K, samples of z for each image
        kl: str = "analytic",  # or "sample": log q(z | x) - log p(z) at the same samples
        sticking_the_landing: bool = False,
    ) -> None:
        super().__init__()
        checks.number(beta=0 if callable(beta) else beta, free_bits=free_bits)
        checks.whole(num_samples=num_samples)
        checks.one_of(("analytic", "sample"), kl=kl)
        checks.one_of((True, False), sticking_the_landing=sticking_the_landing)
        kl = "sample" if sticking_the_landing else kl
        if free_bits and kl == "sample":
            raise UserError("free_bits needs the KL of each latent dimension, which is known with kl=analytic only")
        self.hold(beta=beta, free_bits=free_bits)
        self.num_samples, self.kl, self.sticking_the_landing = num_samples, kl, sticking_the_landing
        self.has_free_bits = free_bits > 0

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        terms = elbo_terms(trace, x, self._kl)
        penalty = self._free(trace) if self.has_free_bits else terms["rate"]
        return {"loss": terms["distortion"] + value_at(self.beta, step) * penalty, **terms}

    def _kl(self, latent: Latent) -> Tensor:
        if self.kl == "analytic":
            return latent.kl()
        log_q = path_log_prob(latent.q, latent.z) if self.sticking_the_landing else latent.log_q
        return log_q - latent.p.log_prob(latent.z)

    def _free(self, trace: Trace) -> Tensor:
        """The rate with free bits, 0-dim: it is one value for the whole batch."""
        per_dim = [latent.kl_per_dim().mean((0, 1)) for latent in trace.latents]  # (D,) each
        return torch.cat(per_dim).clamp(min=self.free_bits).sum()


class Capacity(Objective):
    """A rate near a capacity: loss = distortion + gamma * sum_i |KL_i - C_i|, batch mean KL_i, capacity C_i, in nats.

    Burgess et al. 2018, https://arxiv.org/abs/1804.03599. With one capacity for each block of the code it is the
    JointVAE of Dupont 2018, https://arxiv.org/abs/1804.00104. Raises PartsError unless each latent has one capacity.
    """

    gamma: Tensor

    def __init__(self, capacity: Any, gamma: float = 5.0) -> None:  # a number or schedule, or one for each block
        super().__init__()
        checks.number(gamma=gamma)
        entries = list(capacity) if isinstance(capacity, Sequence) else [capacity]
        for entry in entries:
            checks.number(capacity=0 if callable(entry) else entry)
        self.names = [f"capacity_{i}" for i in range(len(entries))]
        self.hold(gamma=gamma, **dict(zip(self.names, entries, strict=True)))

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        if len(trace.latents) != len(self.names):
            wrong = f"objective.capacity has {len(self.names)} entries for {len(trace.latents)} latents"
            raise PartsError(f"{wrong}: give one entry for each latent")
        terms = elbo_terms(trace, x)
        rates = [term for name, term in terms.items() if name.startswith("rate_")] or [terms["rate"]]
        targets = [value_at(getattr(self, name), step) for name in self.names]
        excess = torch.stack([(r.mean() - target).abs() for r, target in zip(rates, targets, strict=True)]).sum()
        return {"loss": terms["distortion"] + self.gamma * excess, **terms}
