"""Multilayer perceptrons: h_0 = x, h_{i+1} = activation(W_i h_i + b_i)."""

import math
from collections.abc import Sequence

from torch import Size, Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def _hidden_layers(in_features: int, hidden: Sequence[int], activation: str) -> list[nn.Module]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation} is unknown: choose one of {', '.join(ACTIVATIONS)}")
    if isinstance(hidden, int | str) or not all(type(width) is int and width > 0 for width in hidden):
        raise ValueError(f"hidden={hidden}: the widths of hidden layers are whole numbers above zero, such as [400]")
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), ACTIVATIONS[activation]()]
        in_features = width
    return layers


class MLPEncoder(nn.Module):
    """Image (B, C, H, W) -> features (B, F), F = hidden[-1].

    Raises:
        ValueError: a width is not a whole number above zero, or the activation is unknown.
    """

    def __init__(self, image_shape: Size, hidden: Sequence[int] = (400,), activation: str = "relu") -> None:
        super().__init__()
        in_features = math.prod(image_shape)
        self.layers = nn.Sequential(nn.Flatten(), *_hidden_layers(in_features, hidden, activation))
        self.out_features = hidden[-1] if hidden else in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MLPDecoder(nn.Module):
    """Code (N, D) -> likelihood parameters (N, P*C, H, W).

    Raises:
        ValueError: a width is not a whole number above zero, or the activation is unknown.
    """

    def __init__(
        self, in_features: int, out_shape: Size, hidden: Sequence[int] = (400,), activation: str = "relu"
    ) -> None:
        super().__init__()
        last = hidden[-1] if hidden else in_features
        self.layers = nn.Sequential(
            *_hidden_layers(in_features, hidden, activation),
            nn.Linear(last, math.prod(out_shape)),
            nn.Unflatten(1, out_shape),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)
