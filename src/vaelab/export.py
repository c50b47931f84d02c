"""What of a run can be given away: weights, ONNX graphs that agree with torch, a model card.

encoder.onnx: x -> E_q[z | x],     decoder.onnx: z -> E[x | z]
"""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaelab.errors import NotOfferedError, UserError
from vaelab.files import write_atomically

TOLERANCE = 1e-3  # of ONNX against torch, in units of code and pixel, or of their largest value where that is above 1
PICTURES = {"reconstructions.png": "images beside their reconstructions", "samples.png": "samples"}  # name, caption
HUB = {"MNIST": "ylecun/mnist", "MNIST-5k": "ylecun/mnist", "FashionMNIST": "zalando-datasets/fashion_mnist"}
NO_MEAN = "its posterior has no mean in closed form, and model.encode averages 64 samples"
LOCAL = ("data.root=", "hydra.", "trainer.accelerator=")  # overrides that are this machine's alone
CARD = """---
library_name: vaelab
tags: [autoencoder, onnx]{hub}
---
# {name}, trained on {dataset}

Images of {height} x {width} pixels to codes of {dim} numbers and back, {parameters:,} parameters. Made by VAE Lab
{version}, `{command}`.

{pictures}

## Load it

```python
from vaelab import load_run

model = load_run("this/folder")
```

`model.encode(x{y})` turns images x ({shape}), values from 0 to 1, into codes, `model.decode(z{y}).mean` codes into
images.{more}

## ONNX

| file | in | out | largest difference from torch |
|---|---|---|---|
{graphs}

```python
import onnxruntime

{use}
```

{note}

## Figures

{figures}

## Parts

| part | |
|---|---|
{parts}

## Limits

{limits}
"""


def check(folder: Path) -> None:
    """Raise ValueError where a package for ONNX is missing, or `folder` holds something else than an export."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"an export needs {', '.join(missing)}, not installed here: pip install -e '.[export]'")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds something else than an export: output=FOLDER chooses another place")


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files, in place of an earlier export's; config.json last, without which the rest is no model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "encoder.onnx", *PICTURES):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(files, key="config.json".__eq__):
        write_atomically(folder / name, files[name])


def weights(model: nn.Module) -> bytes:
    """The state dict, as safetensors."""
    from safetensors.torch import save

    state = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    return save(state, {"format": "pt", "vaelab": metadata.version("vaelab")})


def pictures(run: Path) -> dict[str, bytes]:
    """The run's own pictures, as far as there are any."""
    found = ((name, run / "figures" / name) for name in PICTURES)
    return {name: path.read_bytes() for name, path in found if path.is_file()}


class Graph(NamedTuple):
    """An ONNX file: what goes in and comes out, and how far from torch that was at most."""

    content: bytes
    inputs: list[str]
    outputs: list[str]
    difference: float


class _Part(nn.Module):
    """A function of the model as a module that holds its weights, which is what torch exports."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], model: Any) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, given: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.function(self.model, given, y)


def encoder(model: Any, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
    """Codes (B, D) of images (B, C, H, W), and their standard deviations where q is a factorised Gaussian."""
    q = _posterior(model, x, y)
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return q.mean, q.base_dist.stddev
    return (model.encode(x, y),)


def decoder(model: Any, z: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
    """Mean images (B, C, H, W) of codes (B, D)."""
    return (model.decode(z, y).mean,)


def _posterior(model: Any, x: Tensor, y: Tensor | None = None) -> Any:
    """q(z | x), or None for a model that has none and encodes all the same."""
    with contextlib.suppress(NotOfferedError):
        return model.infer(x, y)


def _has_mean(q: Any) -> bool:
    try:
        return q is None or q.mean is not None
    except NotImplementedError:
        return False


@torch.no_grad()
def graphs(model: Any) -> dict[str, Graph]:
    """The model's encoder and decoder, for any batch size; labels go in where it is conditioned on them.

    No encoder where q has no mean in closed form: `encode` averages draws, which depend on the place in the batch.
    Raises ValueError for what ONNX cannot express, and for a graph that differs from torch at one image or at seven.
    """
    ink = torch.full((7, *model.image_shape), 0.13)  # a digit's share
    x = torch.bernoulli(ink, generator=torch.Generator().manual_seed(0))
    labels = {"label": torch.arange(7) % model.num_classes} if model.num_classes else {}
    made = {}
    if _has_mean(_posterior(model, x, *labels.values())):
        made["encoder.onnx"] = _graph(encoder, model, {"image": x, **labels}, ["code", "std"])
    z = model.encode(x, *labels.values())
    made["decoder.onnx"] = _graph(decoder, model, {"code": z, **labels}, ["image"])
    return made


def _graph(function: Any, model: Any, inputs: dict[str, Tensor], outputs: list[str]) -> Graph:
    """Trace a batch of three, compare one and seven."""
    import onnxruntime

    part, name = _Part(function, model).eval(), function.__name__
    expected = {size: part(*(given[:size] for given in inputs.values())) for size in (1, 7)}
    outputs = outputs[: len(expected[1])]
    batch, options = torch.export.Dim("batch"), onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is raised, and said once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about names that it gave
            program: Any = torch.onnx.export(
                part,
                tuple(given[:3] for given in inputs.values()),
                input_names=[*inputs],
                output_names=outputs,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with the folders of this machine
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
            if not gap <= TOLERANCE * max(1.0, most):  # nor if it is no number
                raise UserError(f"as ONNX the {name} differs from torch by {gap:.1e}, so nothing was written")
            difference = max(difference, gap)
    return Graph(content, [*inputs], outputs, difference)


def card(run: Path, config: dict[str, Any], model: Any, made: dict[str, Graph]) -> str:
    """The model card, Markdown: how to load the model, and what the run's own files say of it."""
    metrics, evaluation, record = (_read(run / f"{name}.json") for name in ("metrics", "evaluation", "run"))
    dataset = metrics.get("protocol", {}).get("dataset", config["data"]["dataset"])
    typed = [word for start in record.get("starts", [])[:1] for word in start["overrides"]]
    channels, height, width = model.image_shape
    y, label = (", y", ', "label": y') if model.num_classes else ("", "")
    use = [f'onnxruntime.InferenceSession("decoder.onnx").run(["image"], {{"code": z{label}}})']
    note = f"Arrays of any batch size: images x (B, {channels}, {height}, {width}) and codes z (B, {model.latent_dim})"
    note += " of float32" + (", labels y (B,) of int64." if label else ".")
    if encoder := made.get("encoder.onnx"):
        use = [f'onnxruntime.InferenceSession("encoder.onnx").run(["code"], {{"image": x{label}}})', *use]
        note += " `std` is the posterior's standard deviation." if "std" in encoder.outputs else ""
    else:
        note += f" There is no encoder: {NO_MEAN}."
    more = f" `model.sample(16{y}).mean` makes new ones." if model.prior else ""
    more += f" Labels y (B,) are whole numbers below {model.num_classes}." if label else ""
    return CARD.format(
        hub=f"\ndatasets: [{HUB[dataset]}]" if dataset in HUB else "",
        name=config.get("name", "model"),
        dataset=dataset,
        height=height,
        width=width,
        dim=model.latent_dim,
        parameters=sum(weight.numel() for weight in model.parameters()),
        version=metadata.version("vaelab"),
        command=" ".join(["python train.py", *(word for word in typed if not word.startswith(LOCAL))]),
        pictures="\n\n".join(
            f"![{PICTURES[name]}]({name})\n*At the end of training: {PICTURES[name]}.*" for name in pictures(run)
        ),
        y=y,
        shape=", ".join(map(str, ("B", *model.image_shape))),
        more=more,
        graphs="\n".join(
            f"| `{name}` | {', '.join(graph.inputs)} | {', '.join(graph.outputs)} | {graph.difference:.1e} |"
            for name, graph in made.items()
        ),
        use="\n".join(use),
        note=note,
        figures="\n\n".join(_figures(metrics, evaluation)) or "None were recorded.",
        parts="\n".join(f"| {name} | {part} |" for name, part in _parts(config)),
        limits="\n".join(f"* {limit}" for limit in _limits(config, model, dataset)),
    )


def _read(path: Path) -> dict[str, Any]:
    """A record of the run; empty where it has none."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def _figures(metrics: dict[str, Any], evaluation: dict[str, Any]) -> Iterator[str]:
    """Protocols and tables of what train.py and evaluate.py measured on the test images."""
    if metrics:
        protocol, test = metrics["protocol"], metrics["test"]
        counts = f"{protocol['images']['train']:,} training and {protocol['images']['test']:,} test images"
        unit = metrics["unit"] if "squared_error" in test else metrics["unit"].split(";")[0]
        yield f"{protocol['dataset']}, {counts}, binarization {protocol['binarization']['test']}; {unit}."
        yield "| by train.py | |\n|---|---|\n" + "\n".join(f"| {name} | {test[name]:.5g} |" for name in test)
    if evaluation:
        figures, errors = evaluation["figures"], evaluation["standard_errors"]
        yield ", ".join(f"{name} {value}" for name, value in evaluation["protocol"].items()) + "."
        spread = {name: f"± {error:.2g}" for name, error in errors.items()}
        rows = (f"| {name} | {value:.5g} | {spread.get(name, '')} |" for name, value in figures.items())
        yield "| by evaluate.py | | standard error over images |\n|---|---|---|\n" + "\n".join(rows)


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and settings of what the model is made of, and of what it was trained with."""
    yield "model", _part({"_target_": config["model"]["_target_"]}).rstrip("()")
    chosen = {**config["model"], **{name: config.get(name) for name in ("objective", "optimizer")}}
    yield from ((name, _part(value)) for name, value in chosen.items() if not name.startswith("_"))


def _part(value: Any) -> str:
    """A part as one would write it in Python, without the package's name."""
    if isinstance(value, list):
        return f"[{', '.join(map(_part, value))}]"
    if not isinstance(value, dict):
        return str(value)
    settings = ", ".join(f"{name}={_part(part)}" for name, part in value.items() if not name.startswith("_"))
    return f"{str(value.get('_target_', '')).rpartition('.')[2]}({settings})"


def _limits(config: dict[str, Any], model: Any, dataset: str) -> Iterator[str]:
    """What nobody who uses this model may miss."""
    likelihood, binarization = type(model.likelihood).__name__, config["data"]["binarization"]
    height, width = model.image_shape[1:]
    yield f"It knows {height} x {width} images like those of {dataset}, and makes something of any other."
    if dataset == "MNIST-5k":
        yield "MNIST-5k is 5,000 digits of MNIST's training set: figures on it compare with no published one."
    if binarization == "none" and likelihood.startswith("Bernoulli"):
        yield "A Bernoulli likelihood on grey levels is no density: its nats compare with no other likelihood's."
    if binarization in ("static", "dynamic"):
        yield "Test pixels are one seeded draw from the grey levels, not the published fixed file of binarised MNIST."
    if not model.prior:
        yield "There is nothing to sample from until a prior over the codes is learned."
    elif _part(config.get("objective", {})).startswith("Reconstruction"):
        yield "Nothing fitted the codes to the prior: samples are noise."
    yield f"No licence is stated: it is the publisher's to choose, and the terms of {dataset} are its makers'."
