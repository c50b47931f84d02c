"""The pictures of a report, drawn with the tested weights: samples, reconstructions and the latent space of a run."""

import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaelab import pictures
from vaelab.errors import UserError
from vaelab.interfaces import device_of, labels, name_of_image
from vaelab.runs import Run

SHOWN, ENCODED = 32, 2000  # test images with reconstructions and with codes
MOST_DIMENSIONS = 32  # of a traversal, which has one row for each


class Drawing(NamedTuple):
    """A picture of a run, or the reason why it does not exist."""

    title: str
    source: str  # a data address, or an empty text
    reason: str = ""


def images(run: Run) -> list[Drawing]:
    """Samples of a run, and reconstructions of test images."""
    model, (x, y) = run.model, _test_images(run, SHOWN)
    shown = name_of_image(model)
    drawn = "Some samples, a column for each class" if pictures.drawn_classes(model) else "64 samples"
    return [
        _draw(
            f"{drawn}: {shown} at z ~ p(z)",
            lambda: _grid(pictures.samples(model)),
        ),
        _draw(
            f"{len(x)} test images, each with {shown} at its code on the right",
            lambda: _grid(pictures.reconstructions(model, x, labels(model, y), columns=4)),
        ),
    ]


def latent(run: Run) -> list[Drawing]:
    """The codes of test images, and a second picture: the decoded map of two dimensions, or a row for each dimension.

    If the rows are too many, the second picture is the aggregate posterior against the prior.
    """
    model, (x, y) = run.model, _test_images(run, ENCODED)
    shown = name_of_image(model)
    if model.latent_dim == 2 and not model.num_classes:
        title = f"{shown} at the prior's quantiles, z_0 to the right and z_1 up"
        second = _draw(title, lambda: _grid(pictures.manifold(model)))
    elif model.latent_dim <= MOST_DIMENSIONS:
        title = f"{shown} around the code of a test image, one dimension at a time"
        second = _draw(title, lambda: _figure(pictures.traversal(model, x, y)))
    else:
        title = "The aggregate posterior of the test images against the prior"
        second = _draw(title, lambda: _figure(pictures.prior(model, x, y)))
    return [_draw(f"Codes of {len(x):,} test images", lambda: _figure(pictures.codes(model, x, y))), second]


def _test_images(run: Run, count: int) -> tuple[Tensor, Tensor | None]:
    """Test images and their classes or None, the same for all runs on the same data. It may be sorted by class."""
    x, y = run.data.pixels("test")
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]
    device = device_of(run.model)
    return x[some].to(device).float().div(255), None if y is None else y[some].to(device)


def _draw(title: str, make: Callable[[], str]) -> Drawing:
    try:
        return Drawing(title, make())
    except UserError as error:
        return Drawing(title, "", str(error))


def _grid(picture: Tensor) -> str:
    """A grid of images (3, height, width) with a zoom of 2, as a PNG without the zoom, of one channel if it is grey."""
    small = picture[:, ::2, ::2]
    return _png(pictures.image(small, grey=bool((small == small[:1]).all())))


def _figure(figure: Any) -> str:
    """A figure as a PNG of 256 colours, because a thousand points make a large SVG."""
    return _png(pictures.image(figure).quantize(256))


def _png(image: Any) -> str:
    """A PNG in a data address."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
