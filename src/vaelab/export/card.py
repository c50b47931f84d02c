"""The model card of an export in Markdown: how to load the model, its metrics, its parts and its limits."""

import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from vaelab.export.files import PICTURES, pictures
from vaelab.export.onnx import NO_IMAGE, NO_MEAN, Graph
from vaelab.interfaces import draws_samples, has_mean
from vaelab.runs import find_caveats, foreign, read_json
from vaelab.text import code, rounded

HUB = {
    **dict.fromkeys(("MNIST", "MNIST-5k", "BinarizedMNIST"), "ylecun/mnist"),
    "FashionMNIST": "zalando-datasets/fashion_mnist",
}
LOCAL = ("data.root=", "data.path=", "hydra.", "resume=", "trainer.accelerator=")  # overrides for one machine only
PAGE = """

Open [`page.html`](page.html) in a browser to move codes, to walk from one test image to another, and to see where the
codes of test images lie. It runs the ONNX files offline, with ONNX Runtime Web."""
GRAPHS = """| file | in | out | largest difference from torch |
|---|---|---|---|
{rows}

```python
import onnxruntime

{use}
```

"""
CARD = """---
library_name: vaelab
tags: [autoencoder, onnx]{hub}
---
# {name}, trained on {dataset}

This model encodes images of {height} x {width} pixels as codes of {dim} numbers, and decodes them again. It has
{parameters:,} parameters. VAE Lab {version} trained it with {command}.

{pictures}

## Load it

```python
from vaelab import load_run

model = load_run("this/folder"{trust})
```

`model.encode(x{y})` turns images x ({shape}) with values from 0 to 1 into codes z. `model.decode(z{y}).{image}` turns
codes into images.{more}

## ONNX

{graphs}{note}

## Metrics

{metrics}

## Parts

| part | |
|---|---|
{parts}

## Limits

{limits}
"""


def card(run: Path, config: dict[str, Any], model: Any, made: dict[str, Graph], page: bool = False) -> str:
    """The model card of a run as Markdown. `made` holds the ONNX graphs by file name. Text from a run is code.

    `page` says that the export has page.html.
    """
    metrics, evaluation, record = (read_json(run / f"{name}.json") for name in ("metrics", "evaluation", "run"))
    dataset = metrics.get("protocol", {}).get("dataset", config["data"]["dataset"])
    channels, height, width = model.image_shape
    y, label = (", y", ', "label": y') if model.num_classes else ("", "")
    image = "mean" if has_mean(model.likelihood) else "sample()"
    use = []
    if "decoder.onnx" in made:
        use = [f'onnxruntime.InferenceSession("decoder.onnx").run(["image"], {{"code": z{label}}})']
    note = f"Arrays of any batch size: images x (B, {channels}, {height}, {width}) and codes z (B, {model.latent_dim})"
    note = note + " of float32" + (", labels y (B,) of int64." if label else ".") if made else ""
    if encoder := made.get("encoder.onnx"):
        use = [f'onnxruntime.InferenceSession("encoder.onnx").run(["code"], {{"image": x{label}}})', *use]
        note += " `std` is the posterior's standard deviation." if "std" in encoder.outputs else ""
    else:
        note += f" There is no encoder: {NO_MEAN}."
    note += "" if "decoder.onnx" in made else f" There is no decoder: {NO_IMAGE}."
    note = note.lstrip() + (PAGE if page else "")
    rows = (
        f"| `{name}` | {', '.join(graph.inputs)} | {', '.join(graph.outputs)} | {graph.difference:.1e} |"
        for name, graph in made.items()
    )
    more = f" `model.sample(16{y}).{image}` makes new images." if draws_samples(model) else ""
    more += f" Labels y (B,) are whole numbers below {model.num_classes}." if label else ""
    return CARD.format(
        trust=f", trust={foreign(config)}" if foreign(config) else "",
        hub=f"\ndatasets: [{HUB[dataset]}]" if dataset in HUB else "",
        name=code(config.get("name", "model")),
        dataset=code(dataset),
        height=height,
        width=width,
        dim=model.latent_dim,
        parameters=sum(weight.numel() for weight in model.parameters()),
        version=metadata.version("vaelab"),
        command=", then ".join(map(code, commands(record))),
        pictures="\n\n".join(
            f"![{PICTURES[name]}]({name})\n*At the end of training: {PICTURES[name]}.*" for name in pictures(run)
        ),
        y=y,
        image=image,
        shape=", ".join(map(str, ("B", *model.image_shape))),
        more=more,
        graphs=GRAPHS.format(rows="\n".join(rows), use="\n".join(use)) if made else "",
        note=note,
        metrics="\n\n".join(_metrics(metrics, evaluation)) or "No metrics were recorded.",
        parts="\n".join(f"| {code(name)} | {code(part)} |" for name, part in _parts(config)),
        limits="\n".join(f"* {limit}" for limit in _limits(config, model, dataset, evaluation)),
    )


def commands(record: dict[str, Any]) -> list[str]:
    """The commands that repeat a run, one for each start in its run.json. Settings for one machine are left out."""
    typed = [start["overrides"] for start in record.get("starts", [])] or [[]]
    kept = [[word for word in words if not word.startswith(LOCAL)] for words in typed]
    starts = [["python", "train.py", *(["resume=RUN"] if i else [])] for i in range(len(kept))]
    return [shlex.join([*start, *words]) for start, words in zip(starts, kept, strict=True)]


def _metrics(metrics: dict[str, Any], evaluation: dict[str, Any]) -> Iterator[str]:
    """Yield the protocols and the tables of the test metrics from train.py and evaluate.py."""
    if metrics:
        protocol, test = metrics["protocol"], metrics["test"]
        counts = f"{protocol['images']['train']:,} training and {protocol['images']['test']:,} test images"
        unit = metrics["unit"] if "squared_error" in test else metrics["unit"].split(";")[0]
        pixels = f"binarization {code(protocol['binarization']['test'])}"
        yield f"{code(protocol['dataset'])}, {counts}, {pixels}; {code(unit)}."
        yield "| by train.py | |\n|---|---|\n" + "\n".join(f"| {code(name)} | {test[name]:.5g} |" for name in test)
    if evaluation:
        measured, errors = evaluation["metrics"], evaluation["standard_errors"]
        yield ", ".join(f"{code(name)} {code(value)}" for name, value in evaluation["protocol"].items()) + "."
        spread = {name: f"± {rounded(error)}" for name, error in errors.items()}
        names = {"log_likelihood": ", a lower bound from num_samples samples"}
        rows = (
            f"| {code(name)}{names.get(name, '')} | {value:.5g} | {spread.get(name, '')} |"
            for name, value in measured.items()
        )
        yield "| by evaluate.py | | standard error over images |\n|---|---|---|\n" + "\n".join(rows)


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the settings of each part of the model, of the objective and of the optimiser."""
    yield "model", _part({"_target_": config["model"]["_target_"]}).rstrip("()")
    chosen = {**config["model"], **{name: config.get(name) for name in ("objective", "optimizer")}}
    yield from ((name, _part(value)) for name, value in chosen.items() if not str(name).startswith("_"))


def _part(value: Any) -> str:
    """A part as Python code, without the name of the package."""
    if isinstance(value, list):
        return f"[{', '.join(map(_part, value))}]"
    if not isinstance(value, dict):
        return str(value)
    settings = ", ".join(f"{name}={_part(part)}" for name, part in value.items() if not str(name).startswith("_"))
    return f"{str(value.get('_target_', '')).rpartition('.')[2]}({settings})"


def _limits(config: dict[str, Any], model: Any, dataset: str, evaluation: dict[str, Any]) -> Iterator[str]:
    """Yield the limits of a model, one or two sentences each."""
    height, width = model.image_shape[1:]
    yield f"It was trained on {height} x {width} images of {code(dataset)}. Its output for other images has no meaning."
    config = {**config, "data": {**config["data"], "dataset": dataset, "used": dataset}}
    yield from find_caveats(model, config, evaluation.get("metrics"))
    if config["data"]["binarization"] in ("static", "dynamic"):
        yield "Test pixels are one seeded draw from the grey levels, not the published fixed file of binarised MNIST."
    yield f"No licence is stated: the publisher of this model must choose one. {code(dataset)} has its own terms."
