"""`measure` gives the known metrics of the linear-Gaussian oracle, and refuses wrong sizes."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from oracle import LinearGaussian

from vaelab.errors import UserError
from vaelab.evaluation import report
from vaelab.evaluation.annealing import Annealing
from vaelab.evaluation.measure import Sizes, measure, protocol
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import ClassPosterior
from vaelab.priors import ClassPrior

SMALL = Sizes(probed=40, train_samples=20, refined=10, steps=30, refined_samples=50, drawn=35)


Part = tuple[torch.Tensor, torch.Tensor | None]


class Data:
    """A stand-in for a data module that serves images of the oracle."""

    name, binarization = "oracle", "none"
    protocol = {"binarization": {"test": "none"}}  # noqa: RUF012

    def __init__(self, oracle: LinearGaussian) -> None:
        torch.manual_seed(3)
        self.splits = {split: (oracle.images(60), torch.arange(60) % 3) for split in ("train", "test")}

    def images(self, split: str, count: int | None = None, device: object = None) -> Part:
        images, labels = self.splits[split]
        return images[:count], None if labels is None else labels[:count]

    pixels = images


@pytest.fixture(scope="module")
def oracle() -> LinearGaussian:
    return LinearGaussian()


def test_the_exact_posterior_has_no_gap(oracle: LinearGaussian) -> None:
    data = Data(oracle)
    record, codes, pairs, _ = measure(oracle.vae(exact=True), data, 30, 50, seed=1, sizes=SMALL)
    metrics = record["metrics"]
    exact = oracle.log_prob(data.images("test", 50)[0]).mean().item()
    for name in ("log_likelihood", "exact_log_likelihood", "elbo", "checked_bound", "checked_bound_10x"):
        assert metrics[name] == pytest.approx(exact, abs=1e-3), name
    for name in ("inference_gap", "approximation_gap", "amortization_gap", "gain_10x", "refined_gain"):
        assert metrics[name] == pytest.approx(0, abs=0.02), name
    assert metrics["ess"] == pytest.approx(30, rel=1e-3)
    assert metrics["low_ess_share"] == 0
    assert measure(oracle.vae(exact=True), data, 10, 50, seed=1, sizes=SMALL)[0]["metrics"]["low_ess_share"] == 0
    assert metrics["mean_kl"] == pytest.approx(metrics["mutual_information"] + metrics["aggregate_kl"], abs=1e-5)
    assert record["protocol"]["likelihood"] == "Gaussian"
    assert codes.shape == (50, oracle.vae(exact=True).latent_dim)
    assert len(pairs) == 32
    assert record["metrics"].keys() >= record["standard_errors"].keys()


def test_metrics_of_factors_are_measured_if_the_data_have_them(oracle: LinearGaussian) -> None:
    data, model = Data(oracle), oracle.vae(exact=True)
    without = measure(model, data, 5, 50, sizes=SMALL).record
    data.factors = {split: (model.encode(images) > 0).long() for split, (images, _) in data.splits.items()}
    record = measure(model, data, 5, 50, sizes=SMALL).record
    new = {name for name in report.METRICS["factors of variation"] if name != "udr"}
    assert record["metrics"].keys() - without["metrics"].keys() == new
    assert record["meanings"].keys() == record["metrics"].keys()
    assert record["standard_errors"].keys() - without["standard_errors"].keys() < new
    assert record["meanings"]["dci_disentanglement"].endswith("forests of 40 training images")
    assert record["metrics"]["dci_informativeness"] > 0.8
    assert not {*report.METRICS["factors of variation"]} & (without["metrics"].keys() | without["absent"].keys())


def test_images_without_labels_have_a_reason_for_each_metric_of_classes(oracle: LinearGaussian) -> None:
    data = Data(oracle)
    data.splits = {split: (images, None) for split, (images, _) in data.splits.items()}
    absent = measure(oracle.vae(exact=True), data, 2, 20, sizes=SMALL).record["absent"]
    reasons = {name for name, why in absent.items() if why == "the images have no labels"}
    assert reasons == {*report.OF_CLASSES} - {"cluster_accuracy", "cluster_nmi", "cluster_ari"}  # its codes have none


def test_closer_bounds_of_a_random_encoder(oracle: LinearGaussian) -> None:
    data, sizes = Data(oracle), SMALL._replace(checked=40, refined=30, steps=500)
    record = measure(oracle.vae(exact=False), data, 30, 50, sizes=sizes).record
    metrics, meanings = record["metrics"], record["meanings"]
    assert metrics["gain_10x"] == pytest.approx(metrics["checked_bound_10x"] - metrics["checked_bound"])
    assert metrics["gain_10x"] > 0.2
    exact = oracle.log_prob(data.images("test", 30)[0]).mean().item()
    assert metrics["refined_bound"] == pytest.approx(exact, abs=0.1)
    assert metrics["refined_low_ess_share"] < 0.1 < metrics["low_ess_share"]
    assert metrics["approximation_gap"] == pytest.approx(0, abs=0.1)  # the posterior is a factorised Gaussian
    assert meanings.keys() == metrics.keys()
    assert meanings["checked_bound"].endswith("the IW bound of 40 images, K = 30")
    assert meanings["checked_bound_10x"].endswith("the same with 10 K = 300 samples")
    assert "IW bound of 30 images, K = 30, q refined" in meanings["refined_bound"]


@pytest.mark.parametrize("in_code", [True, False])
def test_clusters_that_name_the_classes(oracle: LinearGaussian, in_code: bool) -> None:
    """Each image has its class as its first pixel, and the classifier reads it or does not."""
    data, parts = Data(oracle), {"num_classes": 3, "in_code": in_code}
    for x, y in data.splits.values():
        x[:, 0, 0, 0] = 10.0 * y
    networks = partial(MLPEncoder, hidden=[]), partial(MLPDecoder, hidden=[])
    sizes = partial(ClassPosterior, width=4, **parts), partial(ClassPrior, **parts)
    model = VAE(5, oracle.shape, networks[0], *sizes, networks[1], Gaussian()).eval()

    class Classifier(torch.nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return -(h[:, :1] - 10.0 * torch.tensor([2, 0, 1])).abs()

    model.posterior.classifier = Classifier()
    metrics = measure(model, data, 5, 60, sizes=SMALL).record["metrics"]
    assert metrics["cluster_accuracy"] == 1
    assert metrics["active_units"] <= (2 if in_code else 5)  # the entries of the class are no units
    model.posterior.classifier = torch.nn.Sequential(torch.nn.Linear(6, 3))
    torch.nn.init.zeros_(model.posterior.classifier[0].weight)
    assert measure(model, data, 5, 60, sizes=SMALL).record["metrics"]["cluster_accuracy"] == pytest.approx(1 / 3)


def test_annealing_brackets_the_exact_value(oracle: LinearGaussian) -> None:
    data = Data(oracle)
    ais = Annealing(chains=8, temperatures=40)
    metrics = measure(oracle.vae(exact=False), data, 30, 50, sizes=SMALL._replace(checked=40), ais=ais).record[
        "metrics"
    ]
    exact = oracle.log_prob(data.images("test", 40)[0]).mean().item()
    assert metrics["ais_bound"] == pytest.approx(exact, abs=0.1)
    assert metrics["drawn_gap"] == pytest.approx(0, abs=0.1)
    assert metrics["drawn_upper"] - metrics["drawn_lower"] == pytest.approx(metrics["drawn_gap"])
    assert metrics["ais_gain"] == pytest.approx(metrics["ais_bound"] - metrics["checked_bound"])
    assert metrics["ais_gain"] > 0.1  # q is random, and K = 30


def test_the_noise_depends_on_the_seed_alone(oracle: LinearGaussian) -> None:
    data, model = Data(oracle), oracle.vae(exact=False)
    first, again, other = (measure(model, data, 5, 20, seed, SMALL).record["metrics"] for seed in (1, 1, 2))
    assert first == again
    assert first["log_likelihood"] != other["log_likelihood"]


@pytest.mark.parametrize("sizes", [{"probed": 1}, {"steps": 0}, {"refined": 2.5}, {"drawn": "all"}])
def test_sizes_are_whole_numbers(oracle: LinearGaussian, sizes: dict) -> None:
    (name, value), *_ = sizes.items()
    with pytest.raises(UserError, match=f"sizes.{name}={value}: a whole number, at least 2"):
        protocol(oracle.vae(exact=True), Data(oracle), 5, None, 0, SMALL._replace(**sizes))


def test_the_protocol_tells_what_does_not_compare(oracle: LinearGaussian) -> None:
    model, data = oracle.vae(exact=True), Data(oracle)
    agreed = protocol(model, data, 5, None, 0)
    assert (agreed["test_images"], agreed["sizes"]) == (60, Sizes()._asdict())
    named = SimpleNamespace(likelihood=SimpleNamespace(compares_as="Bernoulli"), num_classes=10)
    assert protocol(named, data, 5, None, 0)["likelihood"] == "class-conditional Bernoulli (on grey levels no density)"
    with pytest.raises(UserError, match="num_images=61, but oracle has 60 test images"):
        protocol(model, data, 5, 61, 0)
