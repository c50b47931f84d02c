"""Metrics of sample quality: closed forms, values counted by hand, the library's values, and moves in the right way."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from vaelab.evaluation import classifier
from vaelab.evaluation.quality import (
    Quality,
    frechet_distance,
    independent_pixels,
    kernel_distances,
    neighbourhoods,
    quality,
    radii_of,
)


def gaussian(mean: Tensor, covariance: Tensor, count: int = 40) -> Tensor:
    """Points (count, D) whose sample mean and sample covariance are exactly these."""
    x = torch.randn(count, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_the_frechet_distance_of_gaussians_in_closed_form() -> None:
    torch.manual_seed(0)
    a, b = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 2, 3], [2.0, 0, 3]))
    s, t = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 4, 9], [4.0, 1, 9]))
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    pairs = [(m, rotation @ torch.diag(v) @ rotation.T) for m, v in ((a, s), (b, t))]
    found = frechet_distance(*(gaussian(*pair) for pair in pairs))
    assert found == pytest.approx((a - b).square().sum() + (s.sqrt() - t.sqrt()).square().sum())  # = 5 + 2

    s, t = (torch.tensor(values, dtype=torch.float64) for values in ([[2.0, 1], [1, 1]], [[1.0, -0.5], [-0.5, 3]]))
    product = s @ t  # these do not commute: tr (S T)^(1/2) = sqrt(tr S T + 2 sqrt(det S T)) of 2 x 2 matrices
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    zero = torch.zeros(2, dtype=torch.float64)
    found = frechet_distance(gaussian(zero, s, 30), gaussian(zero, t, 50))
    assert found == pytest.approx(s.trace() + t.trace() - 2 * root)


def test_the_kernel_distance_by_hand_and_by_the_library() -> None:
    f, g = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])  # k(a, b) = (a b + 1)^3
    # k within f: (0 + 1)^3; within g: 2^3; between: 1 and 3^3
    assert kernel_distances(f.repeat(10, 1), g.repeat(10, 1)).tolist() == [1 + 8 - 2 * (1 + 27) / 2] * 10
    torch.manual_seed(0)
    f, g = torch.randn(250, 4, dtype=torch.float64), 1.5 * torch.randn(230, 4, dtype=torch.float64)
    found = kernel_distances(f, g)
    assert len(found) == 10  # disjoint subsets of 23
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it keeps all features
        metric = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=23)
    for i, own in enumerate(found):
        metric.reset()
        part = slice(23 * i, 23 * (i + 1))
        metric.update(g[part], real=True)
        metric.update(f[part], real=False)
        assert own == pytest.approx(metric.compute()[0])
    assert len(kernel_distances(torch.zeros(2500, 1), torch.zeros(2100, 1))) == 10  # of 210
    assert len(kernel_distances(torch.zeros(12_500, 1), torch.zeros(13_100, 1))) == 12  # of 1,000


def test_the_kernel_distance_is_unbiased() -> None:
    torch.manual_seed(0)
    found = kernel_distances(*torch.randn(2, 20_000, 3, dtype=torch.float64).unbind())
    assert len(found) == 20
    assert abs(found.mean()) < 3 * found.std() / 20**0.5


def test_neighbourhoods_counted_by_hand() -> None:
    """Test images 0, 1, ..., 9. The third neighbours are at 3 2 2 ... 2 2 3, the fifth ones at 5 4 3 ... 3 4 5."""
    test = torch.arange(10.0).unsqueeze(1)
    assert radii_of(test, 3).tolist() == [3, *[2] * 8, 3]
    assert radii_of(test, 5).tolist() == [5, 4, *[3] * 6, 4, 5]
    found = neighbourhoods(torch.tensor([[4.5], [20], [30], [40]]), test)  # the balls of the last three hold nothing
    assert found == {"precision": 1 / 4, "recall": 1, "density": 10 / (5 * 4), "coverage": 1}
    found = neighbourhoods(torch.tensor([[0.0], [0.1], [0.2], [0.3]]), test)  # balls up to 0.6: only image 0
    assert found == {"precision": 1, "recall": 1 / 10, "density": 4 * 4 / (5 * 4), "coverage": 4 / 10}
    found = neighbourhoods(test + 100, test)
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    found = neighbourhoods(test.clone(), test)
    assert found == {"precision": 1, "recall": 1, "density": (6 * 6 + 4 * 7) / (5 * 10), "coverage": 1}


def test_noise_has_the_values_of_each_pixel_alone() -> None:
    torch.manual_seed(0)
    images = torch.rand(300, 1, 1, 1).expand(-1, 2, 3, 4) + torch.arange(24.0).view(2, 3, 4)  # all pixels move as one
    noise = independent_pixels(images, 2000)
    assert noise.shape == (2000, 2, 3, 4)
    torch.testing.assert_close(noise.mean(0), images.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(noise.std(0), images.std(0), atol=0.05, rtol=0)
    assert torch.isin(noise[:, 1, 2, 3], images[:, 1, 2, 3]).all()
    assert torch.corrcoef(noise.flatten(1).T).fill_diagonal_(0).abs().max() < 0.1  # of the images it is 1


Real = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def real(digits: tuple[Tensor, Tensor]) -> Real:
    """Digits as samples, test images and training images, 600 of each."""
    order = torch.randperm(1800, generator=torch.Generator().manual_seed(0))
    samples, test, training = digits[0][order].float().div(255).split(600)
    return samples, test, training


def measured(samples: Tensor, real: Real) -> Quality:
    return quality(samples, *real[1:], classifier.load(classifier.DIGITS)[0])


def test_the_more_pixels_are_noise_the_worse_are_all_metrics(real: Real) -> None:
    torch.manual_seed(0)
    noise, place = independent_pixels(real[2], 600), torch.rand(600, 1, 28, 28)
    clean, some, many = (measured(torch.where(place < share, noise, real[0]), real) for share in (0, 0.2, 0.5))
    for name, best in clean.metrics.items():
        better = 1 if name in ("precision", "recall", "density", "coverage", "confidence") else -1
        few, more = (better * each.metrics[name] for each in (some, many))
        assert better * best > few or name == "missing_classes", name
        if name not in ("precision", "density", "confidence"):  # noise of a kind can be near a digit by its features
            assert few > more, name
        if name not in ("confidence", "precision"):
            assert abs(clean.noise[name] - best) > 10 * abs(clean.real[name] - best), name  # they are as real
    assert clean.noise == many.noise
    assert clean.missing == []
    assert clean.sentence() is None
    assert clean.errors.keys() == {"kernel_distance", "confidence"}
    assert abs(clean.metrics["kernel_distance"]) < 4 * clean.errors["kernel_distance"]


def test_two_digits_over_each_other_have_no_clear_class(real: Real) -> None:
    both = (real[0] + real[0].flip(0)) / 2
    found, whole = measured(both, real), measured(real[0], real)
    assert found.metrics["confidence"] + 10 * found.errors["confidence"] < whole.metrics["confidence"]


def test_a_class_that_is_left_out_is_missing(real: Real) -> None:
    named = classifier.load(classifier.DIGITS)[0](real[0]).argmax(1)
    others = real[0][named != 4]
    found, whole = measured(others, real), measured(real[0], real)
    assert found.missing == [4]
    assert found.metrics["missing_classes"] == 1
    assert found.metrics["class_kl"] == pytest.approx(math.log(10 / 9), abs=0.04)
    assert whole.metrics["class_kl"] < 0.02
    assert found.metrics["frechet_distance"] > 1.5 * whole.metrics["frechet_distance"]
    assert found.metrics["coverage"] < whole.metrics["coverage"] - 0.05
    sentence = found.sentence()
    assert sentence is not None
    assert sentence.startswith("The samples lack 1 of 10 classes (4): ")
    few = measured(others[:100], real)  # about ten of each class are expected, and so few can be absent by chance
    assert few.metrics["missing_classes"] == 0
    assert few.missing == []


def test_the_order_of_the_images_does_not_matter(real: Real) -> None:
    order = classifier.load(classifier.DIGITS)[0](real[1]).argmax(1).argsort()
    of_sorted = measured(real[0], (real[0], real[1][order], real[2]))
    assert of_sorted.metrics["kernel_distance"] < 4 * of_sorted.errors["kernel_distance"]  # subsets have all classes


def test_a_few_images_again_and_again_have_precision_but_no_recall(real: Real) -> None:
    found, whole = measured(real[0][:10].repeat(60, 1, 1, 1), real).metrics, measured(real[0], real).metrics
    assert found["precision"] > 0.7
    assert found["recall"] < 0.1 < 0.7 < whole["recall"]
    assert found["coverage"] < 0.2 < 0.7 < whole["coverage"]


def test_draws_of_noise_depend_on_the_seed_alone(real: Real) -> None:
    model, state = classifier.load(classifier.DIGITS)[0], torch.get_rng_state()
    few = [part[:100] for part in real]
    first, again, other = (quality(*few, model, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again
    assert first.metrics == other.metrics
    assert first.noise != other.noise
