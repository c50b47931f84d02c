"""A model that cannot fit into the machine's memory is refused before it takes any memory."""

from collections.abc import Callable

import pytest
import torch
from conftest import Compose, refused

from vaelab import runs
from vaelab.runs import memory
from vaelab.runs.memory import Fits

HUGE = 10**30


@pytest.mark.parametrize(
    ("make", "gigabytes"),
    [
        (lambda: torch.nn.Linear(1000, HUGE), 4e24),
        (lambda: torch.empty((HUGE,), dtype=torch.float64), 8e21),
        (lambda: torch.zeros(HUGE), 4e21),
        (lambda: torch.zeros(size=(HUGE, 2)), 8e21),
        (lambda: torch.full(torch.Size((10**9, 10**9)), 1.0), 4e9),
        (lambda: torch.randn(10**9, 10**9, dtype=torch.bfloat16), 2e9),
    ],
)
def test_a_tensor_that_no_machine_has_room_for(make: Callable, gigabytes: float) -> None:
    def build() -> None:
        with Fits():
            make()

    sentence = refused(build)
    assert f"the model takes {2 * gigabytes:.6g} GB or more, but this machine has" in sentence


def test_the_weights_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of 4 x 10 x 10 + 40 bytes each: the third one is too many."""
    monkeypatch.setattr(memory, "MEMORY", 2000)
    with Fits():
        layers = [torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)]
        [torch.zeros(10, 10) for _ in range(20)]  # no weights, and each of them fits
    assert len(layers) == 2

    def third() -> None:
        with Fits():
            [torch.nn.Linear(10, 10) for _ in range(3)]

    assert "choose smaller sizes" in refused(third)


def test_sizes_that_torch_refuses_are_left_to_torch() -> None:
    with Fits():
        assert torch.zeros(()).shape == ()
        with pytest.raises(RuntimeError, match="negative dimension"):
            torch.empty(-1)
        with pytest.raises(TypeError):
            torch.empty(2.5)


@pytest.mark.parametrize(
    "override",
    [
        "model.latent_dim=1000000000",
        "model.num_classes=1000000000",
        "model.encoder.hidden=[8,1000000000000]",
        "model/prior=vampprior model.prior.num_components=100000000",
        "objective=iwae objective.num_samples=1000000000",
        "model/network=conv data.image_shape=[1,100000,100000]",
    ],
)
def test_a_run_that_cannot_fit_is_refused_at_once(
    config: Compose, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMORY", 16e9)
    cfg = config(*override.split())
    with pytest.raises(Exception, match=r"the model takes \d[\d.e+]* GB or more, but this machine has"):
        runs.build(cfg)


def test_a_million_layers(config: Compose) -> None:
    cfg = config("model/prior=flow", "model.latent_dim=2", "model.prior.num_transforms=1000000")
    cfg.model.prior.hidden = [1] * 50
    with pytest.raises(Exception, match="the model has more than 20,000 weights and biases"):
        runs.build(cfg)
