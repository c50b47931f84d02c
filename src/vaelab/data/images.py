"""Codes of images that are in no data set: read a folder of image files, and write the codes of a model."""

import io
import json
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaelab.data.module import PUBLISHED
from vaelab.errors import UserError
from vaelab.files import MOST_PIXELS, write_atomically
from vaelab.interfaces import device_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # Pillow reads more, but some of them start other programs


class Images(NamedTuple):
    """The images of a folder."""

    names: list[str]  # sorted file names
    pixels: Tensor  # (N, C, H, W), uint8
    remarks: list[str]  # sentences about skipped files and about dark ink on white paper


def read_images(folder: str | Path, image_shape: Sequence[int], invert: bool = False, fit: bool = False) -> Images:
    """Read the images in a folder, without its subfolders. With `invert`, grey levels g become 255 - g.

    Only the first frame of an animation is read. Raises UserError if there are no images, and as `decode` does.
    """
    folder = Path(str(folder)).expanduser()  # the name of a folder can be a number
    if not folder.is_dir():
        raise UserError(f"images={folder}: there is no such folder")
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    paths = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not paths:
        raise UserError(f"images={folder}: there are no files that end in {', '.join(SUFFIXES)}")
    pixels = torch.from_numpy(np.stack([decode(path, image_shape, fit) for path in paths]))
    remarks = []
    if len(found) > len(paths):
        remarks.append(f"skipped {len(found) - len(paths)} names that are hidden files, folders or broken links")
    if below := sorted(path.name for path in folder.iterdir() if path.is_dir()):
        remarks.append(f"skipped the subfolders {', '.join(below[:5])}{', ...' * (len(below) > 5)}")
    pixels = 255 - pixels if invert else pixels
    edges = torch.cat([pixels[..., [0, -1], :].flatten(), pixels[..., [0, -1]].flatten()])
    if not fit and edges.float().mean() > 127:  # images are fitted to a model of other images than digits
        remarks.append("the images look like dark ink on white paper, but MNIST is white on black: set invert=true")
    return Images([path.name for path in paths], pixels, remarks)


def decode(path: Path, image_shape: Sequence[int], fit: bool = False) -> np.ndarray:
    """The grey levels (1, H, W) or colours (3, H, W) of an image file, uint8, turned as its EXIF data say.

    With `fit`, an image of another size is resized (bicubic) until it covers H x W pixels, and its middle is cut out.
    Raises UserError for an image that cannot be read, is transparent, or has more than 8 bits per channel, and without
    `fit` for one of another size.
    """
    from PIL import Image, ImageOps

    channels, height, width = image_shape
    try:
        with path.open("rb") as file, Image.open(path, formats=FORMATS) as image:
            mode, sizes = image.mode, (image.height, image.width)
            deep = mode.startswith(("I", "F")) or (image.format == "PNG" and file.read(25)[24] == 16)
            giant = math.prod(sizes) > MOST_PIXELS
            wrong = not fit and sorted(sizes) != sorted((height, width))
            if not giant and not wrong:  # these checks come before any decoding
                if fit:
                    image.draft("RGB" if channels == 3 else "L", (2 * width, 2 * height))  # a large JPEG, decoded small
                turned = ImageOps.exif_transpose(image)
                turned = turned.convert("RGBA") if turned.has_transparency_data else turned
                transparent = turned.mode == "RGBA" and np.array(turned)[..., 3].min() < 255
                turned = turned.convert("RGB" if channels == 3 else "L")
                turned = ImageOps.fit(turned, (width, height)) if fit else turned
                wrong = (turned.height, turned.width) != (height, width)
                pixels = np.array(turned).reshape(turned.height, turned.width, -1).transpose(2, 0, 1)
    except Exception as error:  # decoders raise many kinds of errors
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    if giant:
        raise UserError(f"{path} has {sizes[1]:,} x {sizes[0]:,} pixels, but an image has at most {MOST_PIXELS:,}")
    if wrong:
        needed = f"the model's images have {height} x {width}"
        raise UserError(f"{path} has {' x '.join(map(str, sizes))} pixels (height x width), but {needed}")
    if deep:
        raise UserError(f"{path} has more than 8 bits per channel: save it with 8 bits per channel")
    if transparent:
        raise UserError(f"{path} is transparent: save it on a background, which is black in MNIST")
    return pixels


@torch.no_grad()
def write_codes(model: Any, data: Any, folder: str | Path, path: Path, invert: bool = False) -> Images:
    """Write the codes of a folder's images to an NPZ file, and return the images.

    Images are binarised like test images. The file holds names (N,), codes (N, D) float32 and protocol, a JSON text.
    Raises UserError as `read_images` does, and for a model that needs labels.
    """
    if model.num_classes:
        raise UserError(f"images={folder}: this model needs the label of each image, and a folder has no labels")
    images = read_images(folder, model.image_shape, invert, data.resizes)
    device = device_of(model)
    batches = data.fixed(images.pixels, "test").split(data.eval_batch_size)
    codes = torch.cat([model.encode(batch.to(device).float().div(255)).float().cpu() for batch in batches])
    protocol = {
        "trained_on": data.name,
        "binarization": f"static({data.binarization_seed})"
        if data.binarization == PUBLISHED
        else data.protocol["binarization"]["test"],
        "vaelab": metadata.version("vaelab"),
    }
    content = io.BytesIO()
    np.savez(content, names=images.names, codes=codes.numpy(), protocol=json.dumps(protocol))
    write_atomically(path, content.getbuffer())
    return images
