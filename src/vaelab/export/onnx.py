"""ONNX graphs of a model, compared with torch before they are written.

encoder.onnx: x -> E_q[z | x],     decoder.onnx: z -> E[x | z]
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaelab.distributions import is_factorised
from vaelab.errors import NotOfferedError, UserError
from vaelab.interfaces import has_mean

TOLERANCE = 1e-3  # largest difference from torch; relative if the largest value is above 1
NO_MEAN = "its posterior has no mean in closed form, and model.encode averages 64 samples"
NO_IMAGE = "p(x | z) of autoregressive pixels has no mean in closed form, and a graph draws no samples"


class Graph(NamedTuple):
    """An ONNX file, the names of its inputs and outputs, and its largest difference from torch."""

    content: bytes
    inputs: list[str]
    outputs: list[str]
    difference: float


class _Part(nn.Module):
    """A function of the model as a module with the model's weights, because torch exports modules."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], model: Any) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, given: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.function(self.model, given, y)


def encoder(model: Any, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
    """Codes (B, D) of images (B, C, H, W), and their standard deviations if q is a factorised Gaussian."""
    q = _posterior(model, x, y)
    if is_factorised(q):
        return q.mean, q.base_dist.stddev
    return (model.encode(x, y),)


def decoder(model: Any, z: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
    """Mean images (B, C, H, W) of codes (B, D)."""
    return (model.decode(z, y).mean,)


def _posterior(model: Any, x: Tensor, y: Tensor | None = None) -> Any:
    """q(z | x), or None if the model encodes without one."""
    with contextlib.suppress(NotOfferedError):
        return model.infer(x, y)


def _has_mean(q: Any) -> bool:
    try:
        return q is None or q.mean is not None
    except NotImplementedError:
        return False


@torch.no_grad()
def graphs(model: Any) -> dict[str, Graph]:
    """The encoder and the decoder of a model, for any batch size. A conditional model also takes labels.

    There is no encoder if q has no mean in closed form, because `encode` then averages draws, and no decoder if
    p(x | z) has no mean. Raises UserError for a part that ONNX cannot express, and for a graph that differs from torch
    at one image or at seven.
    """
    ink = torch.full((7, *model.image_shape), 0.13)  # the mean pixel of a digit
    x = torch.bernoulli(ink, generator=torch.Generator().manual_seed(0))
    labels = {"label": torch.arange(7) % model.num_classes} if model.num_classes else {}
    made = {}
    if _has_mean(_posterior(model, x, *labels.values())):
        made["encoder.onnx"] = _graph(encoder, model, {"image": x, **labels}, ["code", "std"])
    if has_mean(model.likelihood):
        z = model.encode(x, *labels.values())
        made["decoder.onnx"] = _graph(decoder, model, {"code": z, **labels}, ["image"])
    return made


def _graph(function: Any, model: Any, inputs: dict[str, Tensor], outputs: list[str]) -> Graph:
    """Trace a batch of three images, and compare one image and seven with torch."""
    import onnxruntime

    part, name = _Part(function, model).eval(), function.__name__
    expected = {size: part(*(given[:size] for given in inputs.values())) for size in (1, 7)}
    outputs = outputs[: len(expected[1])]
    batch, options = torch.export.Dim("batch"), onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own choice of names
            program: Any = torch.onnx.export(
                part,
                tuple(given[:3] for given in inputs.values()),
                input_names=[*inputs],
                output_names=outputs,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces name local folders
        content = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found = {size: session.run(outputs, {k: v[:size].numpy() for k, v in inputs.items()}) for size in expected}
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"ONNX cannot express the {name}, so nothing was written: {why}") from error
    difference = 0.0
    for size in found:
        for ours, theirs in zip(map(torch.from_numpy, found[size]), expected[size], strict=True):
            gap, most = (ours - theirs).abs().max().item(), theirs.abs().max().item()
            if not gap <= TOLERANCE * max(1.0, most):  # also true if the gap is not a number
                raise UserError(f"the ONNX {name} differs from torch by {gap:.1e}, so nothing was written")
            difference = max(difference, gap)
    return Graph(content, [*inputs], outputs, difference)
