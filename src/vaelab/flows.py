"""Normalising flows: z = f^-1(z_0) with z_0 ~ p_0, so that log p(z) = log p_0(f(z)) + log |det df/dz|.

The transforms are zuko's. It changes torch.distributions when it is imported, so it is imported where a flow is built.
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

    * iaf: affine; samples in one pass, inverts in `features` passes: Kingma et al. 2016, https://arxiv.org/abs/1606.04934
    * maf: affine; its density takes one pass, a sample `features`: Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057
    * spline: rational-quadratic, coupling halves; two passes either way: Durkan et al. 2019, https://arxiv.org/abs/1906.04032
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
    """The base distribution carried through the transforms; the base itself where there are none."""
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
            """Of x (..., D): expanded first, since zuko's affine transform cannot broadcast x, as a mixture has to."""
            return super().log_prob(x.expand(torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape)))

    return Flow


def _in_float32(module: nn.Module, inputs: tuple[Tensor], parameters: Tensor) -> Tensor:  # noqa: ARG001
    """A network may run in half precision; the density it parametrises does not."""
    return at_least_float32(parameters)
