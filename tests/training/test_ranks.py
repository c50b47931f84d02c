"""The states of the processes go into a checkpoint by rank, and each process gets its own back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vaelab.training import ranks
from vaelab.training.metrics import Metrics


class Loader:
    """A loader that only remembers the state it was given."""

    state: Any = None

    def state_dict(self) -> dict[str, int]:
        return {"batch": 3}

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def process(rank: int, world_size: int) -> Any:
    trainer = SimpleNamespace(world_size=world_size, datamodule=Loader(), train_dataloader=Loader(), global_step=9)
    return SimpleNamespace(trainer=trainer, metrics=Metrics(), device=torch.device("cpu"), global_rank=rank)


def states(count: int) -> list[dict[str, Any]]:
    made = []
    for rank in range(count):
        torch.manual_seed(rank)
        sums = {"window": {"loss": float(rank)}, "epoch": {"loss": 10.0 + rank}}
        made.append({"cpu": torch.get_rng_state(), "loader": {"batch": rank}, **sums})
    return made


def test_one_process_collects_its_own_state() -> None:
    module = process(0, 1)
    module.metrics.sums["train"].window = {"loss": 2.0}
    torch.manual_seed(4)
    (state,) = ranks.collect(module)
    assert (state["window"], state["epoch"], state["loader"]) == ({"loss": 2.0}, {}, {"batch": 3})
    expected = torch.randn(3)
    torch.set_rng_state(state["cpu"])
    assert torch.equal(torch.randn(3), expected)
    module.trainer.datamodule = None
    assert ranks.collect(module)[0]["loader"] == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_gets_its_own_state_back(rank: int) -> None:
    module = process(rank, 2)
    ranks.restore_sums(module, states(2))
    ranks.restore_noise(module, states(2))
    torch.testing.assert_close(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(rank)))
    assert module.metrics.sums["train"].window == {"loss": float(rank)}
    assert module.metrics.sums["train"].epoch == {"loss": 10.0 + rank}
    assert module.trainer.train_dataloader.state == ({"batch": 1} if rank else None)  # Lightning restores the first


def test_another_number_of_processes_draws_different_noise_in_each() -> None:
    draws = []
    for rank in range(3):
        module = process(rank, 3)
        ranks.restore_sums(module, states(2))
        ranks.restore_noise(module, states(2))
        draws.append(torch.randn(3))
        assert module.metrics.sums["train"].window == {"loss": 0.0}
    assert len({tuple(draw.tolist()) for draw in draws}) == 3
    torch.manual_seed(0)
    assert torch.equal(draws[0], torch.randn(3))
