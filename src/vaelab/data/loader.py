"""Batches of a data set in memory. One index operation on the device makes each batch, without worker processes."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from vaelab.errors import UserError


def thresholds(images: Tensor) -> Tensor:
    """257 * pixel - 2^15 of uint8 pixels, as int16. `binarize` compares these thresholds with its noise."""
    return images.to(torch.int16).mul_(257).add_(-(2**15))  # int16 wraps to -2^15 ... 2^15 - 1


def binarize(limits: Tensor, generator: Generator) -> Tensor:
    """Draw x ~ Bernoulli(pixel / 255) as booleans. `limits` are the `thresholds` of the pixels, of the same shape.

    Each threshold is compared with 16 random bits. One 64-bit draw gives four such numbers, which is several times
    faster than torch.bernoulli. Black is always 0 and white is always 1. Any other probability is too low by a factor
    of 1 - 2^-16.
    """
    words = torch.empty(-(-limits.numel() // 4), dtype=torch.int64, device=limits.device)
    noise = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: limits.numel()]
    return noise.clamp_(max=2**15 - 2).view(limits.shape) < limits


def seeded(device: torch.device, *keys: int) -> Generator:
    """A random generator on `device` with a seed that depends on all the keys."""
    return Generator(device).manual_seed(seed_of(*keys))


def seed_of(*keys: int) -> int:
    """One seed that depends on all the keys."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


class Loader:
    """An iterable over (x, y): float32 images in [0, 1] of shape (B, C, H, W) and int64 labels (B,), or None for y.

    Each pass is a new epoch. The order of images depends only on (seed, epoch), and the binarisation noise only on
    (seed, epoch, rank): random draws of a model do not change them. The ranks share the order, and each takes every
    world_size-th image. With `shuffle`, all ranks get the same number of batches, and an epoch leaves out a last batch
    of one image, in which batch normalisation has no variance. `next_index` selects a batch, and
    `gather` makes it. A CUDA graph can contain `gather`. Raises UserError for fewer images than ranks.
    """

    def __init__(
        self,
        images: Tensor,  # uint8 (N, C, H, W), on the device where batches are wanted
        labels: Tensor | None,  # int64 (N,), on the same device; None: the images have no labels
        batch_size: int,
        *,
        shuffle: bool = False,
        dynamic: bool = False,  # redraw binary pixels, x ~ Bernoulli(pixel / 255), each time an image is served
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,  # the number of the first pass
        limit: float | None = None,  # most batches of an epoch; a float is a share of all batches
    ) -> None:
        if 0 < len(images) < world_size:
            raise UserError(f"{world_size} processes cannot share {len(images)} images: each needs at least one")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.dynamic, self.seed = shuffle, dynamic, seed
        self.rank, self.world_size, self.limit = rank, world_size, limit
        each = len(images) // world_size
        each -= 1 < batch_size < each and each % batch_size == 1
        self.served = world_size * each if shuffle else len(images)  # images of an epoch, of all ranks
        self.epoch, self.batch = epoch - 1, 0  # the present epoch, and how many of its batches were served
        self.noise = Generator(images.device)  # one for all epochs, because a CUDA graph refers to it
        self._order: Tensor | None = None  # the images of the present epoch
        self._resumed = False

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.served, self.world_size)) // self.batch_size)

    @property
    def taken(self) -> int:
        """The number of batches of an epoch under the limit."""
        if self.limit is None:
            return len(self)
        return min(self.limit, len(self)) if isinstance(self.limit, int) else int(self.limit * len(self))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        self._order = None
        return iter(self._batches, None)

    def _batches(self) -> tuple[Tensor, Tensor | None] | None:
        index = self.next_index()
        return None if index is None else self.gather(index)

    def next_index(self) -> Tensor | None:
        """The index (B,) of the next batch, or None if the epoch is over. The call after `iter` starts an epoch."""
        if self._order is None:
            if not self._resumed:
                self.epoch, self.batch = self.epoch + 1, 0
                self.noise.manual_seed(seed_of(self.seed, self.epoch, 1 + self.rank))
            self._resumed = False
            self._order = self._shuffled()
        index = self._order[self.batch * self.batch_size : (self.batch + 1) * self.batch_size]
        self.batch += len(index) > 0
        return index if len(index) else None

    def indices(self) -> Iterator[Tensor]:
        """Yield the index (B,) of each batch of an epoch, or of the rest of a resumed epoch, under the limit."""
        iter(self)
        index = self.next_index()
        while index is not None:
            yield index
            index = self.next_index() if self.batch < self.taken else None

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The batch (x, y) of an index (B,). Dynamic binarisation uses the next noise of the loader."""
        rows = self._source.index_select(0, index)
        x = binarize(rows, self.noise).float() if self.dynamic else rows.float().div_(255)
        return x, None if self.labels is None else self.labels.index_select(0, index)

    @cached_property
    def _source(self) -> Tensor:
        """The tensor (N, C, H, W) that batches are taken from: thresholds if pixels are redrawn, otherwise images."""
        return thresholds(self.images) if self.dynamic else self.images

    def _shuffled(self) -> Tensor:
        """The index of this rank's images, in the order of the epoch."""
        order = torch.arange(len(self.images))
        if self.shuffle:
            order = torch.randperm(len(order), generator=seeded(torch.device("cpu"), self.seed, self.epoch, 0))
        return order[self.rank : self.served : self.world_size].to(self.images.device)

    def state_dict(self) -> dict[str, Any]:
        """The position in the present epoch, as plain containers and a tensor."""
        owner = (self.images.device.type, self.rank)
        return {"epoch": self.epoch, "batch": self.batch, "noise": self.noise.get_state(), "owner": owner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: with the rest of its epoch, or with the next epoch if its epoch is complete."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        if tuple(state["owner"]) == (self.images.device.type, self.rank):
            self.noise.set_state(state["noise"])
        else:  # another rank or kind of device: the order of images is kept, and the noise is seeded again
            self.noise.manual_seed(seed_of(self.seed, self.epoch, 1 + self.rank, self.batch))
        self._resumed = 0 < self.batch < self.taken
