"""The base class of objectives, and terms that several of them compute from a trace."""

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
    """The base class of objectives: the loss of a model on a batch. An objective may have parameters of its own.

    Constructors raise UserError for an argument out of its range.
    """

    monitor: str = "loss"  # the term that checkpoints and schedulers watch, where lower is better
    num_samples: int = 1  # K of the trace
    scores: type = Trace  # the type that the model has to return
    takes_labels: bool = False  # whether it gets the labels y although the model does not take them

    def forward(
        self, model: GenerativeModel, x: Tensor, y: Tensor | None = None, step: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of images x (B, C, H, W), one value per image: {"loss": (B,), ...}. Undefined terms are absent.

        Conditional models take labels y (B,). `step` is the number of optimiser steps so far, a 0-dim tensor. If it is
        None, schedules take their final values.
        """
        return self.terms(self.trace(model, x, y), x, step)

    def trace(self, model: GenerativeModel, x: Tensor, y: Tensor | None) -> Any:
        """Run the model once. Raises PartsError if the result does not have the type `scores`."""
        trace: object = model(x, y, self.num_samples)
        if not isinstance(trace, self.scores):
            pair = f"{self.scores.__name__}, and the model returns a {type(trace).__name__}"
            raise PartsError(f"{type(self).__name__} scores a {pair}: use objective=vq with model=vqvae or fsqvae only")
        return trace

    def hold(self, **values: Any) -> None:
        """Store hyper-parameters: numbers as 0-dim buffers, schedules unchanged.

        Buffers of several runs can be stacked, like weights. They are not saved, because the config has the numbers.
        """
        for name, value in values.items():
            if callable(value):
                setattr(self, name, value)
            else:
                self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    def terms(self, trace: Any, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        """The terms that `forward` returns, computed from the trace of images x (B, C, H, W)."""
        raise NotImplementedError

    def parameter_groups(self, model: GenerativeModel) -> list[dict[str, Any]]:
        """The optimiser's parameter groups. There is one, unless an objective has optimiser settings of its own."""
        return [{"params": [*model.parameters(), *self.parameters()]}]


def value_at(value: Any, step: Tensor | None) -> Any:
    """The value of a schedule after `step` optimiser steps. A number is returned unchanged."""
    return value(step) if callable(value) else value


def elbo_terms(trace: Trace, x: Tensor, kl: Callable[[Latent], Tensor] = Latent.kl) -> dict[str, Tensor]:
    """elbo = -(rate + distortion), (B,) each, means over samples. Several latents also have rate_1, rate_2, ..."""
    distortion = -over_samples(trace.likelihood.log_prob(x))
    rates = [over_samples(kl(latent)) for latent in trace.latents]
    rate = reduce(torch.add, rates)
    each = {f"rate_{i}": rates[i - 1] for i in range(1, 1 + len(rates)) if len(rates) > 1}
    return {"elbo": -(distortion + rate), "rate": rate, "distortion": distortion, **each}


def over_samples(values: Tensor) -> Tensor:
    """The mean over samples, (K, B) -> (B,). For one sample it only removes the axis, which is faster."""
    return values.squeeze(0) if len(values) == 1 else values.mean(0)


def defined_terms(trace: Trace, x: Tensor) -> dict[str, Tensor]:
    """The finite terms of `elbo_terms`. For a point mass, this is only the distortion."""
    terms = elbo_terms(trace, x)
    points = any(isinstance(latent.q, Delta) for latent in trace.latents)
    return {"distortion": terms["distortion"]} if points else terms


def only_latent(trace: Trace, objective: Objective) -> Latent:
    """The latent of a model with one stochastic layer. Raises PartsError if there are several latents."""
    if len(trace.latents) != 1:
        wrong = f"{type(objective).__name__} is defined for one code, and this model has {len(trace.latents)}"
        raise PartsError(f"{wrong}: use a model with one latent layer and no blocks")
    return trace.latents[0]
