"""PixelCNN: the probabilities of all maps sum to one, nothing sees what comes later, and samples follow them."""

import itertools

import pytest
import torch

from vaelab.networks import PixelCNN


def net(num_categories: int = 3, condition: int = 0, num_blocks: int = 1, kernel_size: int = 3) -> PixelCNN:
    """A network whose probabilities are far from uniform."""
    network = PixelCNN(num_categories, condition, channels=6, kernel_size=kernel_size, num_blocks=num_blocks)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


def all_maps(height: int, width: int, num_categories: int) -> torch.Tensor:
    maps = itertools.product(range(num_categories), repeat=height * width)
    return torch.tensor(list(maps)).view(-1, height, width)


@pytest.mark.parametrize(
    ("shape", "num_categories", "condition"), [((2, 2), 3, 0), ((1, 4), 3, 2), ((4, 1), 3, 0), ((3, 3), 2, 1)]
)
def test_the_probabilities_of_all_maps_sum_to_one(shape: tuple, num_categories: int, condition: int) -> None:
    maps = all_maps(*shape, num_categories)
    given = torch.randn(1, condition, *shape).expand(len(maps), -1, -1, -1) if condition else None
    probabilities = net(num_categories, condition).log_prob(maps, given).exp()
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    assert probabilities.max() > 3 * probabilities.median()


def test_no_place_sees_itself_or_a_later_place_or_one_out_of_reach() -> None:
    """The gradient of a logit with respect to the embedded indices and the condition at each place of a 7 x 9 map."""
    network = PixelCNN(3, condition=2, channels=16, kernel_size=3, num_blocks=2)
    assert network.reach == 3
    embedded: list[torch.Tensor] = []

    def leaf(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    network.embedding.register_forward_hook(leaf)
    condition = torch.randn(1, 2, 7, 9, requires_grad=True)
    logits = network(torch.randint(3, (1, 7, 9)), condition)
    order = torch.arange(63).view(7, 9)
    rows, columns = order // 9, order % 9
    seen = torch.zeros(7, 9, dtype=torch.bool)
    for row, column in itertools.product(range(7), range(9)):
        inputs, given = torch.autograd.grad(
            logits[0, :, row, column].sum(), (embedded[0], condition), retain_graph=True
        )
        reached, told = inputs[0].abs().sum(-1) > 0, given[0].abs().sum(0) > 0
        near = (rows >= row - 3) & ((columns - column).abs() <= 3)
        assert not (reached & ((order >= order[row, column]) | ~near)).any()
        assert not (told & ((order > order[row, column]) | ~near)).any()
        assert told[row, column]
        seen |= reached
        if column > 0:
            assert reached[row, column - 1]
        if row > 0:
            assert reached[row - 1, column]
    assert seen.flatten()[:-1].all()


def test_frequencies_of_samples_are_the_probabilities() -> None:
    """40,000 draws of 2 x 2 maps of 3 categories: the statistic of a chi-squared test with 80 degrees of freedom."""
    network = net()
    maps = all_maps(2, 2, 3)
    expected = 40_000 * network.log_prob(maps).exp().detach()
    drawn = network.sample(torch.Size((40_000, 2, 2))).flatten(1)
    counts = (drawn @ torch.tensor([27, 9, 3, 1])).bincount(minlength=81)
    assert (maps.flatten(1) @ torch.tensor([27, 9, 3, 1])).equal(torch.arange(81))
    kept = expected > 5  # the rare maps together are one more cell
    cells = torch.stack([torch.cat([part[kept], part[~kept].sum()[None]]) for part in (counts.float(), expected)])
    statistic = ((cells[0] - cells[1]).square() / cells[1].clamp(min=1e-9)).sum()
    freedom = kept.sum()
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_a_sample_drawn_within_reach_has_the_logits_of_whole_maps(
    num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, condition = net(condition=2, num_blocks=num_blocks), torch.randn(4, 2, 8, 11)
    assert network.reach < 8
    used: list[torch.Tensor] = []
    output = network.output.forward
    monkeypatch.setattr(network.output, "forward", lambda h: used.append(output(h)) or used[-1])
    indices = network.sample(torch.Size((4, 8, 11)), condition)
    drawn = torch.cat(used, dim=-1).squeeze(2)
    torch.testing.assert_close(drawn, network(indices, condition).flatten(2))


def test_half_precision_gives_logits_in_full_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert net()(torch.zeros(2, 3, 3, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_categories": 1}, "num_categories=1: a whole number, at least 2"),
        ({"channels": 0}, "channels=0: a whole number, at least 1"),
        ({"kernel_size": 4}, "kernel_size=4: an odd number is needed"),
        ({"kernel_size": 1}, "kernel_size=1: a whole number, at least 3"),
        ({"num_blocks": 0}, "num_blocks=0: a whole number, at least 1"),
        ({"condition": -1}, "condition=-1: a whole number, at least 0"),
    ],
)
def test_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PixelCNN(**{"num_categories": 3, **settings})
