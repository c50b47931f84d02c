"""Multilayer perceptrons: h_0 = x, h_{i+1} = activation(norm(W_i h_i + b_i)).

Gated, h_{i+1} = (W_i h_i + b_i) * sigmoid(V_i h_i + c_i), as in the code of the VampPrior: Tomczak & Welling 2018,
https://arxiv.org/abs/1705.07120
"""

import math
from collections.abc import Sequence

from torch import Size, Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
NORMS = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def activation_named(name: str) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name} is unknown: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def hidden_layers(
    in_features: int, hidden: Sequence[int], activation: str, gated: bool = False, norm: str = "none"
) -> list[nn.Module]:
    """Dense layers of the widths `hidden`, one after another."""
    activate = nn.GLU if gated else activation_named(activation)
    if type(gated) is not bool:
        raise ValueError(f"gated={gated}: hidden layers are gated or not, true or false")
    if norm not in NORMS:
        raise ValueError(f"norm={norm} is unknown: choose one of {', '.join(NORMS)}")
    if isinstance(hidden, int | str) or not all(type(width) is int and width > 0 for width in hidden):
        raise ValueError(f"hidden={hidden}: the widths of hidden layers are whole numbers above zero, such as [400]")
    layers: list[nn.Module] = []
    for width in hidden:
        out_features = 2 * width if gated else width  # W and V are one matrix, the halves of a gated linear unit
        layers.append(nn.Linear(in_features, out_features, bias=norm != "batch"))  # a batch norm takes biases out again
        layers += [NORMS[norm](out_features)] if norm != "none" else []
        layers.append(activate())
        in_features = width
    return layers


class MLPEncoder(nn.Module):
    """Image (B, C, H, W) -> features (B, F), F = hidden[-1].

    Args:
        hidden: widths of the hidden layers; none leave the pixels.
        activation: "relu", "tanh" or "silu".
        gated: gates take the place of the activation.
        norm: "none", "batch" or "layer", after each hidden linear layer.

    Raises:
        ValueError: an argument is none of these.
    """

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
    """Code (N, D) -> likelihood parameters (N, P*C, H, W); arguments as for MLPEncoder."""

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
        last = hidden[-1] if hidden else in_features
        self.layers = nn.Sequential(
            *hidden_layers(in_features, hidden, activation, gated, norm),
            nn.Linear(last, math.prod(out_shape)),
            nn.Unflatten(1, out_shape),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)
