import pytest
import torch
from torch import Size

from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal


def test_mlp_shapes() -> None:
    encoder, decoder = MLPEncoder(Size((3, 8, 6)), [20, 10]), MLPDecoder(4, Size((6, 8, 6)), [10, 20], "tanh")
    assert encoder(torch.rand(5, 3, 8, 6)).shape == (5, 10)
    assert encoder.out_features == 10
    assert decoder(torch.rand(5, 4)).shape == (5, 6, 8, 6)


def test_mlp_without_hidden_layers_is_linear() -> None:
    encoder = MLPEncoder(Size((1, 2, 2)), [])
    assert encoder.out_features == 4
    assert torch.equal(encoder(torch.arange(4.0).view(1, 1, 2, 2)), torch.arange(4.0).view(1, 4))


@pytest.mark.parametrize("hidden", [[0], [10, -1], [2.5], ["a"]])
def test_mlp_widths(hidden: list) -> None:
    with pytest.raises(ValueError, match="widths of hidden layers are whole numbers above zero"):
        MLPEncoder(Size((1, 2, 2)), hidden)


def test_mlp_activation() -> None:
    with pytest.raises(ValueError, match="activation=gelu is unknown: choose one of relu, tanh, silu"):
        MLPDecoder(2, Size((1, 2, 2)), activation="gelu")


def test_diagonal_gaussian_reads_mean_and_log_variance() -> None:
    posterior = DiagonalGaussian(7, 3)
    h = torch.randn(5, 7)
    mean, log_variance = posterior.linear(h).chunk(2, -1)
    q = posterior(h)
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, log_variance.exp())


def test_prior_scale() -> None:
    p = StandardNormal(3, 2.0)(lambda: None)
    assert (p.batch_shape, p.event_shape) == ((), (3,))
    assert p.stddev.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="the prior's scale is a number above zero, not 0"):
        StandardNormal(3, 0)
