"""Grids of images show the right images, pixel for pixel."""

import io
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import cells
from oracle import LinearGaussian
from torch import nn
from torch.distributions import Normal

from vaelab import pictures
from vaelab.likelihoods import Autoregressive, Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder, PixelCNN
from vaelab.pictures.grids import in_rows
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal


class Plane(nn.Module):
    """A stand-in for a model that decodes a code z to two pixels, Phi(z_0) and Phi(z_1)."""

    latent_dim, num_classes = 2, 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.likelihood = nn.Identity()

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
    picture = pictures.grid(images, columns=3, zoom=1)
    assert picture.shape == (3, 7, 10)
    assert picture[0, 1::3, 1::3].flatten().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert pictures.grid(images, columns=3, zoom=3).shape == (3, 21, 30)


def test_manifold_runs_through_equal_probabilities_right_and_up() -> None:
    picture = pictures.manifold(Plane(), steps=4)[0]
    assert picture.shape == (2 * 9, 2 * 13)
    left, right = picture[2::4, 2::6], picture[2::4, 4::6]
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(left[0], expected)  # z_0 grows to the right
    torch.testing.assert_close(right[:, 0], expected.flip(0))  # z_1 grows upwards


def test_manifold_needs_two_dimensions() -> None:
    model = Plane()
    model.latent_dim = 3
    with pytest.raises(ValueError, match="a picture of two latent dimensions, not of 3"):
        pictures.manifold(model)


def test_samples_have_their_own_noise() -> None:
    torch.manual_seed(3)
    first = pictures.samples(Plane(), 16)
    after = torch.rand(1)
    torch.rand(5)
    assert torch.equal(pictures.samples(Plane(), 16), first)
    assert not torch.equal(pictures.samples(Plane(), 16, seed=1), first)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)


def test_pixels_without_a_mean_are_drawn_with_the_noise_of_a_seed_and_of_a_row() -> None:
    torch.manual_seed(0)
    shape, network = (1, 6, 6), partial(PixelCNN, channels=4, kernel_size=3, num_blocks=1)
    encoder, decoder = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    model = VAE(2, shape, encoder, DiagonalGaussian, StandardNormal, decoder, Autoregressive(shape, network, 2))
    x, draw = torch.rand(4, *shape).round(), partial(pictures.samples, model, 100, columns=10)
    state = torch.get_rng_state()
    first, again, other = draw(seed=0), draw(seed=0), draw(seed=1)
    assert torch.equal(first, again)
    assert 0.3 < (first != other).float().mean() < 0.6  # half of the pixels, which are coins, and no frame
    rows = in_rows(model, torch.zeros(3, 4, 2))
    assert torch.equal(rows, rows[:, :1].expand(-1, 4, -1, -1, -1))
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(pictures.reconstructions(model, x), pictures.reconstructions(model, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_reconstructions_stand_beside_their_inputs() -> None:
    oracle = LinearGaussian(shape=(1, 6, 6))
    model, x = oracle.vae(exact=True), oracle.images(4).clamp(0, 1)
    picture = pictures.reconstructions(model, x, columns=2)
    assert picture.shape == (3, 2 * (2 * 7 + 1), 2 * (2 * 13 + 1))
    torch.testing.assert_close(picture[0, 2:14:2, 2:14:2], x[0, 0])


def small_vae(latent_dim: int, num_classes: int = 0, posterior: type = DiagonalGaussian, seed: int = 0) -> VAE:
    """A VAE with random weights for images of 2 x 3 pixels."""
    torch.manual_seed(seed)
    parts = (partial(MLPEncoder, hidden=[8]), posterior, StandardNormal, partial(MLPDecoder, hidden=[8]))
    return VAE(latent_dim, (1, 2, 3), *parts, Bernoulli(), num_classes).eval()


def names(axis: object) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_frame_keeps_every_pixel_and_all_text_inside() -> None:
    from PIL import Image

    picture = torch.randint(256, (3, 40, 60)) / 255
    figure = pictures.framed(
        picture, "A title that is much wider than the picture\nand its second line", ["a row"], ["a"]
    )
    content = io.BytesIO()
    figure.savefig(content)
    shown = torch.tensor(np.array(Image.open(content).convert("RGB"))).long()
    box = figure.axes[0].get_window_extent()
    bottom, left = round(box.y0), round(box.x0)
    top = len(shown) - bottom - 40
    torch.testing.assert_close(shown[top : top + 40, left : left + 60], (picture * 255).movedim(0, -1).round().long())
    tight = figure.axes[0].get_tightbbox()
    assert min(tight.x0, tight.y0) >= 9
    assert tight.x1 <= shown.shape[1] - 9
    assert tight.y1 <= shown.shape[0] - 9


def test_samples_of_one_class() -> None:
    model = small_vae(3, num_classes=4)
    picture = pictures.samples(model, 6, seed=1, columns=3, label=2)
    torch.manual_seed(1)
    expected = model.sample(6, torch.full((6,), 2)).mean
    torch.testing.assert_close(picture, pictures.grid(expected, 3))
    assert not torch.equal(picture, pictures.samples(model, 6, seed=1, columns=3, label=3))
    for label in (-1, 4, "two", True):
        with pytest.raises(ValueError, match=f"label={label}: the classes of this model are 0 to 3"):
            pictures.samples(model, label=label)
    without = "^label=2, but this model was trained without labels"
    with pytest.raises(ValueError, match=f"{without}: train with model.num_classes=10$"):
        pictures.samples(small_vae(3), label=2)
    quantised = small_vae(3)
    quantised.indices = len  # no VQ-VAE takes model.num_classes
    with pytest.raises(ValueError, match=f"{without}$"):
        pictures.samples(quantised, label=2)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 1), (11, 2)])
def test_each_class_has_its_column(count: int, rows: int) -> None:
    height, width = pictures.samples(small_vae(3, num_classes=4), count).shape[1:]
    square = pictures.samples(small_vae(3, num_classes=4), 16).shape[1:]  # four rows of four columns
    assert width == square[1]
    assert (height - 2) * 4 == (square[0] - 2) * rows  # two pixels are the frame


def test_manifold_of_one_class() -> None:
    model = small_vae(2, num_classes=4)
    axis = Normal(0.0, 1.0).icdf(torch.tensor([0.25, 0.75]))
    z = torch.tensor([[axis[0], axis[1]], [axis[1], axis[1]], [axis[0], axis[0]], [axis[1], axis[0]]])
    expected = pictures.grid(model.decode(z, torch.full((4,), 3)).mean, 2)
    torch.testing.assert_close(pictures.manifold(model, 2, label=3), expected)
    with pytest.raises(ValueError, match="its own manifold: choose a class, such as label=3"):
        pictures.manifold(model)


def test_slerp_keeps_length_and_turns_evenly() -> None:
    a, b = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    t = torch.linspace(0, 1, 7).unsqueeze(1)
    angle = t * math.pi / 2
    arc = pictures.slerp(a, b, t)
    torch.testing.assert_close(arc, torch.cat([3 * angle.cos(), 3 * angle.sin(), 0 * angle], dim=1))
    a, b = torch.randn(2, 5, 20)
    half = torch.tensor(0.5)
    mean = (a + b) / (2 * torch.cos(torch.acos(torch.cosine_similarity(a, b)) / 2)).unsqueeze(1)
    torch.testing.assert_close(pictures.slerp(a, b, half), mean)  # sin(w/2) / sin(w) = 1 / (2 cos(w/2))
    for same in (a, 2 * a, -a):
        torch.testing.assert_close(pictures.slerp(a, same, half), (a + same) / 2)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_interpolation_ends_at_the_reconstructions_of_two_images(num_classes: int) -> None:
    model, x = small_vae(3, num_classes), torch.rand(8, 1, 2, 3)
    y = torch.tensor([0, 1, 1, 1, 1, 0, 0, 0])
    figure = pictures.interpolation(model, x, y, count=2, steps=3)
    shown = cells(figure, rows=4, columns=5)
    pairs = torch.tensor([[2, 3], [6, 7]] if num_classes else [[0, 1], [4, 5]])  # of one class, or of two
    labels = y[pairs[:, 0]] if num_classes else None
    a, b = x[pairs[:, 0]], x[pairs[:, 1]]
    middle = (model.encode(a, labels) + model.encode(b, labels)) / 2
    for way in (0, 1):
        torch.testing.assert_close(shown[way::2, 0], a[:, 0])
        torch.testing.assert_close(shown[way::2, 1], model.reconstruct(a, labels).mean[:, 0])
        torch.testing.assert_close(shown[way::2, 3], model.reconstruct(b, labels).mean[:, 0])
        torch.testing.assert_close(shown[way::2, 4], b[:, 0])
    torch.testing.assert_close(shown[0::2, 2], model.decode(middle, labels).mean[:, 0])
    arc = pictures.slerp(model.encode(a, labels), model.encode(b, labels), torch.tensor(0.5))
    torch.testing.assert_close(shown[1::2, 2], model.decode(arc, labels).mean[:, 0])
    assert names(figure.axes[0].yaxis) == ["linear", "spherical"] * 2
    assert names(figure.axes[0].xaxis) == ["image", "0.0", "0.5", "1.0", "image"]
    with pytest.raises(ValueError, match="3 pairs of images are needed, but 8 images give 2"):
        pictures.interpolation(model, x, y, count=3)
    pictures.interpolation(model, x, y * 0, count=4)  # if all images have one class, any two are a pair
