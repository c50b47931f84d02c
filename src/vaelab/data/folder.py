"""Codes of images that are in no data set: read a folder of image files, and write the codes of a model."""

import io
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaelab.errors import UserError
from vaelab.files import write_atomically
from vaelab.interfaces import device_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # Pillow reads more, but some of them start other programs


def read_images(folder: str | Path, image_shape: Sequence[int]) -> tuple[list[str], Tensor]:
    """The sorted names and the grey levels, uint8 (N, 1, H, W), of the images in a folder.

    Only the first frame of an animation is read. Raises UserError if there are no images, and for an image that cannot
    be read, does not have H x W pixels, or has more than 8 bits per channel.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"images={folder}: there is no such folder")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"images={folder}: there are no files that end in {', '.join(SUFFIXES)}")
    images = np.stack([_read(path, *image_shape[1:]) for path in paths])
    return [path.name for path in paths], torch.from_numpy(images).unsqueeze(1)


def _read(path: Path, height: int, width: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            size, mode = (image.height, image.width), image.mode
            if size == (height, width):  # this check comes before any decoding
                grey = np.array(image.convert("L"))
    except Exception as error:  # decoders raise many kinds of errors
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    if size != (height, width):
        needed = f"the model's images have {height} x {width}"
        raise UserError(f"{path} has {size[0]} x {size[1]} pixels (height x width), but {needed}")
    if mode.startswith(("I", "F")):
        raise UserError(f"{path} has more than 8 bits per pixel: save it with 8 bits per pixel")
    return grey


@torch.no_grad()
def write_codes(model: Any, data: Any, folder: str | Path, path: Path) -> int:
    """Write the codes of a folder's images to an NPZ file, and return the number N of images.

    Images are binarised like test images. The file holds names (N,), codes (N, D) float32 and protocol, a JSON text.
    Raises UserError as `read_images` does, and for a model that needs labels.
    """
    if model.num_classes:
        raise UserError(f"images={folder}: this model needs the label of each image, and a folder has no labels")
    names, images = read_images(folder, model.image_shape)
    device = device_of(model)
    batches = data.fixed(images, "test").split(data.eval_batch_size)
    codes = torch.cat([model.encode(batch.to(device).float().div(255)).float().cpu() for batch in batches])
    protocol = {
        "trained_on": data.name,
        "binarization": data.protocol["binarization"]["test"],
        "vaelab": metadata.version("vaelab"),
    }
    content = io.BytesIO()
    np.savez(content, names=names, codes=codes.numpy(), protocol=json.dumps(protocol))
    write_atomically(path, content.getbuffer())
    return len(names)
