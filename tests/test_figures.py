import pytest
import torch
from oracle import LinearGaussian
from torch import nn

from vaelab import figures


class Plane(nn.Module):
    """A stand-in whose 'image' of a code z is two pixels, Phi(z_0) and Phi(z_1)."""

    latent_dim, num_classes = 2, 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def infer(self, x: torch.Tensor) -> None: ...

    def prior(self, _: object) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)

    def decode(self, z: torch.Tensor, y: torch.Tensor | None = None) -> torch.distributions.Distribution:
        pixels = torch.special.ndtr(z).view(-1, 1, 1, 2)
        return torch.distributions.Independent(torch.distributions.Normal(pixels, torch.ones(())), 3)

    def sample(self, count: int, y: torch.Tensor | None = None) -> torch.distributions.Distribution:
        return self.decode(torch.randn(count, 2), y)


def test_grid_keeps_pixels_and_order() -> None:
    images = torch.arange(6).view(6, 1, 1, 1).expand(6, 1, 2, 2) / 5
    picture = figures.grid(images, columns=3, zoom=1)
    assert picture.shape == (3, 7, 10)
    assert picture[0, 1::3, 1::3].flatten().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert figures.grid(images, columns=3, zoom=3).shape == (3, 21, 30)


def test_manifold_runs_through_equal_probabilities_right_and_up() -> None:
    picture = figures.manifold(Plane(), steps=4)[0]
    assert picture.shape == (2 * 9, 2 * 13)
    left, right = picture[2::4, 2::6], picture[2::4, 4::6]
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(left[0], expected)  # z_0 grows to the right
    torch.testing.assert_close(right[:, 0], expected.flip(0))  # z_1 grows upwards


def test_manifold_needs_two_dimensions() -> None:
    model = Plane()
    model.latent_dim = 3
    with pytest.raises(ValueError, match="a picture of two latent dimensions, not of 3"):
        figures.manifold(model)


def test_samples_have_their_own_noise() -> None:
    torch.manual_seed(3)
    first = figures.samples(Plane(), 16)
    after = torch.rand(1)
    torch.rand(5)
    assert torch.equal(figures.samples(Plane(), 16), first)
    assert not torch.equal(figures.samples(Plane(), 16, seed=1), first)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


def test_reconstructions_stand_beside_their_inputs() -> None:
    oracle = LinearGaussian(shape=(1, 6, 6))
    model, x = oracle.vae(exact=True), oracle.images(4).clamp(0, 1)
    picture = figures.reconstructions(model, x, columns=2)
    assert picture.shape == (3, 2 * (2 * 7 + 1), 2 * (2 * 13 + 1))
    torch.testing.assert_close(picture[0, 2:14:2, 2:14:2], x[0, 0])


def test_codes_are_drawn_at_their_posterior_means() -> None:
    oracle = LinearGaussian()
    model, x = oracle.vae(exact=True), oracle.images(40)
    y = torch.arange(40) % 4
    figure = figures.codes(model, x, y)
    drawn = torch.cat([torch.tensor(c.get_offsets()) for c in figure.axes[0].collections])
    expected = torch.cat([model.encode(x)[y == label] for label in range(4)]).detach()
    torch.testing.assert_close(drawn.float(), expected)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "2", "3"]
    assert all(
        label.endswith("(posterior mean)") for label in (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())
    )
