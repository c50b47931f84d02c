"""Optional features of parts are found if they exist, and otherwise have a default."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaelab import interfaces
from vaelab.distributions import Categoricals, HypersphericalUniform, PowerSpherical, Product
from vaelab.likelihoods import Bernoulli, BernoulliAtMean, DiscretizedLogistic, Gaussian, Laplace
from vaelab.networks import ConvEncoder, MLPEncoder
from vaelab.noise import fixed_noise
from vaelab.objectives import BetaTC
from vaelab.posteriors import FlowPosterior
from vaelab.priors import ClassPrior, StandardNormal, VampPrior

GAUSSIAN = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
MIXTURE = MixtureSameFamily(Categorical(torch.ones(2)), Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 1))
ONE_HOT = Categoricals(torch.zeros(2, 3))
SPHERE = HypersphericalUniform(torch.zeros(3))


@pytest.mark.parametrize(
    ("distribution", "space", "vectors"),
    [
        (GAUSSIAN, "R^3", True),
        (MIXTURE, "R^3", True),
        (ONE_HOT, "2 one-hot vectors of 3 categories", False),
        (SPHERE, "the unit sphere", False),
        (PowerSpherical(torch.eye(3)[0], torch.tensor(2.0)), "the unit sphere", False),
        (Product(GAUSSIAN, ONE_HOT), "blocks of 3 + 6 dimensions", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_where_samples_lie(distribution: object, space: str, vectors: bool) -> None:
    assert interfaces.space(distribution) == space
    assert interfaces.lies_on_vectors(distribution) == vectors


@pytest.mark.parametrize(
    ("likelihood", "name", "levels"),
    [
        (Bernoulli(), "Bernoulli", None),
        (BernoulliAtMean((1, 2, 2)), "Bernoulli", None),
        (Gaussian(), "Gaussian", None),
        (Laplace("per_pixel", floor=0.25), "Laplace (a scale per pixel, at least 0.25)", None),
        (DiscretizedLogistic(), "DiscretizedLogistic", 256),
        (nn.Identity(), "Identity", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_likelihoods_compare_by_name(likelihood: nn.Module, name: str, levels: int | None) -> None:
    assert interfaces.likelihood_name(likelihood) == name
    assert interfaces.levels(likelihood) == levels


def test_a_picture_without_a_mean_shows_a_draw() -> None:
    density = Independent(Normal(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)), 3)
    model = SimpleNamespace(likelihood=Gaussian())
    assert torch.equal(interfaces.image_of(model, density), torch.zeros(1, 2, 2))
    assert interfaces.name_of_image(model) == "E[x | z]"
    model = SimpleNamespace(likelihood=SimpleNamespace(has_mean=False))
    with fixed_noise(torch.device("cpu"), 5):
        drawn = interfaces.image_of(model, density)
    with fixed_noise(torch.device("cpu"), 5):
        assert torch.equal(drawn, density.sample())  # with the noise of its caller
    assert interfaces.name_of_image(model, ", class 3") == "a draw of p(x | z, class 3)"


def test_a_prior_over_indices_makes_samples() -> None:
    vae, vq = SimpleNamespace(prior=StandardNormal(2)), SimpleNamespace(prior=None, code_prior=None, indices=len)
    assert (interfaces.quantises(vae), interfaces.quantises(vq)) == (False, True)
    assert (interfaces.draws_samples(vae), interfaces.draws_samples(vq)) == (True, False)
    vq.code_prior = nn.Identity()
    assert interfaces.draws_samples(vq)
    assert interfaces.code_prior(vq) is vq.code_prior
    assert interfaces.code_prior(vae) is None


def test_learners_are_found_anywhere_in_a_module() -> None:
    objective = BetaTC()
    whole = nn.ModuleDict({"model": nn.Sequential(BernoulliAtMean((1, 2, 2)), nn.Linear(2, 2)), "objective": objective})
    assert interfaces.learners(whole) == [whole["model"][0], objective]
    assert interfaces.learners(objective) == [objective]


def test_codes_with_classes_are_those_of_the_prior() -> None:
    assert interfaces.classes_of_codes(SimpleNamespace(prior=ClassPrior(15, 7))) == 7
    assert interfaces.classes_of_codes(SimpleNamespace(prior=StandardNormal(3))) == 0
    assert interfaces.classes_of_codes(SimpleNamespace(prior=None)) == 0


def test_labels_go_to_conditional_models_alone() -> None:
    y = torch.arange(3)
    assert interfaces.labels(SimpleNamespace(num_classes=10), y) is y
    assert interfaces.labels(SimpleNamespace(num_classes=0), y) is None


def test_offers_of_parts() -> None:
    assert interfaces.made_of_posteriors(VampPrior(2, (1, 2, 2), 3))
    assert not interfaces.made_of_posteriors(StandardNormal(2))
    assert interfaces.feature_map(ConvEncoder(torch.Size((1, 28, 28)), hidden=[])) == (64, 7, 7)
    assert interfaces.feature_map(ConvEncoder(torch.Size((1, 28, 28)))) is None
    assert interfaces.feature_map(MLPEncoder(torch.Size((1, 28, 28)))) is None
    assert interfaces.draws_with_density(FlowPosterior(5, 2)(torch.zeros(1, 5)))
    assert not interfaces.draws_with_density(GAUSSIAN)


def test_the_device_is_that_of_the_weights() -> None:
    assert interfaces.device_of(nn.Linear(2, 2)).type == "cpu"


def test_factors_are_known_for_some_data() -> None:
    known = SimpleNamespace(factors={"test": torch.arange(10).view(5, 2)})
    assert interfaces.true_factors(known, "test", 3).tolist() == [[0, 1], [2, 3], [4, 5]]  # type: ignore[union-attr]
    assert interfaces.true_factors(known, "train", 3) is None
    assert interfaces.true_factors(SimpleNamespace(), "test", 3) is None
