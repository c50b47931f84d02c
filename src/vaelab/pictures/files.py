"""Picture files: pictures with the command that made them, and the pictures of a training as an animation."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vaelab.errors import UserError
from vaelab.files import MOST_PIXELS, png_size, write_atomically
from vaelab.text import rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

MOST_RECORD, MOST_FRAMES = 10**8, 1000  # bytes of one entry of an event file, and frames of an animation


def training(folder: Path, epochs: int, steps: int) -> list["Image"]:
    """One frame for each picture of samples in the event files of a finished run of so many epochs and steps.

    If there are none, the frames are pictures of reconstructions. Raises UserError if there are no pictures, for giant
    pictures, and as `read_events` does.
    """
    from PIL import Image, ImageDraw, ImageFont

    tags = {
        tag.removeprefix("views/"): found for tag, found in read_events(folder, "images").items()
    }  # older: no views/
    what = next((name for name in ("samples", "reconstructions") if name in tags), None)
    if what is None:
        raise UserError(f"{folder} has no event files with pictures of its training, and the animation needs them")
    drawn = {step: event.encoded_image_string for step, event in tags[what].items()}
    sizes = [png_size(drawn[step], f"the picture of step {step} in {folder}") for step in drawn]
    width, height, steps = max(size[0] for size in sizes), max(size[1] for size in sizes), max(steps, 1)
    if len(drawn) > MOST_FRAMES or len(drawn) * width * height > MOST_PIXELS:
        raise UserError(f"{folder} has {len(drawn)} pictures of {width} x {height} pixels, too many for an animation")
    frames, caption = [], 30  # pixels
    for step in sorted(drawn):
        image = Image.open(io.BytesIO(drawn[step]), formats=["PNG"])
        mode = "L" if image.mode == "L" else "RGB"
        frame = Image.new(mode, (width, height + caption), "white")
        frame.paste(image.convert(mode), (0, caption))
        pen, text = (
            ImageDraw.Draw(frame),
            f"{what} at epoch {rounded(step * epochs / steps, 3)} of {epochs}, step {step:,}",
        )
        pen.text((5, 3), text, fill="black", font=ImageFont.load_default(16))
        pen.rectangle((0, caption - 4, width * min(max(step / steps, 0), 1), caption - 1), fill="black")
        frames.append(frame)
    return frames


def read_events(folder: Path, kind: str) -> dict[str, dict[int, Any]]:
    """The events of TensorBoard in the files of a run by tag and step. `kind` is scalars or images.

    A resumed run takes some steps again: its events replace those of the same and of later steps. TensorBoard does this
    itself, but with a warning about each resumed run. Raises UserError for a damaged file.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    paths = [path for path in folder.glob("*tfevents*") if path.is_file()]
    for path in paths:
        check_records(path)
    if not paths:
        return {}
    most = {"scalars": 1, "images": 1, "tensors": 1, kind: 0}  # events of each tag; 0: all of them
    files = EventAccumulator(str(folder), most, purge_orphaned_data=False).Reload()
    found: dict[str, dict[int, Any]] = {}
    for tag in files.Tags()[kind]:
        kept: dict[int, Any] = {}
        events = files.Scalars(tag) if kind == "scalars" else files.Images(tag)
        for event in sorted(events, key=lambda event: event.wall_time):  # two files of one second are in no order
            if kept and event.step <= next(reversed(kept)):
                kept = {step: earlier for step, earlier in kept.items() if step < event.step}
            kept[event.step] = event
        found[tag] = kept
    return found


def image(picture: "Tensor | Figure", grey: bool = False) -> "Image":
    """A picture (3, height, width) in [0, 1], of which `grey` keeps one channel, or a matplotlib Figure, as pixels."""
    from PIL import Image
    from torchvision.transforms.functional import to_pil_image

    if isinstance(picture, Tensor):
        return to_pil_image((255 * picture[: 1 if grey else 3]).round().byte())
    picture.savefig(content := io.BytesIO())
    return Image.open(content).convert("RGB")


def titled(picture: "Image", *lines: str) -> "Image":
    """A picture below lines of text, black on white. It is as wide as its longest line. Its own pixels stay exact."""
    from PIL import Image, ImageDraw, ImageFont

    font, height, margin = ImageFont.load_default(13), 18, 5  # pixels
    width = max(picture.width, *(math.ceil(font.getlength(line)) + 2 * margin for line in lines))
    top = height * len(lines) + 2 * margin
    page = Image.new("RGB", (width, top + picture.height), "white")
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((margin, margin + height * i), line, fill="black", font=font)
    page.paste(picture.convert("RGB"), (0, top))
    return page


def check_records(path: Path) -> None:
    """Raise UserError for an event file with an empty or giant record, for which its reader would take the memory.

    A record is its length (8 bytes), a checksum (4 bytes), the content and another checksum (4 bytes).
    """
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            length = int.from_bytes(header[:8], "little")
            if not 0 < length <= MOST_RECORD:
                raise UserError(f"{path} is damaged: a record has {length:,} bytes")
            file.seek(length + 4, io.SEEK_CUR)


def save(picture: "Figure | list[Image]", path: Path, command: str, about: str) -> None:
    """Write a PNG, SVG or GIF with a command and a description in its metadata. Equal pictures give equal bytes."""
    from matplotlib import rc_context

    content = io.BytesIO()
    if isinstance(picture, list):
        durations = [400] * (len(picture) - 1) + [3000]  # milliseconds
        extras: dict[str, Any] = {"append_images": picture[1:], "duration": durations, "loop": 0}
        picture[0].save(content, "GIF", save_all=True, comment=f"{command}\n{about}".encode(), **extras)
    else:
        metadata: dict[str, Any] = {"Description": about, "Command": command, "Software": "VAE Lab"}
        if path.suffix == ".svg":  # SVG metadata has Dublin Core names, and by default the time
            metadata = {"Description": about, "Source": command, "Creator": "VAE Lab", "Date": None}
        with rc_context({"svg.hashsalt": "vaelab"}):
            picture.savefig(content, format=path.suffix[1:], metadata=metadata)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content.getbuffer())
