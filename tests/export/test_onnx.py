"""ONNX graphs agree with torch or are refused."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import compose_config
from omegaconf import OmegaConf
from torch import nn

from vaelab import export as exports
from vaelab.likelihoods import Autoregressive, Bernoulli, ContinuousBernoulli, Gaussian
from vaelab.models import VAE, VQVAE, LadderVAE
from vaelab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder, PixelCNN
from vaelab.posteriors import DiagonalGaussian, FlowPosterior
from vaelab.priors import StandardNormal

SHAPE = (1, 6, 5)


def build(**parts: Any) -> VAE:
    """A small VAE with random weights."""
    chosen = {
        "encoder": partial(MLPEncoder, hidden=[7], norm="batch"),
        "posterior": DiagonalGaussian,
        "prior": StandardNormal,
        "decoder": partial(MLPDecoder, hidden=[7]),
        "likelihood": Bernoulli(),
    }
    return VAE(3, SHAPE, **chosen | parts).eval()


def onnx(graph: exports.Graph, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(graph.content)
    names = [given.name for given in session.get_inputs()]
    assert names == graph.inputs
    assert [result.name for result in session.get_outputs()] == graph.outputs
    return [
        torch.from_numpy(array) for array in session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
    ]


def vq() -> nn.Module:
    parts = {"encoder": partial(ConvEncoder, channels=[4], hidden=[]), "decoder": partial(ConvDecoder, channels=[4])}
    return VQVAE(2, 5, SHAPE, likelihood=Gaussian(), **parts).eval()


def autoregressive() -> VAE:
    network = partial(PixelCNN, channels=4, kernel_size=3, num_blocks=1)
    return build(likelihood=Autoregressive(SHAPE, network))


def test_pixels_without_a_mean_have_no_decoder_and_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaelab.export.onnx._graph", lambda *_: exports.Graph(b"graph", ["image"], ["code"], 2e-7))
    model = autoregressive()
    made = exports.graphs(model)
    assert [*made] == ["encoder.onnx"]
    config: Any = OmegaConf.to_container(compose_config(Path("data")), resolve=True)
    card = exports.card(Path("nowhere"), config, model, made)
    assert "`model.decode(z).sample()` turns" in card
    assert f"There is no decoder: {exports.NO_IMAGE}." in card
    assert 'InferenceSession("decoder.onnx")' not in card
    with pytest.raises(ValueError, match=r"page=true needs decoder.onnx, but p\(x \| z\) of autoregressive pixels has"):
        exports.check_page(model)


def ladder() -> nn.Module:
    encoder, decoder = partial(MLPEncoder, hidden=[6]), partial(MLPDecoder, hidden=[6])
    return LadderVAE([2, 3], SHAPE, encoder, encoder, StandardNormal, decoder, Bernoulli()).eval()


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (partial(build, num_classes=4, likelihood=ContinuousBernoulli()), ["code", "std"]),
        (vq, ["code"]),
        (ladder, ["code", "std"]),
    ],
    ids=["conditional", "vq", "ladder"],
)
def test_graphs_agree_with_torch(make: Callable[[], Any], outputs: list[str]) -> None:
    """The graphs agree at a batch size that the export did not use."""
    torch.distributions.Distribution.set_default_validate_args(False)
    model = make()
    graphs = exports.graphs(model)
    x, y = torch.rand(13, *SHAPE), (torch.arange(13) % 4,) * bool(model.num_classes)
    assert graphs["encoder.onnx"].inputs == ["image", "label"][: 1 + len(y)]
    assert graphs["encoder.onnx"].outputs == outputs
    code, *std = onnx(graphs["encoder.onnx"], x, *y)
    torch.testing.assert_close(code, model.encode(x, *y), rtol=0, atol=1e-5)
    if std:
        torch.testing.assert_close(std[0], model.infer(x, *y).stddev, rtol=0, atol=1e-5)
    (image,) = onnx(graphs["decoder.onnx"], code, *y)
    torch.testing.assert_close(image, model.decode(code, *y).mean, rtol=0, atol=1e-4)
    assert all(0 <= graph.difference < 1e-4 for graph in graphs.values())


def test_a_posterior_without_a_mean_has_no_encoder() -> None:
    torch.distributions.Distribution.set_default_validate_args(False)
    model = build(posterior=partial(FlowPosterior, num_transforms=1, hidden=[4]))
    graphs = exports.graphs(model)
    assert list(graphs) == ["decoder.onnx"]
    card = exports.card(Path("nowhere"), config_of(), model, graphs)
    assert f"There is no encoder: {exports.NO_MEAN}." in card
    assert "encoder.onnx" not in card


def test_graphs_that_differ_are_refused(run: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaelab.export.onnx.TOLERANCE", -1.0)
    code, _ = command(f"run={run}")
    assert re.fullmatch(r"error: the ONNX encoder differs from torch by \S+, so nothing was written", code)
    assert not (run / "export").exists()


def test_what_onnx_cannot_express_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, *sizes: int) -> None:
            super().__init__()
            self.wrapped = DiagonalGaussian(*sizes)

        def forward(self, h: torch.Tensor) -> Any:
            return self.wrapped(torch.linalg.eigvals(h.unsqueeze(-1) * h.unsqueeze(-2)).real)

    with pytest.raises(ValueError, match=r"\AONNX cannot express the encoder, so nothing was written: [^\n]+\Z"):
        exports.graphs(build(posterior=Odd))


def config_of(*overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose_config(Path("data"), *overrides), resolve=True)
    return config
