"""Fixed noise depends only on its seed, and does not change torch's random state."""

import torch

from vaelab.noise import fixed_noise

CPU = torch.device("cpu")


def test_noise_depends_on_the_seed_alone() -> None:
    def noise(seed: int) -> torch.Tensor:
        with fixed_noise(CPU, seed):
            return torch.randn(3)

    first = noise(1)
    torch.manual_seed(99)
    assert torch.equal(noise(1), first)
    assert not torch.equal(noise(2), first)
    with fixed_noise(CPU, 1):
        torch.randn(7)
        assert torch.equal(noise(1), first)  # also if nested


def test_the_stream_goes_on_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(5)
    expected = torch.randn(2, 3)
    torch.manual_seed(5)
    torch.randn(3)
    with fixed_noise(CPU):
        torch.randn(100)
    torch.testing.assert_close(torch.randn(3), expected[1], rtol=0, atol=0)
