"""Each factor of a sprite moves what it says, and nothing else."""

import functools
import math

import pytest
import torch
from torch import Tensor

from vaelab.data import SpritesDataModule
from vaelab.errors import UserError

SQUARE, ELLIPSE, HEART = range(3)
HALF = 0.15 * 64  # half the side of the largest square, in pixels


def sprites(**settings: object) -> SpritesDataModule:
    return SpritesDataModule(**{"num_images": 60, "val_size": 10, "test_size": 20, **settings})  # type: ignore[arg-type]


default = functools.cache(sprites)


def drawn(*factors: tuple[int, ...]) -> Tensor:
    """Images (N, 64, 64), 0 and 1, of (shape, scale, rotation, x, y)."""
    return default().draw(torch.tensor(factors))[:, 0].float() / 255


def centroid(images: Tensor) -> Tensor:
    """The place of the mean white pixel: (N, 2), right and down, from the middle of the image."""
    axis = torch.arange(64) - 31.5
    mass = images.sum((1, 2))
    return torch.stack([(images * axis).sum((1, 2)) / mass, (images * axis[:, None]).sum((1, 2)) / mass], dim=1)


def angle(images: Tensor) -> Tensor:
    """The direction of the longest axis in radians, counter-clockwise, from the second moments: (N,)."""
    centre = centroid(images)
    x = (torch.arange(64) - 31.5 - centre[:, :1])[:, None, :]
    y = -(torch.arange(64) - 31.5 - centre[:, 1:])[:, :, None]
    xx, yy, xy = ((images * product).sum((1, 2)) for product in (x * x, y * y, x * y))
    return 0.5 * torch.atan2(2 * xy, xx - yy)


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_x_and_y_move_the_shape_by_one_pixel(shape: int) -> None:
    still = drawn((shape, 5, 3, 16, 16))[0]
    moved = drawn(*[(shape, 5, 3, x, y) for x, y in ((17, 16), (16, 17), (0, 31), (31, 0))])
    for image, (dx, dy) in zip(moved, ((1, 0), (0, 1), (-16, 15), (15, -16)), strict=True):
        assert torch.equal(image, still.roll((dy, dx), (0, 1)))
    middle = centroid(drawn((shape, 5, 3, 15, 15), (shape, 5, 3, 16, 16)))
    assert (middle - torch.tensor([[-0.5, -0.5], [0.5, 0.5]])).abs().max() < 0.15


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_scale_changes_the_area_and_no_shape_reaches_the_edge(shape: int) -> None:
    images = drawn(*[(shape, scale, rotation, 16, 16) for scale in range(6) for rotation in range(40)])
    areas = images.sum((1, 2)).view(6, 40).mean(1)
    scales = torch.linspace(0.5, 1, 6)
    assert (areas / (4 * HALF**2 * scales**2) - 1).abs().max() < 0.02
    for x, y in ((0, 0), (31, 31)):
        corner = drawn(*[(shape, 5, rotation, x, y) for rotation in range(40)])
        assert not corner[:, [0, -1]].any()
        assert not corner[:, :, [0, -1]].any()


def test_rotation_turns_the_shape_counter_clockwise() -> None:
    images = drawn(*[(ELLIPSE, 5, rotation, 16, 16) for rotation in range(40)])
    turned = angle(images) - 2 * math.pi / 40 * torch.arange(40)
    assert ((turned + math.pi / 2) % math.pi - math.pi / 2).abs().max() < math.radians(2)  # of 9 degrees in a step


def test_each_shape_has_its_symmetry() -> None:
    def differing(shape: int, turn: int) -> float:
        """The share of white pixels that a rotation by `turn` of 40 changes."""
        first = drawn(*[(shape, 5, k, 16, 16) for k in range(40 - turn)])
        last = drawn(*[(shape, 5, k + turn, 16, 16) for k in range(40 - turn)])
        return float((first != last).sum() / first.sum())

    assert differing(SQUARE, 10) == 0
    assert differing(ELLIPSE, 20) == 0
    assert min(differing(SQUARE, 5), differing(ELLIPSE, 10), differing(HEART, 10), differing(HEART, 20)) > 0.1
    (heart,) = drawn((HEART, 5, 0, 15, 15))
    columns = heart.any(0).nonzero()
    mirrored = heart[:, int(columns.min()) : int(columns.max()) + 1]
    assert torch.equal(mirrored, mirrored.flip(1))
    assert heart.sum(1)[:31].sum() > heart.sum(1)[32:].sum()  # the point is below


def test_factors_travel_with_the_images() -> None:
    data = sprites(train_size=25)
    data.setup()
    assert data.protocol["images"] == {"train": 25, "val": 10, "test": 20}
    seen = torch.cat([*data.factors.values()])
    assert len(seen.unique(dim=0)) == len(seen) == 55
    assert (seen < torch.tensor(data.factor_sizes)).all()
    assert data.factor_names == ("shape", "scale", "rotation", "x", "y")
    for split, (images, labels) in data.splits.items():
        assert torch.equal(data.draw(data.factors[split]), images)
        assert torch.equal(data.factors[split][:, 0], labels)
        assert set(images.unique().tolist()) == {0, 255}


def test_the_choice_depends_on_its_seed_alone() -> None:
    first, again, other = sprites(), sprites(seed=4), sprites(split_seed=1)
    for data in (first, again, other):
        data.setup()
    assert all(torch.equal(first.splits[split][0], again.splits[split][0]) for split in first.splits)
    assert not torch.equal(first.factors["train"], other.factors["train"])
    assert sprites(dataset=first.name).whole_name == first.name  # as a finished run is opened
    assert (first.name, other.name) == ("sprites-64-3-6-40-32-32-0", "sprites-64-3-6-40-32-32-1")


def test_all_combinations_of_small_factors() -> None:
    data = sprites(image_shape=[1, 16, 16], factor_sizes=[2, 2, 3, 4, 2], num_images=None)
    data.setup()
    seen = torch.cat([*data.factors.values()])
    assert len(seen.unique(dim=0)) == len(seen) == 96
    x = sprites(image_shape=[1, 16, 16], factor_sizes=[1, 1, 1, 4, 2], num_images=8, val_size=0, test_size=1).draw(
        torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    )[:, 0]
    assert torch.equal(x[1], x[0].roll(2, 1))  # steps of 8 / 4 and 8 / 2 pixels
    assert torch.equal(x[2], x[0].roll(4, 0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_shape": [3, 64, 64]}, r"^image_shape=\[3, 64, 64\]: sprites are squares of one channel"),
        ({"image_shape": [1, 64, 32]}, r"^image_shape=\[1, 64, 32\]: sprites are squares"),
        ({"factor_sizes": [4, 6, 40, 32, 32]}, r"^factor_sizes=\[4, .*: there are 3 shapes$"),
        ({"factor_sizes": [3, 6, 40, 30, 32]}, r"30 positions do not divide half of 64 pixels"),
        ({"factor_sizes": [3, 6, 40]}, r"^factor_sizes=\[3, 6, 40\]: one size for each of shape, sca"),
        ({"num_images": 10**6}, r"^num_images=1,000,000, but factor_sizes=.* give 737,280 images$"),
        ({"val_size": 40}, r"^val_size=40 and test_size=20 leave none of num_images=60 for training$"),
        ({"test_size": 0}, r"^test_size=0: "),
        ({"binarization": "none"}, r"^binarization=none: choose "),
        ({"dataset": "mine"}, r"^dataset=mine: choose one of sprites, sprites-64-3-6-40-32-32-0$"),
        ({"root": "data"}, r"^root=data: sprites are drawn, and no folder is read: leave it out$"),
    ],
)
def test_mistakes_get_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sprites(**settings)
