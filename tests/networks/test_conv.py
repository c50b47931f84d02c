"""Convolutional networks: shapes, settings and gradients."""

import pytest
import torch
from torch import Size, nn

from vaelab.networks import ConvDecoder, ConvEncoder


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (2, 29, 15), (1, 7, 4)])
@pytest.mark.parametrize("num_blocks", [0, 2])
def test_conv_shapes(image_shape: tuple[int, int, int], num_blocks: int) -> None:
    size, (_, height, width) = Size(image_shape), image_shape
    encoder, decoder = ConvEncoder(size, num_blocks=num_blocks), ConvDecoder(4, size, num_blocks=num_blocks)
    assert encoder(torch.rand(3, *size)).shape == (3, 256)
    assert (encoder.out_features, encoder.map_shape) == (256, None)
    assert decoder(torch.rand(3, 4)).shape == (3, *size)

    encoder = ConvEncoder(size, channels=[4, 6], hidden=[], num_blocks=num_blocks)
    assert encoder.map_shape == (6, height // 4, width // 4)
    assert encoder(torch.rand(3, *size)).shape == (3, encoder.out_features) == (3, encoder.map_shape.numel())
    code = Size((5, *encoder.map_shape[1:]))
    decoder = ConvDecoder(code, size, channels=[6, 4], num_blocks=num_blocks)
    assert decoder(torch.rand(3, *code)).shape == (3, *size)


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 1}, {"num_blocks": 1, "norm": "batch"}, {"hidden": []}])
def test_gradients_reach_every_parameter_of_a_convolutional_network(settings: dict) -> None:
    settings = {"activation": "tanh", "hidden": [6]} | settings
    _gradients(ConvEncoder(Size((2, 9, 8)), [4, 5], **settings), torch.randn(5, 2, 9, 8))
    _gradients(ConvDecoder(3, Size((2, 9, 8)), [5, 4], **settings), torch.randn(5, 3))
    _gradients(ConvDecoder(Size((3, 2, 2)), Size((2, 9, 8)), [5, 4], **settings), torch.randn(5, 3, 2, 2))


def _gradients(network: nn.Module, x: torch.Tensor) -> None:
    out = network(x)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


def test_a_residual_block_adds_to_its_input() -> None:
    plain, deep = ConvEncoder(Size((1, 8, 8)), [3], []), ConvEncoder(Size((1, 8, 8)), [3], [], num_blocks=1)
    deep.layers[0].load_state_dict(plain.layers[0].state_dict())
    x, block = torch.rand(2, 1, 8, 8), [*deep.layers[1]]
    h = plain.layers[0](x)
    torch.testing.assert_close(deep(x), (h + block[3](block[1](h.relu()).relu())).relu().flatten(1))
    assert (block[1].kernel_size, block[3].kernel_size) == ((3, 3), (1, 1))


def test_the_signal_keeps_its_size() -> None:
    """The mean square stays within a factor of three; torch's default weights would lose a factor of 200."""
    encoder, decoder = ConvEncoder(Size((3, 32, 32)), [32, 64, 64]), ConvDecoder(9, Size((32, 32, 32)))
    assert 1 / 3 < encoder(torch.randn(50, 3, 32, 32)).square().mean() < 3
    assert 1 / 3 < decoder(torch.randn(50, 9)).square().mean() < 3


def test_conv_norm_stands_after_each_convolution_but_the_last() -> None:
    kinds = [type(layer).__name__ for layer in ConvDecoder(Size((3, 2, 2)), Size((1, 8, 8)), norm="batch").layers]
    up = ["ReLU", "ConvTranspose2d"]
    assert kinds == ["Conv2d", "BatchNorm2d", *up, "BatchNorm2d", *up]
    kinds = [type(layer).__name__ for layer in ConvEncoder(Size((1, 8, 8)), norm="batch").layers]
    assert kinds == [*["Conv2d", "BatchNorm2d", "ReLU"] * 2, "Flatten", "Linear", "BatchNorm1d", "ReLU"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"channels": []}, r"channels=\[\]: a list of whole numbers above zero"),
        ({"channels": [8, 0]}, r"channels=\[8, 0\]: a list of whole"),
        ({"channels": 8}, "channels=8: a list of whole"),
        (
            {"channels": [2] * 4},
            r"channels=\[2, 2, 2, 2\] halve 4 times, too often for 8 x 9 pixels: any size from 16 x 16 pixels on "
            "works, or keep 3 of these channels",
        ),
        ({"num_blocks": -1}, "num_blocks=-1: a whole number, at least 0"),
        ({"norm": "layer"}, "norm=layer: choose one of none, batch"),
        ({"activation": "gelu"}, "activation=gelu: choose"),
        ({"hidden": [0]}, "a list of whole numbers above zero is needed"),
    ],
)
def test_convolutional_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ConvEncoder(Size((1, 8, 9)), **settings)
    with pytest.raises(ValueError, match=sentence):
        ConvDecoder(2, Size((1, 8, 9)), **settings)


def test_a_map_has_to_grow_to_the_image() -> None:
    with pytest.raises(
        ValueError,
        match=r"channels=\[64, 32\] turns a map of \(2, 2\) into images of \(8, 9\), and the map is \(4, 4\)",
    ):
        ConvDecoder(Size((2, 4, 4)), Size((1, 8, 9)))
