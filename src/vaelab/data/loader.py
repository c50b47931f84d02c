"""Batches of an in-memory data set, made on the device that holds it: one index operation a batch, no workers."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from vaelab.errors import UserError


def thresholds(images: Tensor) -> Tensor:
    """257 * pixel - 2^15 of uint8 pixels, as int16: what `binarize` compares with its noise."""
    return images.to(torch.int16).mul_(257).add_(-(2**15))  # wraps to -2^15 ... 2^15 - 1


def binarize(limits: Tensor, generator: Generator) -> Tensor:
    """Draw x ~ Bernoulli(pixel / 255), given the pixels' `thresholds` as limits; returns booleans of the same shape.

    Each is compared with 16 random bits, four of them to one 64-bit draw, which is several times faster than
    torch.bernoulli. Black stays 0 and white stays 1 with certainty; any other probability is low by a factor of
    1 - 2^-16.
    """
    words = torch.empty(-(-limits.numel() // 4), dtype=torch.int64, device=limits.device)
    noise = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: limits.numel()]
    return noise.clamp_(max=2**15 - 2).view(limits.shape) < limits


def seeded(device: torch.device, *keys: int) -> Generator:
    """A generator on `device` whose stream depends on all the keys."""
    return Generator(device).manual_seed(seed_of(*keys))


def seed_of(*keys: int) -> int:
    """One seed for all the keys."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


class Loader:
    """An iterable over (x, y): float32 images in [0, 1] of shape (B, C, H, W) and int64 labels (B,).

    Every pass is a new epoch: the order depends on (seed, epoch) and binarisation noise on (seed, epoch, rank) alone,
    so that they are the same whatever the model draws. Ranks share the order and take every world_size-th image; when
    shuffling, all ranks get the same number of batches. `next_index` and `gather` are the two halves of a batch. A CUDA
    graph can hold the second.
    """

    def __init__(
        self,
        images: Tensor,  # uint8 (N, C, H, W), on the device where batches are wanted
        labels: Tensor,  # int64 (N,), on the same device
        batch_size: int,
        *,
        shuffle: bool = False,
        dynamic: bool = False,  # redraw binary pixels, x ~ Bernoulli(pixel / 255), each time an image is served
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,  # which the first pass is
        limit: float | None = None,  # batches after which an epoch is over, or as a float a share of all batches
    ) -> None:
        if 0 < len(images) < world_size:
            raise UserError(f"{world_size} processes cannot share {len(images)} images: each needs one at least")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.dynamic, self.seed = shuffle, dynamic, seed
        self.rank, self.world_size, self.limit = rank, world_size, limit
        self.served = len(images) - (len(images) % world_size if shuffle else 0)  # in an epoch, by all ranks together
        self.epoch, self.batch = epoch - 1, 0  # the epoch under way and the batches of it that were served
        self.noise = Generator(images.device)  # one for all epochs: a CUDA graph holds on to it
        self._order: Tensor | None = None  # of the epoch under way
        self._resumed = False

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.served, self.world_size)) // self.batch_size)

    @property
    def taken(self) -> int:
        """How many batches an epoch has under the limit."""
        if self.limit is None:
            return len(self)
        return min(self.limit, len(self)) if isinstance(self.limit, int) else int(self.limit * len(self))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._order = None
        return iter(self._batches, None)

    def _batches(self) -> tuple[Tensor, Tensor] | None:
        index = self.next_index()
        return None if index is None else self.gather(index)

    def next_index(self) -> Tensor | None:
        """The images of the next batch, (B,): of a new epoch after `iter`; None where the epoch ends."""
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
        """The images (B,) of each batch of an epoch, or of the rest of a resumed one, under the limit."""
        iter(self)
        index = self.next_index()
        while index is not None:
            yield index
            index = self.next_index() if self.batch < self.taken else None

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The batch (x, y) of images (B,), with binarisation's next noise."""
        rows = self._source.index_select(0, index)
        x = binarize(rows, self.noise).float() if self.dynamic else rows.float().div_(255)
        return x, self.labels.index_select(0, index)

    @cached_property
    def _source(self) -> Tensor:
        """What batches are made of, (N, C, H, W)."""
        return thresholds(self.images) if self.dynamic else self.images

    def _shuffled(self) -> Tensor:
        """The images of this rank, in turn."""
        order = torch.arange(len(self.images))
        if self.shuffle:
            order = torch.randperm(len(order), generator=seeded(torch.device("cpu"), self.seed, self.epoch, 0))
        return order[self.rank : self.served : self.world_size].to(self.images.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch under way stands; plain containers and a tensor."""
        owner = (self.images.device.type, self.rank)
        return {"epoch": self.epoch, "batch": self.batch, "noise": self.noise.get_state(), "owner": owner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`: with the rest of its epoch, or with the next epoch where none is left."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        if tuple(state["owner"]) == (self.images.device.type, self.rank):
            self.noise.set_state(state["noise"])
        else:  # another rank, or another kind of device: the order of images goes on, noise starts anew
            self.noise.manual_seed(seed_of(self.seed, self.epoch, 1 + self.rank, self.batch))
        self._resumed = 0 < self.batch < self.taken
