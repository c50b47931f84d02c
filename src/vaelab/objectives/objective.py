"""The interface of every objective."""

from torch import Tensor, nn

from vaelab.trace import GenerativeModel


class Objective(nn.Module):
    """Scores a model on a batch; may own parameters of its own.

    `monitor` names the term that checkpoints and schedulers watch; lower is better.
    """

    monitor: str = "loss"

    def forward(
        self, model: GenerativeModel, x: Tensor, y: Tensor | None = None, step: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms in nats, one value per image.

        Args:
            x: images (B, C, H, W); y: labels (B,) for conditional models.
            step: optimiser steps taken so far, a 0-dim tensor; None stands for a schedule's final value.

        Returns:
            {"loss": (B,), ...}; a figure that is undefined is absent.
        """
        raise NotImplementedError
