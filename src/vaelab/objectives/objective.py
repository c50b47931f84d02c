"""The interface of every objective, and what several of them read from a trace."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from vaelab.distributions import Delta
from vaelab.errors import PartsError
from vaelab.interfaces import GenerativeModel
from vaelab.trace import Latent, Trace


class Objective(nn.Module):
    """Scores a model on a batch; may own parameters of its own.

    `monitor` names the term that checkpoints and schedulers watch, lower is better; `num_samples` is K of the trace.
    """

    monitor: str = "loss"
    num_samples: int = 1
    scores: type = Trace  # what the model has to leave behind

    def forward(
        self, model: GenerativeModel, x: Tensor, y: Tensor | None = None, step: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms in nats, one value per image: {"loss": (B,), ...}; a figure that is undefined is absent.

        Of images x (B, C, H, W) and, for conditional models, labels y (B,). `step` counts the optimiser steps taken so
        far, a 0-dim tensor; None stands for a schedule's final value.
        """
        return self.terms(self.trace(model, x, y), x, step)

    def trace(self, model: GenerativeModel, x: Tensor, y: Tensor | None) -> Any:
        """One pass of the model; raises TypeError where it leaves something else behind than this objective scores."""
        trace: object = model(x, y, self.num_samples)
        if not isinstance(trace, self.scores):
            left = f"{self.scores.__name__}, and the model leaves a {type(trace).__name__}"
            raise PartsError(f"{type(self).__name__} scores a {left}: objective=vq and model=vqvae belong together")
        return trace

    def hold(self, **values: Any) -> None:
        """Keep hyper-parameters: numbers as 0-dim buffers, schedules as they are.

        Runs that differ in a buffer can be stacked, as weights are. It is not saved, since the config has the number.
        """
        for name, value in values.items():
            if callable(value):
                setattr(self, name, value)
            else:
                self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    def terms(self, trace: Any, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        """What `forward` returns, from the trace of images x (B, C, H, W)."""
        raise NotImplementedError

    def parameter_groups(self, model: GenerativeModel) -> list[dict[str, Any]]:
        """What the optimiser trains: one group, unless an objective has settings of its own for its parameters."""
        return [{"params": [*model.parameters(), *self.parameters()]}]


def value_at(value: Any, step: Tensor | None) -> Any:
    """A schedule's value after `step` optimiser steps, or a number as it is."""
    return value(step) if callable(value) else value


def elbo_terms(trace: Trace, x: Tensor, kl: Callable[[Latent], Tensor] = Latent.kl) -> dict[str, Tensor]:
    """elbo = -(rate + distortion), (B,) each, means over samples; rate_1, ... of each of several latents."""
    distortion = -over_samples(trace.likelihood.log_prob(x))
    rates = [over_samples(kl(latent)) for latent in trace.latents]
    rate = reduce(torch.add, rates)
    each = {f"rate_{i}": rates[i - 1] for i in range(1, 1 + len(rates)) if len(rates) > 1}
    return {"elbo": -(distortion + rate), "rate": rate, "distortion": distortion, **each}


def over_samples(values: Tensor) -> Tensor:
    """The mean over samples, (K, B) -> (B,); of one sample without a pass over it."""
    return values.squeeze(0) if len(values) == 1 else values.mean(0)


def defined_terms(trace: Trace, x: Tensor) -> dict[str, Tensor]:
    """`elbo_terms`, of which a point mass has only the distortion."""
    terms = elbo_terms(trace, x)
    points = any(isinstance(latent.q, Delta) for latent in trace.latents)
    return {"distortion": terms["distortion"]} if points else terms


def only_latent(trace: Trace, objective: Objective) -> Latent:
    """The latent of a model with one stochastic layer; TypeError if there are several."""
    if len(trace.latents) != 1:
        raise PartsError(f"{type(objective).__name__} is defined for one code, and this model has {len(trace.latents)}")
    return trace.latents[0]
