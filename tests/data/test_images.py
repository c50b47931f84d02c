"""A folder of images is encoded like test images, and each fault gives a message of one sentence."""

import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.data import MNISTDataModule
from vaelab.data.images import read_images, write_codes
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal

SHAPE = (1, 28, 28)


@pytest.fixture
def folder(tmp_path: Path, digits: tuple[torch.Tensor, torch.Tensor]) -> Path:
    """A folder with twelve digits in lossless formats and a text file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(digits[0][:12, 0]):
        Image.fromarray(image.numpy()).save(folder / f"{i:02}.{('png', 'bmp', 'gif', 'tif', 'PNG')[i % 5]}")
    (folder / "notes.txt").write_text("no image")
    return folder


def data(root: Path, binarization: str, **settings: Any) -> MNISTDataModule:
    module = MNISTDataModule(root=str(root), val_size=100, binarization=binarization, **settings)
    module.setup()
    return module


def vae(num_classes: int = 0) -> VAE:
    encoder, decoder = partial(MLPEncoder, hidden=[9]), partial(MLPDecoder, hidden=[9])
    return VAE(4, SHAPE, encoder, DiagonalGaussian, StandardNormal, decoder, Bernoulli(), num_classes).eval()


def test_images_are_read_in_sorted_order(folder: Path, digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    names, images, remarks = read_images(folder, SHAPE)
    assert not remarks
    assert names == sorted(names)
    assert [name[:2] for name in names] == [f"{i:02}" for i in range(12)]
    assert images.dtype == torch.uint8
    assert torch.equal(images, digits[0][:12])


def test_colours_become_grey_and_an_animation_its_first_image(tmp_path: Path) -> None:
    red, white = Image.new("RGB", (28, 28), (255, 0, 0)), Image.new("RGB", (28, 28), (255, 255, 255))
    red.save(tmp_path / "a.png")
    white.save(tmp_path / "b.jpeg")
    white.save(tmp_path / "c.gif", save_all=True, append_images=[red])
    white.save(tmp_path / "d.webp", lossless=True)
    images = read_images(tmp_path, SHAPE).pixels
    assert [int(image.float().mean()) for image in images] == [76, 255, 255, 255]  # the weight of red is 0.299


@pytest.mark.parametrize("binarization", ["none", "threshold", "static", "dynamic"])
def test_codes_are_those_of_the_test_images(tmp_path: Path, data_root: Path, binarization: str) -> None:
    """Test images that are read from files give the same codes under every binarisation."""
    (tmp_path / "images").mkdir()
    for i, (image,) in enumerate(data(data_root, "none").splits["test"][0]):
        Image.fromarray(image.numpy()).save(tmp_path / "images" / f"{i:03}.png")
    module, model = data(data_root, binarization, eval_batch_size=64), vae()
    assert len(write_codes(model, module, tmp_path / "images", tmp_path / "codes.npz").names) == 200
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        codes, names, protocol = file["codes"], file["names"], json.loads(file["protocol"].item())
    (x, *_), *rest = list(module.test_dataloader())
    expected = torch.cat([model.encode(x), *(model.encode(x) for x, _ in rest)]).detach()
    assert codes.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(codes), expected, rtol=0, atol=1e-6)
    assert names.tolist() == [f"{i:03}.png" for i in range(200)]
    assert protocol["binarization"] == {"dynamic": "static(0)", "static": "static(0)"}.get(binarization, binarization)
    assert protocol["trained_on"] == "MNIST"
    assert {path.name for path in tmp_path.iterdir()} == {"images", "codes.npz"}


def bomb(path: Path) -> None:
    """A PNG that claims to have more pixels than would fit into memory."""
    content = bytearray((path.parent / "00.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(content)


def transparent(mode: str) -> Image.Image:
    """A white square in the middle of an image that is transparent elsewhere."""
    image = Image.new(mode, (28, 28))
    image.paste((255,) * len(mode), (8, 8, 20, 20))
    return image


def deep(path: Path) -> None:
    """A PNG with 16 bits for each of three channels, which Pillow cuts to 8."""
    rows = b"".join(b"\0" + bytes(28 * 6) for _ in range(28))
    parts = {b"IHDR": struct.pack(">IIBBBBB", 28, 28, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    content = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (
            lambda path: Image.new("L", (28, 30)).save(path),
            "x.png has 30 x 28 pixels (height x width), but the model's",
        ),
        (lambda path: path.write_bytes(b"no image"), "x.png cannot be read as an image: "),
        (lambda path: path.write_bytes(b""), "x.png cannot be read as an image: "),
        (
            lambda path: path.write_bytes((path.parent / "00.png").read_bytes()[:150]),
            "x.png cannot be read as an image: ",
        ),
        (lambda path: Image.new("L", (28, 28)).save(path, format="PPM"), "x.png cannot be read as an image: "),
        (lambda path: transparent("RGBA").save(path), "x.png is transparent: save it on a background"),
        (lambda path: transparent("LA").save(path), "x.png is transparent: save it on a background"),
        (lambda path: transparent("RGBA").quantize(8).save(path), "x.png is transparent: save it on a background"),
        (deep, "x.png has more than 8 bits per channel"),
        (lambda path: Image.new("I;16", (28, 28), 60_000).save(path), "x.png has more than 8 bits per channel"),
        (bomb, "x.png"),
    ],
    ids=[
        "size",
        "bytes",
        "empty",
        "truncated",
        "another format",
        "RGBA",
        "LA",
        "palette",
        "16-bit RGB",
        "16 bits",
        "bomb",
    ],
)
def test_a_bad_image_is_named(folder: Path, plant: Callable[[Path], Any], sentence: str) -> None:
    plant(folder / "x.png")
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        read_images(folder, SHAPE)
    assert sentence in str(error.value)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no files that end in .png, .jpg, .jpeg, .bmp"):
        read_images(tmp_path, SHAPE)
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        read_images(tmp_path / "nowhere", SHAPE)


def test_a_model_with_labels_is_refused(folder: Path, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this model needs the label of each image, and a folder has no labels"):
        write_codes(vae(num_classes=10), data(data_root, "none"), folder, tmp_path / "codes.npz")
    assert not (tmp_path / "codes.npz").exists()


def test_opaque_images_with_an_alpha_channel_are_read(folder: Path) -> None:
    Image.open(folder / "00.png").convert("RGBA").save(folder / "x.png")
    names, grey, _ = read_images(folder, SHAPE)
    assert torch.equal(grey[names.index("x.png")], grey[0])


def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    image = Image.new("L", (28, 28))
    image.paste(255, (0, 0, 28, 7))  # a bar at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "x.png", exif=exif)
    grey = read_images(tmp_path, SHAPE).pixels[0, 0]
    assert grey[:, -7:].eq(255).all()  # the bar is on the right
    assert grey[:, :-7].eq(0).all()


def test_stray_files_and_subfolders_are_skipped_and_named(folder: Path) -> None:
    expected = read_images(folder, SHAPE).names
    (folder / "._00.png").write_bytes(b"not an image")
    (folder / "x.png").mkdir()
    (folder / "y.png").symlink_to(folder / "nowhere.png")
    (folder / "more").mkdir()
    names, _, remarks = read_images(folder, SHAPE)
    assert names == expected
    assert remarks == [
        "skipped 3 names that are hidden files, folders or broken links",
        "skipped the subfolders more, x.png",
    ]


def test_dark_ink_on_white_paper_is_noticed_and_can_be_inverted(tmp_path: Path, folder: Path) -> None:
    paper = tmp_path / "paper"
    paper.mkdir()
    names, grey, _ = read_images(folder, SHAPE)
    for name, image in zip(names, grey[:, 0], strict=True):
        Image.fromarray((255 - image).numpy()).save(paper / name)
    (remark,) = read_images(paper, SHAPE).remarks
    assert "dark ink on white paper" in remark
    inverted = read_images(paper, SHAPE, invert=True)
    assert torch.equal(inverted.pixels, grey)
    assert not inverted.remarks
