"""One HTML page that runs an exported model in a browser: sliders, a map of codes, interpolation, a canvas to draw on.

It opens from a disk and loads nothing else: the ONNX graphs, codes of test images and ONNX Runtime Web are inside.
"""

import base64
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from vaelab.errors import NotOfferedError, UserError
from vaelab.evaluation.batches import batches
from vaelab.export.onnx import NO_IMAGE, Graph
from vaelab.interfaces import GenerativeModel, has_mean, labels, lies_on_vectors, space
from vaelab.noise import fixed_noise
from vaelab.pictures.latent import COLOURS, rates

HERE = Path(__file__).parent
RUNTIME = HERE / "onnxruntime_web"  # the file NOTICE has its version, its licences and its SHA-256 sums
MAPPED = 1000  # test images whose codes are drawn on the map
CHOICE = 30  # test images to choose from, in three rows of ten
DRAWN = {"none": "grey", "threshold": "threshold"}  # how a drawing becomes pixels; otherwise each pixel is drawn


@torch.no_grad()
def check_page(model: GenerativeModel) -> None:
    """Raise UserError unless the codes of a model are vectors of R^D, and its images are grey or coloured."""
    if model.prior is None:
        raise UserError("page=true moves codes with sliders, but a VQ-VAE's codes are rows of a codebook: leave it out")
    if not has_mean(model.likelihood):
        raise UserError(f"page=true needs decoder.onnx, but {NO_IMAGE}: leave it out")
    if model.image_shape[0] not in (1, 3):
        raise UserError(f"page=true shows images of 1 or 3 channels, and this model has {model.image_shape[0]}")
    with contextlib.suppress(NotOfferedError):  # a ladder with inference=bottom_up: its codes are vectors
        x = torch.zeros(1, *model.image_shape)
        q = model.infer(x, labels(model, torch.zeros(1, dtype=torch.int64)))
        if not lies_on_vectors(q):
            raise UserError(
                f"page=true moves a model's codes in R^D, but the space of its codes is {space(q)}: leave it out"
            )


@torch.no_grad()
def page(model: GenerativeModel, data: Any, graphs: dict[str, Graph], name: str) -> bytes:
    """The page of a model on the CPU, as HTML. `data` is a data module that is set up, `name` the model's name.

    The dimensions are sorted by their rates on the test images of the map, or by the variance of the codes if q or p is
    no factorised Gaussian. A slider spans these codes and 1,000 samples of the prior. Without encoder.onnx the page has
    no canvas to draw on. Images without labels have no classes on the page.
    """
    x, y = data.images("test", MAPPED)
    z = torch.cat([model.encode(*part) for part in batches(x, labels(model, y))])  # (N, D)
    try:
        sizes, measure = rates(model, x, y), "rate"
    except UserError:
        sizes, measure = z.var(0), "variance"
    with fixed_noise(x.device):
        ends = torch.cat([z, model.prior(model.infer).sample(Size((1000,)))])
    classes = None if y is None else y.tolist()
    shown = _choice(len(x) * [0] if classes is None else classes)
    content = {
        "name": name,
        "dataset": data.name,
        "shape": [*model.image_shape],
        "classes": model.num_classes,
        "order": sizes.argsort(descending=True).tolist(),
        "measure": measure,
        "sizes": sizes.tolist(),
        "low": (ends.amin(0) * 2).floor().div(2).tolist(),
        "high": (ends.amax(0) * 2).ceil().div(2).tolist(),
        "codes": _base64(z),
        "labels": classes,
        "colours": COLOURS,
        "shown": shown,
        "images": _base64(x[shown].mul(255).round().to(torch.uint8)),
        "pixels": DRAWN.get(data.binarization, "draw"),
        "graphs": {file.removesuffix(".onnx"): _base64(graph.content) for file, graph in graphs.items()},
        "runtime": {
            "script": _base64((RUNTIME / "ort.wasm.bundle.min.mjs").read_bytes()),
            "wasm": _base64((RUNTIME / "ort-wasm-simd-threaded.wasm.gz").read_bytes()),
            "licence": (RUNTIME / "LICENSE").read_text(),
            "notices": _base64((RUNTIME / "ThirdPartyNotices.txt.gz").read_bytes()),
        },
    }
    safe = json.dumps(content).replace("<", r"\u003c")  # so that no text of a run ends the script
    return (HERE / "page.html").read_text().replace("CONTENT", safe).encode()


def _choice(classes: list[int]) -> list[int]:
    """The positions of the images to choose from: the first of each class, the second of each class, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for label in classes:
        turns.append((seen[label], label))
        seen[label] += 1
    return sorted(range(len(classes)), key=turns.__getitem__)[:CHOICE]


def _base64(content: bytes | Tensor) -> str:
    """Bytes, or the numbers of a tensor in little-endian order, as text."""
    if isinstance(content, Tensor):
        array = content.contiguous().numpy()
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(content).decode()
