"""Multilayer perceptrons: h_0 = x, h_{i+1} = activation(norm(W_i h_i + b_i)).

With gates, h_{i+1} = (W_i h_i + b_i) * sigmoid(V_i h_i + c_i), as in the published code of Tomczak & Welling 2018,
https://arxiv.org/abs/1705.07120
"""

import math
from collections.abc import Sequence

from torch import Size, Tensor, nn

from vaelab import checks

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "softplus": nn.Softplus}
NORMS = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def hidden_layers(
    in_features: int, hidden: Sequence[int], activation: str = "relu", gated: bool = False, norm: str = "none"
) -> list[nn.Module]:
    """Dense layers of widths `hidden`, each with a norm ("none", "batch", "layer") and an activation or a gate.

    The activation is "relu", "tanh", "silu" or "softplus". Raises UserError for an argument out of its range.
    """
    checks.widths(hidden=hidden)
    checks.one_of(tuple(ACTIVATIONS), activation=activation)
    checks.one_of(tuple(NORMS), norm=norm)
    checks.one_of((True, False), gated=gated)
    layers: list[nn.Module] = []
    for width in hidden:
        out_features = 2 * width if gated else width  # W and V are the two halves of one matrix
        layers.append(nn.Linear(in_features, out_features, bias=norm != "batch"))  # a batch norm would cancel the bias
        layers += [NORMS[norm](out_features)] if norm != "none" else []
        layers.append(nn.GLU() if gated else ACTIVATIONS[activation]())
        in_features = width
    return layers


class MLPEncoder(nn.Module):
    """Image (B, C, H, W) -> features (B, F), where F is the last width. Arguments are those of `hidden_layers`."""

    def __init__(
        self,
        image_shape: Size,
        hidden: Sequence[int] = (400,),
        activation: str = "relu",
        gated: bool = False,
        norm: str = "none",
    ) -> None:
        super().__init__()
        in_features = math.prod(image_shape)
        self.layers = nn.Sequential(nn.Flatten(), *hidden_layers(in_features, hidden, activation, gated, norm))
        self.out_features = hidden[-1] if hidden else in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MLPDecoder(nn.Module):
    """Code (N, D) -> likelihood parameters (N, P*C, H, W). Arguments are those of `hidden_layers`."""

    def __init__(
        self,
        in_features: int,
        out_shape: Size,
        hidden: Sequence[int] = (400,),
        activation: str = "relu",
        gated: bool = False,
        norm: str = "none",
    ) -> None:
        super().__init__()
        layers = hidden_layers(in_features, hidden, activation, gated, norm)
        output = nn.Linear(hidden[-1] if hidden else in_features, math.prod(out_shape))
        self.layers = nn.Sequential(*layers, output, nn.Unflatten(1, out_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)
