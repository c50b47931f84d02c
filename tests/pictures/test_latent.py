"""Pictures of the latent space show the right codes, images and labels."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import cells
from oracle import LinearGaussian
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from vaelab import pictures
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian, FullCovarianceGaussian, PointMass
from vaelab.priors import StandardNormal


def test_codes_are_drawn_at_their_posterior_means() -> None:
    oracle = LinearGaussian()
    model, x = oracle.vae(exact=True), oracle.images(40)
    y = torch.arange(40) % 4
    figure = pictures.codes(model, x, y)
    drawn = torch.cat([torch.tensor(c.get_offsets()) for c in figure.axes[0].collections])
    expected = torch.cat([model.encode(x)[y == label] for label in range(4)]).detach()
    torch.testing.assert_close(drawn.float(), expected)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "2", "3"]
    assert all(
        label.endswith("(posterior mean)") for label in (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())
    )


def small_vae(latent_dim: int, num_classes: int = 0, posterior: type = DiagonalGaussian, seed: int = 0) -> VAE:
    """A VAE with random weights for images of 2 x 3 pixels."""
    torch.manual_seed(seed)
    parts = (partial(MLPEncoder, hidden=[8]), posterior, StandardNormal, partial(MLPDecoder, hidden=[8]))
    return VAE(latent_dim, (1, 2, 3), *parts, Bernoulli(), num_classes).eval()


def names(axis: object) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_rates_are_the_divergences_of_the_exact_posterior() -> None:
    oracle = LinearGaussian()
    x = oracle.images(1500)  # more than one batch
    q = oracle.posterior(x).base_dist
    expected = kl_divergence(q, Normal(torch.zeros(2), torch.ones(2))).mean(0)
    torch.testing.assert_close(pictures.rates(oracle.vae(exact=True), x, torch.zeros(1500)).detach(), expected)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_traversal_moves_one_dimension_at_a_time_in_the_order_of_rates(num_classes: int) -> None:
    model, x, y = small_vae(4, num_classes), torch.rand(20, 1, 2, 3), torch.arange(20) % 2
    model.prior = StandardNormal(4, scale=2.0)
    with torch.no_grad():
        model.posterior.linear.bias[:4] = torch.tensor([1.0, 30.0, 4.0, 0.0])
    labels = y if num_classes else None
    q = model.infer(x, labels).base_dist
    rates = kl_divergence(q, Normal(torch.zeros(4), torch.full((4,), 2.0))).mean(0)
    order = rates.argsort(descending=True).tolist()
    assert order[:2] == [1, 2]
    figure = pictures.traversal(model, x, y, "test image 7", steps=5)
    shown, code = cells(figure, rows=4, columns=5), model.encode(x[:1], labels[:1] if num_classes else None)
    for row, j in enumerate(order):
        z = code.repeat(5, 1)
        z[:, j] = 2 * torch.tensor([-3.0, -1.5, 0.0, 1.5, 3.0])
        expected = model.decode(z, y[:1].expand(5) if num_classes else None).mean[:, 0]
        torch.testing.assert_close(shown[row], expected)
    axes = figure.axes[0]
    assert "the code of test image 7" in axes.get_title()
    assert names(axes.yaxis) == [f"$z_{{{j}}}$   {rates[j]:.2f}" for j in order]
    assert names(axes.xaxis) == ["-3.0", "-1.5", "+0.0", "+1.5", "+3.0"]
    assert "nats" in axes.get_ylabel()
    places = torch.tensor(axes.lines[0].get_xdata())  # columns are 1.5 apart, the third is 0
    own = (code[0, order] / 2).clamp(-3, 3)
    torch.testing.assert_close(places.float(), own / 1.5 + 2.5)


@pytest.mark.parametrize("posterior", [PointMass, FullCovarianceGaussian])
def test_a_dimension_without_a_rate_is_not_traversed(posterior: type) -> None:
    with pytest.raises(ValueError, match="have no rate: a KL per latent dimension needs factorised Gaussians"):
        pictures.traversal(small_vae(2, posterior=posterior), torch.rand(3, 1, 2, 3), torch.zeros(3))


def test_codes_by_principal_components() -> None:
    model, x, y = small_vae(3), torch.rand(60, 1, 2, 3), torch.zeros(60, dtype=torch.long)
    z = model.encode(x).detach()
    variances, directions = torch.linalg.eigh(z.T.cov())
    figure = pictures.codes(model, x, y)
    drawn = torch.as_tensor(figure.axes[0].collections[0].get_offsets().data).float()
    expected = (z - z.mean(0)) @ directions.flip(1)[:, :2]
    torch.testing.assert_close(drawn.abs(), expected.abs(), rtol=1e-3, atol=1e-4)
    share = variances[2] / variances.sum()
    assert figure.axes[0].get_xlabel() == f"principal component 1 ({share:.0%} of the variance)"
    assert figure.axes[0].get_title() == "Codes of 3 dimensions of 60 images"


def test_codes_by_tsne_keep_neighbours() -> None:
    model = small_vae(3, posterior=PointMass)
    x = torch.rand(2, 1, 2, 3).repeat_interleave(20, 0) + 0.001 * torch.randn(40, 1, 2, 3)
    y = torch.arange(40) // 20
    drawn_ = [pictures.codes(model, x, y, "tsne", seed) for seed in (0, 0)]
    drawn, again = ([torch.as_tensor(c.get_offsets().data) for c in f.axes[0].collections] for f in drawn_)
    assert all(torch.equal(*pair) for pair in zip(drawn, again, strict=True))
    apart = (drawn[0].mean(0) - drawn[1].mean(0)).norm()
    assert apart > 2 * max((points - points.mean(0)).norm(dim=1).max() for points in drawn)
    assert "no unit" in drawn_[0].axes[0].get_xlabel()


def test_codes_of_one_dimension_are_not_drawn() -> None:
    x, y = torch.rand(3, 1, 2, 3), torch.zeros(3)
    for draw in (pictures.codes, pictures.prior):
        with pytest.raises(ValueError, match="has only one"):
            draw(small_vae(1), x, y)


class Known(nn.Module):
    """A stand-in with posterior means of 1, 4 and 1/2 times the three pixels of an image, and prior N(0, I)."""

    latent_dim, num_classes = 3, 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def infer(self, x: Tensor, y: Tensor | None = None) -> Independent:
        z = x.flatten(1) * torch.tensor([1.0, 4.0, 0.5])
        return Independent(Normal(z, torch.full_like(z, 1e-3)), 1)

    def prior(self, _: object) -> Independent:
        return Independent(Normal(torch.zeros(3), torch.ones(3)), 1)


def test_prior_lines_hold_their_share_of_a_gaussian() -> None:
    torch.manual_seed(0)
    x = torch.randn(3000, 1, 1, 3)
    x[..., 0] = torch.empty(3000, 1, 1).exponential_() - 1
    figure = pictures.prior(Known(), x, torch.zeros(3000))
    pair, alone = figure.axes
    assert (pair.get_xlabel(), pair.get_ylabel()) == ("$z_{0}$", "$z_{1}$")  # the two of highest rate, in order
    assert names(alone.xaxis) == ["$z_{1}$", "$z_{0}$", "$z_{2}$"]
    assert "by rate" in alone.get_xlabel()
    (lines,) = [part for part in pair.collections if hasattr(part, "levels")]
    for share, path in zip((0.99, 0.9, 0.5), lines.get_paths(), strict=True):
        radius = torch.tensor(path.vertices).norm(dim=1).mean().item()
        assert radius == pytest.approx(math.sqrt(-2 * math.log(1 - share)), rel=0.08)
    extents = [half.get_paths()[0].vertices[:, 1] for half in alone.collections[:6]]
    spreads = [extent.max() - extent.min() for extent in extents]  # q has the largest first, and all of p are equal
    assert spreads[0] > 3 * spreads[1] > 4 * spreads[2]
    assert max(spreads[3:]) < 1.3 * min(spreads[3:])
    mesh, edges = pair.collections[0].get_array(), pair.collections[0].get_coordinates()
    centres = (edges[1:, 1:] + edges[:-1, :-1]) / 2
    mean, square = (
        np.average(moment, axis=(0, 1), weights=np.stack([mesh, mesh], -1)) for moment in (centres, centres**2)
    )
    np.testing.assert_allclose(mean, [0, 0], atol=0.2)
    np.testing.assert_allclose(np.sqrt(square), [1, 4], rtol=0.1)


def test_prior_of_an_autoencoder_takes_dimensions_by_variance() -> None:
    model, x = small_vae(3, posterior=PointMass), torch.rand(50, 1, 2, 3)
    order = model.encode(x).var(0).argsort(descending=True).tolist()
    alone = pictures.prior(model, x, torch.zeros(50)).axes[1]
    assert names(alone.xaxis) == [f"$z_{{{j}}}$" for j in order]
    assert "by variance" in alone.get_xlabel()


def test_two_latent_spaces_decode_the_same_points() -> None:
    autoencoder, vae = small_vae(2, posterior=PointMass), small_vae(2, seed=1)
    x, y = torch.rand(30, 1, 2, 3), torch.arange(30) % 3
    figure = pictures.ae_vs_vae([("a", autoencoder, x, y), ("b", vae, 1 - x, y)], steps=4)
    left, below_left, right, below_right = figure.axes
    assert left.get_title() == "a\nan autoencoder: codes of 30 test images, and 16 points +"
    assert right.get_title() == "b\na VAE: codes of 30 test images, and 16 points +"
    points = [torch.tensor(axes.lines[0].get_xydata()) for axes in (left, right)]
    assert torch.equal(*points)
    torch.testing.assert_close(points[0][0].float(), Normal(0.0, 1.0).icdf(torch.tensor([0.125, 0.875])))
    for axes, model in ((below_left, autoencoder), (below_right, vae)):
        picture = torch.as_tensor(axes.images[0].get_array()).movedim(-1, 0)
        torch.testing.assert_close(picture, pictures.grid(model.decode(points[0].float()).mean, 4))
    codes = torch.cat([torch.as_tensor(part.get_offsets().data) for part in right.collections]).float()
    torch.testing.assert_close(codes, torch.cat([vae.encode(1 - x)[y == label] for label in range(3)]).detach())
    with pytest.raises(ValueError, match="a picture of two latent dimensions, not of 3"):
        pictures.ae_vs_vae([("a", small_vae(3), x, y), ("b", vae, x, y)])
