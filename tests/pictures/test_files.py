"""Picture files store their command, and the same picture gives the same bytes."""

import io
import struct
import time
from pathlib import Path

import pytest
import torch
from conftest import refused
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vaelab import pictures
from vaelab.errors import UserError

COMMAND, ABOUT = "python generate.py run=x", "x: MNIST"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_the_same_file_each_time_and_holds_its_command(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / "new" / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        torch.manual_seed(0)
        picture = pictures.framed(pictures.grid(torch.rand(4, 1, 6, 5), 2), "Title")
        pictures.save(picture, path, COMMAND, ABOUT)
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    for text in (COMMAND, ABOUT):
        assert text.encode() in content


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_title_stands_above_the_exact_pixels(mode: str) -> None:
    picture = pictures.image(torch.rand(3, 30, 40), grey=mode == "L")
    assert (picture.mode, picture.size) == (mode, (40, 30))
    page = pictures.titled(picture, "a line that is wider than the picture", "7")
    left, top = 0, page.height - 30
    assert page.width > 150
    assert top > 30
    assert page.crop((left, top, left + 40, top + 30)).tobytes() == picture.convert("RGB").tobytes()
    head = page.crop((0, 0, page.width, top)).convert("L")
    assert head.getextrema() == (0, 255)
    assert {*page.crop((40, top, *page.size)).convert("L").tobytes()} == {255}


def test_an_animation_has_all_frames_and_ends_slowly(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 6), level) for level in (0, 100, 200)]
    pictures.save(frames, tmp_path / "a.gif", COMMAND, ABOUT)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        durations = []
        for frame in range(3):
            animation.seek(frame)
            durations.append(animation.info["duration"])
        assert durations == [400, 400, 3000]
        assert animation.info["comment"] == f"{COMMAND}\n{ABOUT}".encode()


def test_a_run_without_pictures_has_no_animation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no event files with pictures"):
        pictures.training(tmp_path, 1, 1)


def record(content: bytes, length: int | None = None) -> bytes:
    """A record of an event file, with its checksums."""
    header = struct.pack("<Q", len(content) if length is None else length)
    return header + struct.pack("<I", masked_crc32c(header)) + content + struct.pack("<I", masked_crc32c(content))


def drawn(*images: bytes) -> bytes:
    """An event file with a picture of samples at each step."""
    content = record(Event(wall_time=1, file_version="brain.Event:2").SerializeToString())
    for step, image in enumerate(images):
        picture = Summary.Image(height=1, width=1, colorspace=1, encoded_image_string=image)
        summary = Summary(value=[Summary.Value(tag="samples", image=picture)])
        content += record(Event(wall_time=1, step=step, summary=summary).SerializeToString())
    return content


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


def test_an_animation_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(drawn(png(8, 6), png(9, 5)) + record(b"cut off", 50))
    frames = pictures.training(tmp_path, 1, 1)
    assert [frame.size for frame in frames] == [(9, 36), (9, 36)]
    assert len(pictures.training(tmp_path, 0, 0)) == 2  # metrics.json does not fit, and nothing divides by zero


GIANT = png(20_000, 12_000)
HOSTILE = {
    "a giant record": (record(b"", 2**62), "is damaged: a record has 4,611,686,018,427,387,904 bytes"),
    "a large record": (drawn(png(8, 6)) + record(b"x", 2**34), "is damaged: a record has 17,179,869,184 bytes"),
    "zeros": (bytes(100), "is damaged: a record has 0 bytes"),
    "a giant picture": (drawn(GIANT), "has 20,000 x 12,000 pixels"),
    "large pictures": (drawn(*[png(5000, 5000)] * 10), "has 10 pictures of 5000 x 5000 pixels, too many"),
    "wide and high pictures": (drawn(png(15_000, 1), png(1, 15_000)), "has 2 pictures of 15000 x 15000 pixels"),
    "many pictures": (drawn(*[png(8, 6)] * 1001), "has 1001 pictures of 8 x 6 pixels, too many"),
    "no picture": (drawn(b"<svg>"), "is not a PNG picture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_event_files_of_unknown_origin(tmp_path: Path, name: str) -> None:
    content, sentence = HOSTILE[name]
    (tmp_path / "events.out.tfevents.1").write_bytes(content)
    started = time.monotonic()
    assert sentence in refused(pictures.training, tmp_path, 1, 1)
    assert time.monotonic() - started < 3
