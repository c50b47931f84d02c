"""The pictures of a report show the test images and the model of the run."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_config
from PIL import Image

from train import train
from vaelab import runs
from vaelab.reports import drawings


def picture(drawing: drawings.Drawing) -> Image.Image:
    kind, _, content = drawing.source.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def opened(data_root: Path, tmp_path: Path) -> Callable[..., runs.Run]:
    """Returns a function that trains a short run and opens it."""

    def make(*overrides: str) -> runs.Run:
        short = ["callbacks.pictures=null", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
        train(compose_config(data_root, *short, *overrides), tmp_path)
        return runs.open_run(str(tmp_path))

    return make


def test_pictures_of_two_dimensions(finished: Path) -> None:
    run = runs.open_run(str(finished))
    samples, reconstructions = map(picture, drawings.images(run))
    assert samples.size == (8 * 29 + 1, 8 * 29 + 1)
    assert samples.mode == "L"
    pixels = np.asarray(reconstructions)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    x = run.data.images("test")[0][shuffled]
    for place, index in (((1, 1), 0), ((30, 1), 4)):  # the first image of the first row and of the second row
        top, left = place
        np.testing.assert_array_equal(pixels[top : top + 28, left : left + 28], x[index, 0].numpy() * 255)
    made = run.model.reconstruct(x[:1]).mean[0, 0].detach().numpy() * 255
    np.testing.assert_allclose(pixels[1:29, 29:57], made, atol=0.51)
    codes, manifold = drawings.latent(run)
    assert picture(codes).width > 500
    assert picture(manifold).size == (20 * 29 + 1, 20 * 29 + 1)
    run.data.splits["test"] = run.data.splits["test"][0], None  # images without labels
    assert all(drawing.source for drawing in (*drawings.images(run), *drawings.latent(run)))


def test_what_cannot_be_drawn_has_a_reason(opened: Callable[..., runs.Run]) -> None:
    run = opened("experiment=vq_vae", "data.batch_size=20")
    samples, reconstructions = drawings.images(run)
    assert samples.source == ""
    assert len(samples.reason) > 20
    assert picture(reconstructions).width == 4 * 57 + 1
    assert len(drawings.latent(run)) == 2


def test_more_dimensions_have_a_row_each(opened: Callable[..., runs.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened("model.latent_dim=3", "model.num_classes=10")
    codes, traversal = drawings.latent(run)
    assert picture(traversal).height > 3 * 56
    assert codes.title == "Codes of 200 test images"
    monkeypatch.setattr(drawings, "MOST_DIMENSIONS", 2)
    prior = drawings.latent(run)[1]
    assert prior.title == "The aggregate posterior of the test images against the prior"
    assert picture(prior).width > picture(prior).height


def test_colour_stays() -> None:
    colours = torch.rand(3, 4, 6).repeat_interleave(2, 1).repeat_interleave(2, 2)
    shown = picture(drawings.Drawing("", drawings._grid(colours)))
    np.testing.assert_allclose(np.asarray(shown), colours[:, ::2, ::2].movedim(0, -1) * 255, atol=0.51)
