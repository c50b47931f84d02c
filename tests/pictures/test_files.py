"""Picture files store their command, and the same picture gives the same bytes."""

from pathlib import Path

import pytest
import torch
from PIL import Image

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
        pictures.training(tmp_path)
