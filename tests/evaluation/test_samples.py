"""Samples are drawn as the data need it, from the prior or from a fitted density, and measured."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import refused
from oracle import LinearGaussian
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vaelab.errors import NotOfferedError
from vaelab.evaluation import classifier, densities
from vaelab.evaluation.report import METRICS
from vaelab.evaluation.samples import DISTANCES_ONLY, Sampling, draw, of_samples


class Stub(nn.Module):
    """A model of a conditional class: the images of class k have pixels that are 1 with the probability k / 10."""

    num_classes, prior, likelihood = 4, None, SimpleNamespace()

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.zeros(1)), [0][:0]

    def sample(self, count: int, y: Tensor) -> Distribution:
        self.asked.append(count)
        return Independent(Bernoulli((y / 10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)), 3)


def test_all_classes_are_drawn_in_turn() -> None:
    model, torch_state = Stub(), torch.get_rng_state()
    grey, binary = SimpleNamespace(binarization="none"), SimpleNamespace(binarization="dynamic")
    means = draw(model, grey, 10, seed=0, size=4)
    assert model.asked == [4, 4, 2]
    assert means[:, 0, 0, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0, 0.1, 0.2, 0.3, 0, 0.1])
    drawn = draw(model, binary, 4000, seed=0)
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn.view(1000, 4, 4).mean((0, 2)).tolist() == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.03)
    assert torch.equal(draw(model, binary, 4000, seed=0), drawn)
    assert not torch.equal(draw(model, binary, 4000, seed=1), drawn)
    assert torch.equal(torch_state, torch.get_rng_state())


def test_grey_levels_without_a_mean_are_drawn() -> None:
    model, grey = Stub(), SimpleNamespace(binarization="none")
    model.likelihood = SimpleNamespace(has_mean=False)
    assert set(draw(model, grey, 400, seed=0).unique().tolist()) == {0, 1}


class Data:
    """Images of the oracle."""

    binarization = "none"

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.splits = {"test": (x, torch.zeros(len(x)))}

    def pixels(self, split: str) -> tuple[Tensor, None]:
        return self.x, None

    def images(self, split: str, count: int, device: object) -> tuple[Tensor, None]:
        return self.x[:count], None

    def train_dataloader(self) -> list:
        return [(part, None) for part in self.x.split(100)]


def test_a_fitted_density_mends_a_wrong_prior() -> None:
    oracle = LinearGaussian()
    model, data = oracle.vae(exact=True), Data(oracle.images(600))
    model.prior = wrong = densities.Fitted(Independent(Normal(torch.full((2,), 9.0), 1.0), 1))
    test = oracle.images(300)
    far = of_samples(model, data, test, 0, 100, DISTANCES_ONLY).metrics
    found = of_samples(model, data, test, 0, 100, Sampling(density="gmm"))
    assert found.metrics["sample_distance"] < far["sample_distance"] / 2
    assert model.prior is wrong  # as it was
    assert found.references == {}


def test_a_model_that_cannot_be_sampled_from() -> None:
    def sample(*_: object) -> None:
        raise NotOfferedError("nothing to sample from")

    model, data = LinearGaussian().vae(exact=True), Data(torch.zeros(30, 1, 2, 3))
    model.sample = sample
    found = of_samples(model, data, data.x, 0, 10, DISTANCES_ONLY)
    assert found.absent == {"sample_distance": "nothing to sample from"}
    assert (found.metrics, found.pairs) == ({}, None)
    found = of_samples(model, data, data.x, 0, 10, Sampling(20, None, classifier.Classifier()))
    assert found.absent.keys() == {"sample_distance", "frechet_distance"}


def test_quality_is_measured_with_the_classifier() -> None:
    torch.manual_seed(0)
    model, data = Stub(), Data(torch.rand(60, 1, 8, 8).round())
    data.pixels = lambda _: (data.x.mul(255).byte(), None)  # type: ignore
    model.sample = lambda count, _: Independent(Bernoulli(torch.full((count, 1, 8, 8), 0.5)), 3)  # type: ignore
    net = classifier.Classifier().eval()
    y = net(data.x).argmax(1)
    y[:10] += 1  # ten of the fifty images that are measured have another class than the classifier says
    data.splits = {"test": (data.x, y)}  # type: ignore
    found = of_samples(model, data, data.x[:50], 0, 10, Sampling(30, None, net))
    assert found.metrics["classifier_accuracy"] == pytest.approx(0.8)
    assert {"sample_distance", "frechet_distance", "missing_classes"} <= found.metrics.keys()
    quality, copies = {*METRICS["quality of the samples"]}, {"data_copying", "data_copying_features", "authenticity"}
    of_sets = quality - {"classifier_accuracy"}
    assert found.references["noise"].keys() == of_sets
    assert found.references["real"].keys() == of_sets | {"predictive_distance"}
    assert found.references["test"].keys() == copies
    assert found.metrics.keys() == quality | copies | {"predictive_distance", "predictive_p", *METRICS["samples"]}
    assert found.checks is not None
    assert len(found.checks.samples["ink"]) == 30
    assert found.pairs is not None
    assert len(found.pairs) == 10


def test_copies_of_training_images_are_found_in_pixels_and_in_features() -> None:
    """Training images are uint8 in files, and samples and test images are numbers in [0, 1]."""
    torch.manual_seed(0)
    grey = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8)
    model, data = Stub(), Data(grey[:200] / 255)
    data.pixels = lambda _: (grey[:200], None)  # type: ignore
    data.splits = {"test": (grey[200:], torch.zeros(100, dtype=torch.long))}  # type: ignore
    model.sample = lambda count, _: Independent(Normal(data.x[:count], 1e-6), 3)  # type: ignore
    found = of_samples(model, data, grey[200:] / 255, 0, 10, Sampling(100, None, classifier.Classifier().eval()))
    ties = (100**3 - 100) / (200 * 199)  # all copies have the distance 0, and each is nearer than each test image
    exact = -(100 * 100 / 2) / math.sqrt(100 * 100 / 12 * (201 - ties))
    for name in ("data_copying", "data_copying_features"):
        assert found.metrics[name] == pytest.approx(exact, rel=1e-6), name
        assert abs(found.references["test"][name]) < 3, name


def test_without_a_classifier_the_pixels_are_measured() -> None:
    torch.manual_seed(0)
    model, data = Stub(), Data(torch.rand(60, 1, 8, 8).round())
    data.pixels = lambda _: (data.x.mul(255).byte(), None)  # type: ignore
    data.splits = {"train": (data.x, None), "test": (data.x[:38], None)}  # type: ignore
    model.sample = lambda count, _: Independent(Bernoulli(torch.full((count, 1, 8, 8), 0.5)), 3)  # type: ignore
    found = of_samples(model, data, data.x[:38], 0, 10, Sampling(20))
    assert found.metrics.keys() == {*METRICS["samples"], "authenticity", "predictive_distance", "predictive_p"}
    assert found.references.keys() == {"real", "noise", "test"}
    assert found.references["test"].keys() == {"authenticity"}  # no half of 38 images has more than 20
    why = found.absent.pop("data_copying")
    assert why == "no cell has more than 20 samples, a test image and a training image"
    assert found.absent.keys() == {*METRICS["quality of the samples"], "data_copying_features"}
    assert {*found.absent.values()} == {"there is no classifier, because the images have no labels"}


class Halves(classifier.Classifier):
    """Names the class by the mean of an image, and never class 2."""

    def __init__(self) -> None:
        super().__init__(num_classes=3)
        torch.nn.init.zeros_(self.linear.weight)
        self.linear.bias.data = torch.tensor([0.5, 0, -99])
        self.linear.weight.data[1, 0] = 1

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean((1, 2, 3))[:, None], x.flatten(1)[:, :63]], 1)


def test_images_of_training_that_are_sorted_by_class_are_chosen_from_all() -> None:
    """Half of the training images are white. All test images are, so the classifier names none of them class 0."""
    torch.manual_seed(0)
    dark = torch.rand(400, 1, 8, 8) / 4
    data, model = Data(torch.cat([dark, 1 - dark])), Stub()
    data.pixels = lambda _: (data.x.mul(255).byte(), None)  # type: ignore
    model.sample = lambda count, _: Independent(Normal(torch.rand(count, 1, 8, 8) / 4, 0.1), 3)  # type: ignore
    found = of_samples(model, data, 1 - dark[:100], 0, 10, Sampling(100, None, Halves()))
    assert found.metrics["class_kl"] == pytest.approx(math.log(101 / 0.5))  # 0 test images count as half of one
    assert all(map(math.isfinite, (value for values in found.references.values() for value in values.values())))
    real = found.references["real"]["class_kl"]
    half = 0.5 * math.log(0.5 * 101 / 0.5) + 0.5 * math.log(0.5 * 101 / 100)  # of equally many dark and white ones
    assert real == pytest.approx(half, rel=0.2)
    assert found.references["real"]["predictive_distance"] == pytest.approx(0.5, abs=0.15)


def test_settings_are_checked() -> None:
    model = LinearGaussian().vae(exact=True)
    Sampling(20, "flow").check(model, 20)
    assert "samples=19: quality is measured with at least 20" in refused(Sampling(19).check, model, 100)
    assert "samples=50: quality is measured with at least 20" in refused(Sampling(50).check, model, 19)
    assert "samples=-1: a whole number" in refused(Sampling(-1).check, model, 50)
    assert "density=kde: choose one of None, gmm, flow" in refused(Sampling(0, "kde").check, model, 50)
    model.prior = None
    assert "maps of indices" in refused(Sampling(0, "gmm").check, model, 50)
