"""The page runs a model in a browser as torch does, and loads nothing from a network."""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Page, opened
from conftest import ROOT
from torch import Tensor, nn

from vaelab import export as exports
from vaelab import load_run
from vaelab.data import MNISTDataModule
from vaelab.export.page import RUNTIME
from vaelab.likelihoods import Bernoulli, Gaussian
from vaelab.models import VAE, VQVAE, LadderVAE
from vaelab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaelab.posteriors import Categorical, DiagonalGaussian, FlowPosterior, Hyperspherical
from vaelab.priors import StandardNormal, UniformCategorical, UniformSphere

SHAPE = (1, 28, 28)


def build(**parts: Any) -> VAE:
    """A small VAE with random weights."""
    chosen = {
        "image_shape": SHAPE,
        "encoder": partial(MLPEncoder, hidden=[7]),
        "posterior": DiagonalGaussian,
        "prior": StandardNormal,
        "decoder": partial(MLPDecoder, hidden=[7]),
        "likelihood": Bernoulli(),
    }
    return VAE(4, **chosen | parts).eval()


def vq() -> nn.Module:
    parts = {"encoder": partial(ConvEncoder, channels=[4], hidden=[]), "decoder": partial(ConvDecoder, channels=[4])}
    return VQVAE(2, 5, SHAPE, likelihood=Gaussian(), **parts).eval()


def ladder() -> nn.Module:
    encoder, decoder = partial(MLPEncoder, hidden=[6]), partial(MLPDecoder, hidden=[6])
    parts = encoder, encoder, StandardNormal, decoder, Bernoulli()
    return LadderVAE([2, 3], SHAPE, *parts, inference="bottom_up").eval()


def set_up(root: Path, binarization: str) -> MNISTDataModule:
    data = MNISTDataModule(root=str(root), md5=None, val_size=100, binarization=binarization)
    data.setup()
    return data


def content_of(page: bytes) -> dict[str, Any]:
    found = re.search(r'<script id="content" type="application/json">(.*)</script>\n<script>', page.decode())
    assert found
    return json.loads(found[1])


def floats(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


def shown(page: Page) -> tuple[Tensor, Tensor, str]:
    """The code (D,), the decoded values (C * H * W,) and the picture on the screen."""
    page.run("decode()")
    z, image = torch.tensor(page.run("[...state.z]")), torch.tensor(page.run("[...state.image]"))
    return z, image, page.run("find('image').toDataURL()")


def decoded(model: Any, z: Tensor, *y: Tensor) -> Tensor:
    """The mean image (C * H * W,) of one code (D,), by torch."""
    return model.decode(z[None], *y).mean.flatten()


def ink(image: Tensor) -> Tensor:
    """The longer side of the box of the ink in an image (1, H, W), and its centre of mass (row, column), in pixels."""
    places = (image[0] > 0.3).nonzero()
    side = (places.amax(0) - places.amin(0)).max() + 1
    mass = image[0] / image.sum()
    axis = torch.arange(len(mass)) + 0.5
    return torch.stack([side, mass.sum(1) @ axis, mass.sum(0) @ axis])


def centre(page: Page, name: str) -> tuple[float, float, float]:
    """The centre of an element on the screen, and its width."""
    page.run(f"find('{name}').scrollIntoView({{block: 'center'}})")
    x, y, width, height = page.run(
        f"(box => [box.x, box.y, box.width, box.height])(find('{name}').getBoundingClientRect())"
    )
    return x + width / 2, y + height / 2, width


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with opened(tmp_path_factory.mktemp("browser")) as page:
        yield page


def load(browser: Page, path: Path) -> None:
    """Open a page from the disk, and wait until its model has decoded the first code."""
    browser.open(path.as_uri())
    browser.run("started.then(() => decode())")
    assert browser.run("find('failure').textContent") == ""


def test_a_run_in_the_browser(run: Path, command: Callable, browser: Page, data_root: Path) -> None:
    """A slider, the map, two test images and a drawing give the codes and images that torch gives."""
    code, printed = command(f"run={run}", "page=true")
    assert code is None, printed
    path = run / "export" / "page.html"
    assert "Open [`page.html`](page.html) in a browser" in (run / "export" / "README.md").read_text()
    for place in (str(data_root), str(run.parent), str(ROOT)):
        assert place not in path.read_text()
    model = load_run(run)
    data = set_up(data_root, "dynamic")
    codes = model.encode(data.images("test")[0])
    load(browser, path)

    z, image, picture = shown(browser)
    torch.testing.assert_close(z, codes[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(image, decoded(model, z), rtol=0, atol=1e-3)

    highest, second, _ = browser.run("content.order")
    browser.run(f"find('z{highest}').focus()")
    browser.press("ArrowRight", 40)
    new, image, changed = shown(browser)
    assert changed != picture
    moved = torch.zeros(3)
    moved[highest] = 2.0  # 40 steps of 0.05, from the step next to the code
    torch.testing.assert_close(new - z, moved, rtol=0, atol=0.026)
    torch.testing.assert_close(image, decoded(model, new), rtol=0, atol=1e-3)
    assert browser.run(f"find('value{highest}').textContent").replace("−", "-") == f"{new[highest]:.2f}"

    x, y, width = centre(browser, "map")
    browser.drag((x, y), (x + width / 4, y + width / 8))
    new, image, dragged = shown(browser)
    low, high = (torch.tensor(browser.run(f"content.{end}")) for end in ("low", "high"))
    (across, up), inner = sorted((highest, second)), width - 2 - 36 - 8
    right, above = (width / 2 + width / 4 - 1 - 36) / inner, 1 - (width / 2 + width / 8 - 1 - 8) / inner
    for d, share in ((across, right), (up, above)):
        torch.testing.assert_close(new[d], low[d] + share * (high[d] - low[d]), rtol=0, atol=0.02)
    assert dragged != changed
    torch.testing.assert_close(image, decoded(model, new), rtol=0, atol=1e-3)
    browser.run("find('map').focus()")
    browser.press("ArrowLeft", 5)
    new[across] -= (high - low)[across] / 10  # five steps of one fiftieth
    torch.testing.assert_close(shown(browser)[0], new, rtol=0, atol=1e-4)

    first, last = browser.run("[content.shown[13], content.shown[7]]")
    browser.run("find('from').querySelectorAll('input')[13].click(), find('to').querySelectorAll('input')[7].click()")
    browser.run("find('between').focus()")
    browser.press("ArrowRight", 25)
    z, image, _ = shown(browser)
    assert (first, last) == (13, 7)
    torch.testing.assert_close(z, codes[13].lerp(codes[7], 0.25), rtol=0, atol=1e-4)
    torch.testing.assert_close(image, decoded(model, z), rtol=0, atol=1e-3)

    x, y, width = centre(browser, "pad")
    browser.drag((x - width / 3, y - width / 3), (x, y - width / 3), (x - width / 6, y))  # small and in a corner
    browser.run("encode()")
    z, image, _ = shown(browser)
    drawing = torch.tensor(browser.run("[...state.input]")).float().view(SHAPE)
    assert {*drawing.unique().tolist()} == {0.0, 1.0}  # a draw, as the model's training images are
    usual = torch.stack([ink(image) for image in data.images("test", 30)[0]]).mean(0)
    torch.testing.assert_close(ink(drawing), usual, rtol=0, atol=1.5)  # one grey pixel at each end is drawn or not
    torch.testing.assert_close(z, model.encode(drawing[None])[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(image, decoded(model, z), rtol=0, atol=1e-3)
    assert browser.run("find('output').toDataURL() === find('image').toDataURL()")
    assert "circle is your drawing" in browser.run("find('where').textContent")

    browser.run("find('licences').open = true")
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert "Copyright (c) Microsoft" in browser.run("find('licences').textContent")
    requests = [event["params"]["request"]["url"] for event in browser.events if "requestWill" in event["method"]]
    assert [url for url in requests if not url.startswith("blob:")] == [path.as_uri()]
    wrong = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert not [event for event in browser.events if event["method"] in wrong]


def test_a_conditional_model_on_grey_levels(browser: Page, tmp_path: Path, data_root: Path) -> None:
    """The page has a list of classes, which both networks get, and a drawing keeps its grey levels and its place."""
    torch.distributions.Distribution.set_default_validate_args(False)
    model = build(
        num_classes=10,
        encoder=partial(ConvEncoder, channels=[4], hidden=[]),
        decoder=partial(ConvDecoder, channels=[4], hidden=[8]),
    )
    data = set_up(data_root, "none")
    (tmp_path / "page.html").write_bytes(exports.page(model, data, exports.graphs(model), "<b>conv</b>"))
    load(browser, tmp_path / "page.html")
    assert browser.run("find('title').textContent") == "<b>conv</b>, a latent space of 4 dimensions"

    x, y = data.images("test", 30)
    first = shown(browser)
    torch.testing.assert_close(first[0], model.encode(x, y)[0], rtol=0, atol=1e-4)
    browser.run(
        "(list => { list.value = 7; list.dispatchEvent(new Event('change')); })(document.querySelector('select'))"
    )
    z, image, picture = shown(browser)
    assert torch.equal(z, first[0])
    assert picture != first[2]
    torch.testing.assert_close(image, decoded(model, z, torch.tensor([7])), rtol=0, atol=1e-3)

    browser.run("find('fit').click()")
    browser.run("find('pad').focus()")
    browser.press("ArrowRight", 4)
    browser.run("encode()")
    z, image, _ = shown(browser)
    drawing = torch.tensor(browser.run("[...state.input]")).float().view(1, *SHAPE)
    box = drawing[0, 0].nonzero()
    assert box.amin(0).tolist() == [13, 13]
    assert box.amax(0).tolist() == [14, 18]
    assert len(drawing.unique()) > 2
    torch.testing.assert_close(z, model.encode(drawing, torch.tensor([7]))[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(image, decoded(model, z, torch.tensor([7])), rtol=0, atol=1e-3)


def test_images_without_labels_have_no_classes(browser: Page, tmp_path: Path, data_root: Path) -> None:
    torch.distributions.Distribution.set_default_validate_args(False)
    model, data = build(), set_up(data_root, "static")
    data.splits["test"] = data.splits["test"][0], None
    (tmp_path / "page.html").write_bytes(exports.page(model, data, exports.graphs(model), "model"))
    load(browser, tmp_path / "page.html")
    assert browser.run("find('points').textContent") == "Each point is the code of a test image."
    names = browser.run("[...document.querySelectorAll('#from input')].map(each => each.getAttribute('aria-label'))")
    assert names == [f"test image {index}" for index in range(30)]
    browser.run("document.querySelectorAll('#from input')[3].click()")
    torch.testing.assert_close(shown(browser)[0], model.encode(data.images("test", 4)[0])[3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [partial(build, posterior=partial(FlowPosterior, num_transforms=1)), ladder])
def test_dimensions_without_rates_are_sorted_by_variance(make: Callable[[], Any], data_root: Path) -> None:
    model, data = make(), set_up(data_root, "threshold")
    content = content_of(exports.page(model, data, {"decoder.onnx": GRAPH}, "model"))
    codes = model.encode(data.images("test")[0])
    assert content["measure"] == "variance"
    assert content["order"] == codes.var(0).argsort(descending=True).tolist()
    assert [*content["graphs"]] == ["decoder"]
    assert content["pixels"] == "threshold"
    assert content["shown"] == [*range(30)]  # the labels are 0, 1, ..., 9, 0, 1, ...
    torch.testing.assert_close(floats(content["codes"]).view_as(codes), codes)


def test_rates_and_spans(data_root: Path) -> None:
    """The rates are the KL of a Gaussian in closed form, and the spans hold all codes and most of the prior."""
    model, data = build(), set_up(data_root, "static")
    content = content_of(exports.page(model, data, {"decoder.onnx": GRAPH}, "</script>"))
    q: Any = model.infer(data.images("test")[0])
    kl = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).mean(0)
    torch.testing.assert_close(torch.tensor(content["sizes"]), kl)
    assert content["order"] == kl.argsort(descending=True).tolist()
    low, high = torch.tensor(content["low"]), torch.tensor(content["high"])
    assert (low <= q.mean.amin(0)).all()
    assert (high >= q.mean.amax(0)).all()
    assert (low < -2.5).all()
    assert (high > 2.5).all()
    assert content["name"] == "</script>"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (vq, "page=true moves codes with sliders, but a VQ-VAE's codes are rows of a codebook: leave it out"),
        (
            partial(
                build,
                posterior=partial(Categorical, num_categories=2),
                prior=partial(UniformCategorical, num_categories=2),
            ),
            "the space of its codes is 2 one-hot vectors of 2 categories: leave it out",
        ),
        (
            partial(build, posterior=Hyperspherical, prior=UniformSphere),
            "page=true moves a model's codes in R^D, but the space of its codes is the unit sphere: leave it out",
        ),
        (partial(build, image_shape=(2, 8, 8)), "page=true shows images of 1 or 3 channels, and this model has 2"),
    ],
    ids=["codebook", "categories", "sphere", "channels"],
)
def test_models_without_a_page_are_refused(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        exports.check_page(make())


def test_refusals(run: Path, command: Callable) -> None:
    assert command(f"run={run}", "page=yes please")[0].startswith("error: page=yes please")
    assert "data.root" in command(f"run={run}", "page=true", "data.root=nowhere")[0]
    assert not (run / "export").exists()


def test_a_later_export_without_a_page_removes_it(tmp_path: Path) -> None:
    exports.write(tmp_path, {"page.html": b"old", "config.json": b"{}"})
    exports.write(tmp_path, {"config.json": b"{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_runtime_is_what_the_notice_says() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for path in RUNTIME.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert re.search(rf"{path.name.removesuffix('.gz')} +{hashlib.sha256(content).hexdigest()}", notice)
    version = re.search(r"ONNX Runtime Web v(\S+)", (RUNTIME / "ort.wasm.bundle.min.mjs").read_text())
    assert version
    assert f"ONNX Runtime Web {version[1]}, Copyright (c) Microsoft Corporation" in notice


GRAPH = exports.Graph(b"graph", ["code"], ["image"], 2e-7)
