"""Convolutional networks: 4x4 convolutions of stride 2 reduce n pixels to floor(n / 2), transposed ones reverse this.

Residual blocks are x + conv1x1(relu(conv3x3(relu(x)))): van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Size, Tensor, nn

from vaelab import checks
from vaelab.errors import UserError
from vaelab.networks.mlp import ACTIVATIONS, hidden_layers


class ConvEncoder(nn.Module):
    """Image (B, C, H, W) -> features (B, F): strided convolutions, then dense layers.

    Without dense layers, the features are a flattened feature map of shape `map_shape` (C', h, w). With dense layers,
    `map_shape` is None. Raises UserError if the image is too small for the number of convolutions.
    """

    def __init__(
        self,
        image_shape: Size,
        channels: Sequence[int] = (32, 64),  # output channels of each convolution
        hidden: Sequence[int] = (256,),  # widths of the dense layers
        num_blocks: int = 0,  # residual blocks after each convolution
        activation: str = "relu",  # "relu", "tanh" or "silu"
        norm: str = "none",  # or "batch": batch norm after each convolution and dense layer
    ) -> None:
        super().__init__()
        smallest = _sizes(image_shape, channels, num_blocks, activation, norm)[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise((image_shape[0], *channels)):
            layers += _convolution(nn.Conv2d, before, after, 4, norm, stride=2, padding=1)
            layers += _residual_blocks(after, num_blocks, activation, norm)
        features = Size((channels[-1], *smallest))
        dense = hidden_layers(features.numel(), hidden, activation, norm=norm)
        self.layers = nn.Sequential(*layers, nn.Flatten(), *dense).apply(_start)
        self.out_features = hidden[-1] if hidden else features.numel()
        self.map_shape = None if hidden else features

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvDecoder(nn.Module):
    """Code (N, D) or map of codes (N, D, h, w) -> likelihood parameters (N, P*C, H, W): a ConvEncoder in reverse.

    A code goes through the dense layers. A map goes through a 3x3 convolution instead. Arguments and errors are those
    of ConvEncoder. It also raises UserError if a map does not grow to the size of the image.
    """

    def __init__(
        self,
        in_features: int | Size,
        out_shape: Size,
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (256,),
        num_blocks: int = 0,
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        smallest, *sizes = reversed(_sizes(out_shape, channels, num_blocks, activation, norm))
        if isinstance(in_features, int):
            shape = Size((channels[0], *smallest))
            layers = hidden_layers(in_features, hidden, activation, norm=norm)
            layers += [nn.Linear(hidden[-1] if hidden else in_features, shape.numel()), nn.Unflatten(1, shape)]
        elif in_features[1:] == smallest:
            layers = _convolution(nn.Conv2d, in_features[0], channels[0], 3, norm, padding=1)
        else:
            grown = f"a map of {tuple(smallest)} into images of {tuple(out_shape[1:])}"
            wrong = f"channels={list(channels)} turns {grown}, and the map is {tuple(in_features[1:])}"
            raise UserError(f"{wrong}: give encoder and decoder equally many channels")
        for before, after, (height, width) in zip(channels, (*channels[1:], out_shape[0]), sizes, strict=True):
            layers += _residual_blocks(before, num_blocks, activation, norm)
            last = (height, width) == out_shape[1:]
            padding = {"padding": 1, "output_padding": (height % 2, width % 2)}
            layers += _convolution(nn.ConvTranspose2d, before, after, 4, "none" if last else norm, stride=2, **padding)
        self.layers = nn.Sequential(*layers).apply(_start)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class _Residual(nn.Sequential):
    """x + conv1x1(activation(conv3x3(activation(x)))), (N, channels, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _residual_blocks(channels: int, num_blocks: int, activation: str, norm: str) -> list[nn.Module]:
    activate = ACTIVATIONS[activation]
    blocks = []
    for _ in range(num_blocks):
        inner = _convolution(nn.Conv2d, channels, channels, 3, norm, padding=1)
        blocks.append(_Residual(activate(), *inner, activate(), *_convolution(nn.Conv2d, channels, channels, 1, norm)))
    return [*blocks, activate()]


def _convolution(kind: type[nn.Module], before: int, after: int, kernel: int, norm: str, **settings: Any) -> list:
    layer = kind(before, after, kernel, bias=norm == "none", **settings)
    return [layer] if norm == "none" else [layer, nn.BatchNorm2d(after)]


def _start(layer: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan-in), set biases to zero: He et al. 2015, https://arxiv.org/abs/1502.01852"""
    # Torch's default shrinks the signal by sqrt(6) in each ReLU layer: the output is the mean image for many steps
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        transposed = isinstance(layer, nn.ConvTranspose2d)  # a fourth of its 4 x 4 weights add up in each output pixel
        fan_in = layer.weight[:, 0].numel() / 4 if transposed else layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _sizes(shape: Size, channels: Sequence[int], num_blocks: int, activation: str, norm: str) -> list[tuple[int, int]]:
    """Heights and widths of the image and after each convolution. Raises UserError for an argument out of its range."""
    checks.widths(1, channels=channels)
    checks.whole(0, num_blocks=num_blocks)
    checks.one_of(tuple(ACTIVATIONS), activation=activation)
    checks.one_of(("none", "batch"), norm=norm)
    height, width = shape[1:]
    sizes = [(height >> i, width >> i) for i in range(len(channels) + 1)]
    if 0 in sizes[-1]:
        wrong = f"channels={list(channels)} halve {len(channels)} times, too often for {height} x {width} pixels"
        least = 2 ** len(channels)
        most = min(height, width).bit_length() - 1
        fewer = f", or keep {most} of these channels" if most else ""
        raise UserError(f"{wrong}: any size from {least} x {least} pixels on works{fewer}")
    return sizes
