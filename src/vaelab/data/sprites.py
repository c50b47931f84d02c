"""Sprites: binary images of one shape with known factors, as dSprites has them.

The factors are shape, scale, rotation, x and y. Source of the design: Matthey et al. 2017,
https://github.com/google-deepmind/dsprites-dataset. The pixels are not those of dSprites, because they are drawn here.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaelab import checks
from vaelab.data.module import DataSet, ImageDataModule
from vaelab.errors import UserError

SHAPES = ("square", "ellipse", "heart")
HALF = 0.15  # half the side of the square at scale 1, as a share of the image's side; all shapes have its area
CHUNK = 2000  # images that are drawn at a time


class SpritesDataModule(ImageDataModule):
    """White shapes on black, drawn at random combinations of their factors. Labels are the shapes.

    | factor | meaning of its value k, from 0 to n - 1 |
    |---|---|
    | shape | square, ellipse (its axes are as 2 to 1), heart; all of one area |
    | scale | a linear scale from 1/2 to 1, in equal steps |
    | rotation | by 2 pi k / n, counter-clockwise |
    | x, y | the centre, in equal steps of whole pixels to the right and down, within the middle half of the image |

    A pixel is white if its centre lies inside the shape. `factor_sizes` has n for each factor. `num_images` different
    combinations are drawn, and an image is the same for all seeds. `factors` has the values for the images of each
    split, (N, 5) whole numbers.

    Raises UserError as ImageDataModule does, for an image that is not a square of one channel, for factor sizes out of
    their range, for more images than there are combinations, for another `dataset` and for a `root`.
    """

    binarizations = ("threshold",)
    factor_names = ("shape", "scale", "rotation", "x", "y")

    def __init__(
        self,
        dataset: str = "sprites",  # or the name in records, which adds sizes and seed
        image_shape: Sequence[int] = (1, 64, 64),
        factor_sizes: Sequence[int] = (3, 6, 40, 32, 32),
        num_images: int | None = 60_000,  # None: all combinations
        val_size: int = 5000,
        test_size: int = 5000,
        split_seed: int = 0,  # of the choice of the images and of their split
        binarization: str = "threshold",
        **settings: Any,  # of ImageDataModule
    ) -> None:
        if "root" in settings:
            raise UserError(f"root={settings['root']}: sprites are drawn, and no folder is read: leave it out")
        super().__init__("", dataset, image_shape, val_size=val_size, binarization=binarization, **settings)
        checks.widths(3, image_shape=image_shape)
        checks.widths(factor_sizes=factor_sizes)
        if len(factor_sizes) != len(self.factor_names):
            raise UserError(f"factor_sizes={list(factor_sizes)}: one size for each of {', '.join(self.factor_names)}")
        channels, height, width = self.image_shape
        if channels != 1 or height != width:
            raise UserError(f"image_shape={list(image_shape)}: sprites are squares of one channel, such as [1,64,64]")
        if factor_sizes[0] > len(SHAPES):
            raise UserError(f"factor_sizes={list(factor_sizes)}: there are {len(SHAPES)} shapes")
        for positions in factor_sizes[3:]:
            if height % (2 * positions):
                wrong = f"{positions} positions do not divide half of {height} pixels"
                raise UserError(f"factor_sizes={list(factor_sizes)}: {wrong}, but a step is a number of whole pixels")
        total = math.prod(factor_sizes)
        count = total if num_images is None else num_images
        checks.whole(num_images=count, test_size=test_size)
        checks.whole(0, split_seed=split_seed)
        if count > total:
            raise UserError(f"num_images={count:,}, but factor_sizes={list(factor_sizes)} give {total:,} images")
        if val_size + test_size >= count:
            wrong = f"val_size={val_size} and test_size={test_size}"
            raise UserError(f"{wrong} leave none of num_images={count} for training")
        self.factor_sizes, self.count, self.test_size, self.split_seed = (
            tuple(factor_sizes),
            count,
            test_size,
            split_seed,
        )
        self.factors: dict[str, Tensor] = {}
        self.whole_name = "-".join(map(str, ("sprites", height, *factor_sizes, split_seed)))
        checks.one_of(("sprites", self.whole_name), dataset=dataset)

    def read(self) -> DataSet:
        """Draw the images."""
        total, generator = math.prod(self.factor_sizes), torch.Generator().manual_seed(self.split_seed)
        chosen = torch.randperm(total, generator=generator)[: self.count]
        factors = torch.stack(torch.unravel_index(chosen, self.factor_sizes), dim=1)
        sizes = [self.count - self.val_size - self.test_size, self.val_size, self.test_size]
        train, val, test = factors.split(sizes)
        self.factors = {"train": train[: self.train_size], "val": val, "test": test}
        drawn = self.draw(factors).split(sizes)
        parts = [(images, part[:, 0]) for images, part in zip(drawn, (train, val, test), strict=True)]
        return DataSet(self.whole_name, parts[0], parts[2], parts[1])

    def draw(self, factors: Tensor) -> Tensor:
        """The images (N, 1, H, H) of factors (N, 5), uint8, with pixels of 0 and 255."""
        side = self.image_shape[1]
        images = torch.empty(len(factors), side, side, dtype=torch.uint8)
        steps = [side // 2 // positions for positions in self.factor_sizes[3:]]
        for part, some in zip(images.split(CHUNK), factors.split(CHUNK), strict=True):
            shape, scale, rotation, x, y = some.T[..., None, None]
            rows = (torch.arange(side)[:, None] - y * steps[1]) % side  # no shape reaches the image's edge
            columns = (torch.arange(side) - x * steps[0]) % side
            part.copy_(self._sprites[shape, scale, rotation, rows, columns])
        return images.unsqueeze(1)

    @cached_property
    def _sprites(self) -> Tensor:
        """Each shape at each scale and rotation, at x = y = 0: (shapes, scales, rotations, H, H), uint8."""
        side = self.image_shape[1]
        shapes, scales, rotations, *positions = self.factor_sizes
        centre_x, centre_y = ((side - 1) / 2 - (n - 1) / 2 * (side // 2 // n) for n in positions)
        pixels = torch.arange(side, dtype=torch.float64)
        right, up = pixels - centre_x, (centre_y - pixels)[:, None]
        radius = HALF * side * torch.linspace(0.5, 1, scales, dtype=torch.float64).view(-1, 1, 1, 1)
        angle = (2 * math.pi / rotations * torch.arange(rotations, dtype=torch.float64)).view(-1, 1, 1)
        u = (right * angle.cos() + up * angle.sin()) / radius  # (scales, rotations, H, H)
        v = (up * angle.cos() - right * angle.sin()) / radius
        inside = torch.stack([SHAPE_TESTS[name](u, v) for name in SHAPES[:shapes]])
        return inside.to(torch.uint8).mul_(255)


def square(u: Tensor, v: Tensor) -> Tensor:
    """|u| <= 1 and |v| <= 1: an area of 4."""
    return torch.maximum(u.abs(), v.abs()) <= 1


def ellipse(u: Tensor, v: Tensor) -> Tensor:
    """(u / 2)^2 + v^2 <= 2 / pi: an area of 4."""
    return (u / 2).square() + v.square() <= 2 / math.pi


def heart(u: Tensor, v: Tensor) -> Tensor:
    """(a^2 + b^2 - 1)^3 <= a^2 b^3, which has an area of 3.66194 and its centroid at (0, 0.29348), scaled and moved."""
    factor = math.sqrt(3.66194 / 4)
    a, b = u * factor, v * factor + 0.29348
    return (a.square() + b.square() - 1) ** 3 <= a.square() * b**3


SHAPE_TESTS = {"square": square, "ellipse": ellipse, "heart": heart}
