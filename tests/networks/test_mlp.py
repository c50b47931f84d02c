"""Multilayer perceptrons: shapes, settings and gradients."""

import pytest
import torch
from torch import Size, nn

from vaelab.networks import MLPDecoder, MLPEncoder


def test_mlp_shapes() -> None:
    encoder, decoder = (
        MLPEncoder(Size((3, 8, 6)), [20, 10]),
        MLPDecoder(4, Size((6, 8, 6)), [10, 20], activation="tanh"),
    )
    assert encoder(torch.rand(5, 3, 8, 6)).shape == (5, 10)
    assert encoder.out_features == 10
    assert decoder(torch.rand(5, 4)).shape == (5, 6, 8, 6)


def test_mlp_without_hidden_layers_is_linear() -> None:
    encoder = MLPEncoder(Size((1, 2, 2)), [])
    assert encoder.out_features == 4
    assert torch.equal(encoder(torch.arange(4.0).view(1, 1, 2, 2)), torch.arange(4.0).view(1, 4))


@pytest.mark.parametrize("hidden", [[0], [10, -1], [2.5], ["a"]])
def test_mlp_widths(hidden: list) -> None:
    with pytest.raises(ValueError, match="a list of whole numbers above zero is needed"):
        MLPEncoder(Size((1, 2, 2)), hidden)


def test_mlp_activation() -> None:
    with pytest.raises(ValueError, match="activation=gelu: choose one of relu, tanh, silu"):
        MLPDecoder(2, Size((1, 2, 2)), activation="gelu")


def test_gates_take_the_place_of_the_activation() -> None:
    layer, gate = MLPEncoder(Size((1, 2, 3)), [5], gated=True).layers[1:]
    x = torch.randn(4, 6)
    (W, V), (b, c) = layer.weight.chunk(2), layer.bias.chunk(2)  # noqa: N806
    torch.testing.assert_close(gate(layer(x)), (x @ W.T + b) * torch.sigmoid(x @ V.T + c))
    assert MLPDecoder(3, Size((1, 2, 3)), [7, 5], gated=True)(torch.randn(4, 3)).shape == (4, 1, 2, 3)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_mlp_norm_stands_before_the_activation(norm: str) -> None:
    encoder, x = MLPEncoder(Size((1, 4, 4)), [50], activation="tanh", norm=norm), torch.randn(200, 1, 4, 4)
    normalised = encoder.layers[:-1](x)
    dim = 0 if norm == "batch" else 1
    torch.testing.assert_close(normalised.mean(dim), torch.zeros(normalised.shape[1 - dim]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        normalised.var(dim, correction=0), torch.ones(normalised.shape[1 - dim]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(encoder(x), normalised.tanh())


@pytest.mark.parametrize("settings", [{}, {"gated": True}, {"norm": "batch"}, {"norm": "layer"}])
def test_gradients_reach_every_parameter_of_an_mlp(settings: dict) -> None:
    _gradients(MLPEncoder(Size((2, 8, 8)), [9, 7], activation="tanh", **settings), torch.randn(5, 2, 8, 8))
    _gradients(MLPDecoder(3, Size((2, 8, 8)), [9, 7], activation="tanh", **settings), torch.randn(5, 3))


def _gradients(network: nn.Module, x: torch.Tensor) -> None:
    out = network(x)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"norm": "group"}, "norm=group: choose one of none, batch, layer"), ({"gated": "yes"}, "gated=yes")],
)
def test_mlp_settings_out_of_range(settings: dict, sentence: str) -> None:
    for build in (lambda: MLPEncoder(Size((1, 2, 2)), **settings), lambda: MLPDecoder(2, Size((1, 2, 2)), **settings)):
        with pytest.raises(ValueError, match=sentence):
            build()
