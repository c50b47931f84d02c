"""Picture files: pictures with the command that made them, and the pictures of a training as an animation."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaelab.errors import UserError
from vaelab.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def training(folder: Path) -> list["Image"]:
    """One frame for each picture of samples in the event files of a finished run.

    If there are none, the frames are pictures of reconstructions. A resumed run has several event files; if two of them
    have the same step, the later file counts. Raises UserError if there are no pictures.
    """
    from PIL import Image, ImageDraw, ImageFont
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"images": 0})  # 0: all of them
    events.Reload()
    tag = next((tag for tag in ("samples", "reconstructions") if tag in events.Tags()["images"]), None)
    if tag is None:
        raise UserError(f"{folder} has no event files with pictures of its training, and the animation needs them")
    metrics = json.loads((folder / "metrics.json").read_text())
    epochs, steps = metrics["epochs"], max(metrics["steps"], 1)
    drawn = {event.step: event.encoded_image_string for event in events.Images(tag)}
    pictures = {step: Image.open(io.BytesIO(drawn[step]), formats=["PNG"]).convert("L") for step in sorted(drawn)}
    width, height = (max(picture.size[side] for picture in pictures.values()) for side in range(2))
    frames, caption = [], 30  # pixels
    for step, picture in pictures.items():
        frame = Image.new("L", (width, height + caption), 255)
        frame.paste(picture, (0, caption))
        pen, text = ImageDraw.Draw(frame), f"{tag} at epoch {step * epochs / steps:.3g} of {epochs}, step {step:,}"
        pen.text((5, 3), text, fill=0, font=ImageFont.load_default(16))
        pen.rectangle((0, caption - 4, width * step / steps, caption - 1), fill=0)
        frames.append(frame)
    return frames


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
