import pytest
import torch

from vaelab.data.loader import Loader, binarize, seeded, thresholds

CPU = torch.device("cpu")


def numbered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of two pixels that hold the index of the image, and labels with the same index."""
    number = torch.arange(count)
    pixels = torch.stack([number % 256, number // 256], dim=1).to(torch.uint8)
    return pixels.view(count, 1, 1, 2), number


def epoch(loader: Loader) -> torch.Tensor:
    return torch.cat([y for _, y in loader])


def test_binary_pixels_have_the_probability_of_their_grey_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    draws = binarize(thresholds(levels).repeat(20_000, 1), seeded(CPU, 1)).float()
    p = levels / 255
    error = (p * (1 - p) / 20_000).sqrt()
    assert ((draws.mean(0) - p).abs() <= 5 * error).all()
    assert draws[:, 0].sum() == 0
    assert draws[:, 255].sum() == 20_000


def test_binary_pixels_are_independent_of_their_neighbours() -> None:
    draws = binarize(thresholds(torch.full((200_000, 8), 128, dtype=torch.uint8)), seeded(CPU, 1)).float()
    correlation = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 200_000**0.5


@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (2, 1, 7, 3)])
def test_binarize_keeps_any_shape(shape: tuple[int, ...]) -> None:
    assert binarize(thresholds(torch.full(shape, 255, dtype=torch.uint8)), seeded(CPU, 1)).all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_serves_every_image_once_with_its_label(shuffle: bool) -> None:
    images, labels = numbered(1000)
    loader = Loader(images, labels, 128, shuffle=shuffle)
    batches = list(loader)
    assert len(batches) == len(loader) == 8
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert torch.equal(y.sort().values, labels)
    assert torch.equal((x * 255).round().to(torch.uint8), images[y])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(y, labels) != shuffle


def test_order_depends_on_seed_and_epoch_alone() -> None:
    data = numbered(300)
    loader, twin, other = (Loader(*data, 50, shuffle=True, seed=seed) for seed in (0, 0, 1))
    first, second = epoch(loader), epoch(loader)
    assert not torch.equal(first, second)
    torch.rand(7)  # random numbers that the model draws do not matter
    assert torch.equal(epoch(twin), first)
    assert not torch.equal(epoch(other), first)


def test_dynamic_pixels_are_redrawn_each_epoch_and_repeat_with_the_seed() -> None:
    images, labels = torch.full((64, 1, 4, 4), 100, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)
    loader, twin = (Loader(images, labels, 64, dynamic=True, seed=3) for _ in range(2))
    (first, _), (second, _) = next(iter(loader)), next(iter(loader))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    assert torch.equal(next(iter(twin))[0], first)


@pytest.mark.parametrize("total", [1000, 1001, 1003])
def test_ranks_share_an_epoch_without_overlap(total: int) -> None:
    data = numbered(total)
    train = [Loader(*data, 64, shuffle=True, rank=rank, world_size=4) for rank in range(4)]
    served = [epoch(loader) for loader in train]
    assert {len(part) for part in served} == {total // 4}
    assert len(torch.cat(served).unique()) == total // 4 * 4
    test = [epoch(Loader(*data, 64, rank=rank, world_size=4)) for rank in range(4)]
    assert torch.equal(torch.cat(test).sort().values, data[1])


def test_more_ranks_than_images_are_refused() -> None:
    Loader(*numbered(0), 64, world_size=2)  # no validation images at all
    with pytest.raises(ValueError, match="2 processes cannot share 1 images"):
        Loader(*numbered(1), 64, world_size=2)


def test_ranks_draw_different_noise() -> None:
    images, labels = torch.full((8, 1, 8, 8), 128, dtype=torch.uint8), torch.zeros(8, dtype=torch.long)
    a, b = (next(iter(Loader(images, labels, 4, dynamic=True, rank=r, world_size=2)))[0] for r in range(2))
    assert not torch.equal(a, b)


def test_resuming_on_another_kind_of_device_keeps_the_order() -> None:
    images, labels = numbered(100)
    first, second = (Loader(images, labels, 10, shuffle=True, dynamic=True) for _ in range(2))
    iterator = iter(first)
    next(iterator)
    second.load_state_dict(first.state_dict() | {"owner": ("cuda", 0), "noise": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(torch.cat([y for _, y in iterator]), torch.cat([y for _, y in second]))


@pytest.mark.parametrize("served", [1, 5, 10, 13, 20])
def test_resumed_loader_goes_on_where_the_other_stood(served: int) -> None:
    images, labels = numbered(100)
    whole, first, second = (Loader(images, labels, 10, shuffle=True, dynamic=True) for _ in range(3))
    expected = [batch for _ in range(3) for batch in whole][served:]
    iterator = (batch for _ in range(3) for batch in first)
    for _ in range(served):
        next(iterator)
    second.load_state_dict(first.state_dict())
    resumed = [batch for _ in range(3) for batch in second][: len(expected)]
    for (x, y), (a, b) in zip(expected, resumed, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


@pytest.mark.parametrize(
    ("images", "batch_size", "world_size", "sizes"),
    [
        (21, 5, 1, [5, 5, 5, 5]),
        (22, 5, 1, [5, 5, 5, 5, 2]),
        (43, 5, 2, [5, 5, 5, 5]),
        (3, 1, 1, [1, 1, 1]),
        (1, 5, 1, [1]),
    ],
)
def test_an_epoch_leaves_out_a_last_batch_of_one_image(
    images: int, batch_size: int, world_size: int, sizes: list[int]
) -> None:
    """Batch normalisation has no variance in it. Evaluation leaves out nothing."""
    data = torch.zeros(images, 1, 2, 2, dtype=torch.uint8), torch.arange(images)
    for rank in range(world_size):
        loader = Loader(*data, batch_size, shuffle=True, rank=rank, world_size=world_size)
        assert [len(y) for _, y in loader] == sizes
        assert len(loader) == len(sizes)
    seen = torch.cat([y for _, y in Loader(*data, batch_size)])
    assert seen.tolist() == list(range(images))
