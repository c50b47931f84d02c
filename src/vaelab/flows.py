"""Normalising flows: z = f^-1(z_0) with z_0 ~ p_0, so log p(z) = log p_0(f(z)) + log |det df/dz|.

The transforms come from zuko. Importing zuko changes torch.distributions, so only functions that build flows import it.
"""

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from vaelab import checks
from vaelab.distributions import at_least_float32


def transforms(kind: str, features: int, context: int, num_transforms: int, hidden: Sequence[int]) -> nn.ModuleList:
    """Autoregressive transforms of z (..., features) given a context (..., context), in alternating order.

    * iaf: affine; samples take 1 pass, densities `features`: Kingma et al. 2016, https://arxiv.org/abs/1606.04934
    * maf: affine; densities take 1 pass, samples `features`: Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057
    * spline: rational-quadratic coupling; both take 2 passes: Durkan et al. 2019, https://arxiv.org/abs/1906.04032

    Raises UserError for an argument out of its range.
    """
    checks.one_of(("iaf", "maf", "spline"), kind=kind)
    checks.whole(0, num_transforms=num_transforms)
    checks.widths(hidden=hidden)
    import torch
    from zuko.flows import MaskedAutoregressiveTransform
    from zuko.lazy import LazyInverse
    from zuko.transforms import MonotonicRQSTransform

    settings: dict = {"features": features, "context": context, "hidden_features": hidden}
    if kind == "spline":
        bins = 8
        settings |= {"passes": 2, "univariate": MonotonicRQSTransform, "shapes": [(bins,), (bins,), (bins - 1,)]}
    layers = nn.ModuleList()
    for i in range(num_transforms):
        order = torch.arange(features)
        layer = MaskedAutoregressiveTransform(order=order.flip(0) if i % 2 else order, **settings)
        layer.hyper.register_forward_hook(_in_float32)
        layers.append(LazyInverse(layer) if kind == "iaf" else layer)
    return layers


def flow(layers: nn.ModuleList, base: Distribution, context: Tensor | None = None) -> Distribution:
    """The distribution of samples of `base` after the transforms. Without transforms it is `base`."""
    if not len(layers):
        return base
    from zuko.transforms import ComposedTransform

    return _flow_type()(ComposedTransform(*(layer(context) for layer in layers)), base)


@functools.cache
def _flow_type() -> Any:
    import torch
    from zuko.distributions import NormalizingFlow

    class Flow(NormalizingFlow):
        def log_prob(self, x: Tensor) -> Tensor:
            """log p(x) of x (..., D). x is expanded first: mixtures broadcast x, but zuko's affine transform cannot."""
            return super().log_prob(x.expand(torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape)))

    return Flow


def _in_float32(module: nn.Module, inputs: tuple[Tensor], parameters: Tensor) -> Tensor:  # noqa: ARG001
    """Convert a transform's parameters to float32, because autocast may run its network in half precision."""
    return at_least_float32(parameters)
