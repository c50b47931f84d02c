"""Image files are decoded once, into a cache that follows every change of the files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaelab.data import cache
from vaelab.errors import UserError

SHAPE = (3, 4, 6)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven coloured images in two folders, and files that are no images."""
    for i in range(7):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden.png").write_text("no image")
    (tmp_path / "images" / ".thumbnails").mkdir()
    Image.fromarray(picture(9)).save(tmp_path / "images" / ".thumbnails" / "9.png")
    return tmp_path / "images"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def arrays() -> list[Path]:
    return sorted(cache.folder().rglob("*.npy"))


def test_the_pixels_are_those_of_the_files_in_their_order(root: Path) -> None:
    files = cache.find(root)
    assert [file.name for file in files] == [f"a/{i}.png" for i in (0, 2, 4, 6)] + [f"b/{i}.png" for i in (1, 3, 5)]
    pixels = cache.decoded(root, files[::-1], SHAPE)
    wanted = [torch.from_numpy(picture(i)).movedim(-1, 0) for i in (5, 3, 1, 6, 4, 2, 0)]
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.stack(wanted))
    assert torch.equal(cache.decoded(root, files[::-1], SHAPE, invert=True), 255 - pixels)


def test_many_images_are_decoded_in_parallel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 2)
    monkeypatch.setattr(cache.joblib, "cpu_count", lambda: 3)
    pixels = cache.decoded(root, cache.find(root), SHAPE)
    assert torch.equal(pixels[4], torch.from_numpy(picture(1)).movedim(-1, 0))


def test_the_files_are_decoded_once_and_stay_as_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    first = cache.decoded(root, cache.find(root), SHAPE).clone()
    assert cache.folder() not in (root, *root.parents)
    assert len(arrays()) == 1
    monkeypatch.setattr(cache, "decode", lambda *_, **__: pytest.fail("decoded again"))
    again = cache.decoded(root, cache.find(root), SHAPE)
    assert torch.equal(again, first)
    again.zero_()  # the copy of this process, not the file
    assert torch.equal(cache.decoded(root, cache.find(root), SHAPE), first)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_another_order_is_copied_from_the_cache_and_not_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cache.find(root)
    first = cache.decoded(root, files, SHAPE)
    monkeypatch.setattr(cache, "decode", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.setattr(cache, "CHUNK", 3)
    for order in ([3, 0, 6, 1, 5, 2, 4], [6, 5, 4, 3, 2, 1, 0], [1, 2, 0, 4, 3, 6, 5]):
        again = cache.decoded(root, [files[i] for i in order], SHAPE)
        assert torch.equal(again, first[order])
        assert len(arrays()) == 1
    assert torch.equal(first[2], torch.from_numpy(picture(4)).movedim(-1, 0))  # its file is gone, and its pixels stay


def test_a_file_that_another_process_replaces_meanwhile_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has another order: it removes our file after we have seen it, before we have mapped it."""
    files = cache.find(root)
    first = cache.decoded(root, files, SHAPE).clone()
    load, calls = np.load, []

    def slow(path: Path, **settings: str) -> np.ndarray:
        if not calls:
            calls.append(path)
            cache.decoded(root, files[::-1], SHAPE)
            assert not path.exists()
        return load(path, **settings)

    monkeypatch.setattr(cache.np, "load", slow)
    assert torch.equal(cache.decoded(root, files, SHAPE), first)
    assert calls


def test_a_change_of_a_file_makes_the_cache_anew(root: Path) -> None:
    cache.decoded(root, cache.find(root), SHAPE)
    (old,) = arrays()
    Image.fromarray(picture(20)).save(root / "a" / "0.png")
    os.utime(root / "a" / "0.png", ns=(1, 1))
    pixels = cache.decoded(root, cache.find(root), SHAPE)
    assert torch.equal(pixels[0], torch.from_numpy(picture(20)).movedim(-1, 0))
    (new,) = arrays()  # the old one is gone
    assert new != old
    (root / "a" / "0.png").unlink()
    assert len(cache.decoded(root, cache.find(root), SHAPE)) == 6
    assert arrays() != [new]


def test_images_of_another_size_are_resized_and_their_middle_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (10, 0, 30, 20))
    wide.save(tmp_path / "x.png")
    pixels = cache.decoded(tmp_path, cache.find(tmp_path), (3, 10, 10))[0]
    assert (pixels[0, :, 1:-1] > 250).all()  # the blue ends are cut off
    grey = cache.decoded(tmp_path, cache.find(tmp_path), (1, 10, 20))[0]
    assert grey[0, 5, 10] == 76  # red is 0.299 of white
    assert grey[0, 5, 0] == 29  # blue is 0.114


def test_a_large_photograph_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (900, 700), (200, 100, 50)).save(tmp_path / "x.jpg", quality=95)
    pixels = cache.decoded(tmp_path, cache.find(tmp_path), (3, 8, 8))[0].float()
    assert (pixels - torch.tensor([200.0, 100, 50]).view(3, 1, 1)).abs().max() <= 2


def test_bad_images_are_named_and_counted_and_leave_no_cache(root: Path) -> None:
    for name in ("b/x.png", "a/y.png"):
        (root / name).write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"a/y.png cannot be read as an image: .* \(and 1 more images cannot be used\)$"
    ):
        cache.decoded(root, cache.find(root), SHAPE)
    assert arrays() == []


def test_a_full_disk_is_named_before_anything_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"has 1e-08 GB left, .* take 5.04e-07 GB: .* VAELAB_CACHE"):
        cache.decoded(root, cache.find(root), SHAPE)


def test_a_link_back_does_not_lead_in_circles(root: Path) -> None:
    (root / "a" / "again").symlink_to(root)
    assert len(cache.find(root)) == 7


def test_without_a_variable_the_cache_is_in_the_user_s_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAELAB_CACHE")
    assert cache.folder().name == "vaelab"
    assert cache.folder().is_absolute()
