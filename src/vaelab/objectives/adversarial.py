"""Objectives with a discriminator on the code, D(z) in logits, which is trained in the same step as the model.

`loss` includes the gradient of the discriminator's loss, but not its value. The model's terms use a detached copy of
the discriminator. So one backward pass trains both. The distortion is the reconstruction term of -ELBO.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from vaelab import checks
from vaelab.distributions import at_least_float32
from vaelab.errors import UserError
from vaelab.interfaces import GenerativeModel
from vaelab.objectives.objective import Objective, defined_terms, elbo_terms, only_latent
from vaelab.trace import Trace


class _Adversarial(Objective):
    """The base class, with one parameter group for the discriminator. Raises UserError without a latent_dim."""

    weight: Tensor

    def __init__(
        self,
        latent_dim: int,  # D
        discriminator: Callable[[Size], nn.Module],  # (D,) -> module: (N, D) -> (N, F), which gets one output
        weight: float = 10.0,  # of the adversarial term in the loss
        lr: float = 1e-4,  # learning rate of the discriminator
        betas: Sequence[float] = (0.5, 0.9),  # of the discriminator's optimiser
    ) -> None:
        super().__init__()
        checks.number(weight=weight)
        checks.positive(lr=lr)
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise UserError(f"betas={betas}: two numbers are needed, such as [0.5,0.9]")
        checks.share(**{f"betas.{i}": beta for i, beta in enumerate(betas)})
        if 1 in betas:
            raise UserError(f"betas={list(betas)}: numbers below one are needed")
        if not latent_dim:
            raise UserError(f"{type(self).__name__} is defined for the code of model=vae only: use that model")
        checks.whole(latent_dim=latent_dim)
        features = discriminator(Size((latent_dim,)))
        size: int = features.out_features  # type: ignore[assignment]
        self.discriminator = nn.Sequential(features, nn.Linear(size, 1), nn.Flatten(0))
        self.hold(weight=weight)
        self.lr, self.betas = lr, tuple(betas)

    def parameter_groups(self, model: GenerativeModel) -> list[dict[str, Any]]:
        own = {"params": list(self.discriminator.parameters()), "lr": self.lr, "betas": self.betas}
        return [{"params": list(model.parameters())}, own]

    def verdict(self, z: Tensor) -> Tensor:
        """D(z) in logits, (N,), with a gradient to z and none to the discriminator."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return at_least_float32(torch.func.functional_call(self.discriminator, frozen, (z,)))

    def discriminate(self, real: Tensor, fake: Tensor) -> Tensor:
        """The cross-entropy, (B,), of the discriminator on two samples `real` and `fake`, (B, D) each."""
        return 0.5 * (
            F.softplus(-at_least_float32(self.discriminator(real)))
            + F.softplus(at_least_float32(self.discriminator(fake)))
        )


class FactorVAE(_Adversarial):
    """FactorVAE: loss = -elbo + weight * total correlation, KL(q(z) || prod_d q(z_d)) of the aggregate posterior q(z).

    The estimate of the total correlation falls without limit if the discriminator diverges, so `negative_elbo` rates
    the model.

    D(z) estimates log [q(z) / prod_d q(z_d)]. It is trained to separate codes from codes with each dimension shuffled
    over the batch. Raises PartsError for several latents. Kim & Mnih 2018, https://arxiv.org/abs/1802.05983
    """

    monitor = "negative_elbo"

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        terms = elbo_terms(trace, x)
        terms["negative_elbo"] = -terms["elbo"]
        z = only_latent(trace, self).z[0]  # (B, D)
        code = z.detach()
        shuffled = code.gather(0, torch.rand_like(code).argsort(0))  # one permutation of the batch for each dimension
        own = self.discriminate(code, shuffled)
        total_correlation = self.verdict(z)
        loss = terms["negative_elbo"] + self.weight * total_correlation + own - own.detach()
        return {"loss": loss, **terms, "total_correlation": total_correlation, "discriminator": own}


class AdversarialAutoencoder(_Adversarial):
    """The adversarial autoencoder: loss = distortion - weight * log sigmoid(D(z)).

    D is trained to separate draws of the prior from codes. The posterior may be a point mass. Raises PartsError for
    several latents. Makhzani et al. 2016, https://arxiv.org/abs/1511.05644
    """

    monitor = "distortion"  # the adversarial term also changes with the discriminator, so it does not rate the model

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        latent = only_latent(trace, self)
        terms = defined_terms(trace, x)
        z = latent.z[0]  # (B, D)
        own = self.discriminate(latent.sample_prior(len(z)), z.detach())
        generator = F.softplus(-self.verdict(z))
        loss = terms["distortion"] + self.weight * generator + own - own.detach()
        return {"loss": loss, **terms, "generator": generator, "discriminator": own}
