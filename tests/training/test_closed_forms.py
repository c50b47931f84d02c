"""Callbacks that compare a run with a closed form."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Compose, metrics
from hydra.utils import instantiate
from torch import Tensor

from train import train
from vaelab import linear, runs
from vaelab.data import MNISTDataModule
from vaelab.likelihoods import Gaussian
from vaelab.objectives import ELBO
from vaelab.training import ClosedForm
from vaelab.training.closed_forms import foretold_collapse

WHOLE = ["trainer.limit_train_batches=null", "trainer.limit_test_batches=null", "data.val_size=0"]


def written(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "metrics.json").read_text())


def small_mnist(data_root: Path) -> tuple[Tensor, Tensor]:
    """The training images and the test images."""
    data = MNISTDataModule(str(data_root), val_size=0, binarization="none")
    data.setup()
    return data.images("train")[0], data.images("test")[0]


def test_pca_experiment_reports_the_closed_form(config: Compose, tmp_path: Path, data_root: Path) -> None:
    """Without training, the run draws pictures and reports the test error of PCA on the training images."""
    cfg = config("experiment=pca", *WHOLE, "model.latent_dim=5", "trainer.max_epochs=0")
    assert train(cfg, tmp_path) == written(tmp_path)["test"]["loss"]
    images, tests = small_mnist(data_root)
    mean, basis = images.flatten(1).mean(0), torch.linalg.eigh(torch.cov(images.flatten(1).double().T))[1][:, -5:]
    centred = (tests.flatten(1) - mean).double()
    expected = (centred - centred @ basis @ basis.T).square().sum(1).mean()
    assert written(tmp_path)["test"]["squared_error"] == pytest.approx(float(expected), rel=1e-5)
    assert "train" not in written(tmp_path)
    assert (tmp_path / "pictures" / "reconstructions.png").is_file()
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in linear.pca(images, 5).items())


def test_ppca_experiment_reports_the_log_likelihood(config: Compose, tmp_path: Path, data_root: Path) -> None:
    train(config("experiment=ppca", *WHOLE, "model.latent_dim=5", "trainer.max_epochs=0"), tmp_path)
    images, tests = small_mnist(data_root)
    expected = linear.ppca_log_likelihood(linear.ppca(images, 5), tests).mean()
    assert written(tmp_path)["test"]["elbo"] == pytest.approx(float(expected), rel=1e-5)


def test_a_closed_form_is_where_a_run_starts_and_not_where_it_resumes(config: Compose, tmp_path: Path) -> None:
    train(config("experiment=pca", "optimizer.lr=1e-2", "trainer.max_epochs=1"), tmp_path)
    first = torch.load(tmp_path / "weights.pt", weights_only=True)
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=2", "optimizer.lr=1e-30"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert all(torch.equal(last["state_dict"][f"model.{name}"], value) for name, value in first.items())


def test_principal_angle_is_zero_at_pca_and_survives_resuming(config: Compose, tmp_path: Path) -> None:
    angle = "+callbacks.principal_angle._target_=vaelab.training.PrincipalAngle"
    train(config("experiment=pca", angle, "optimizer.lr=1e-30", "trainer.max_epochs=1"), tmp_path)
    assert written(tmp_path)["train"]["principal_angle"] < 1e-3
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=2", "optimizer.lr=1e-2"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert 1 < written(tmp_path)["train"]["principal_angle"] <= 90
    assert (tmp_path / "train.log").read_text().count("degrees from the subspace of PCA") == 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["experiment=pca", "model/network=mlp"], "with method=pca needs model/network=linear, model/posterior=point_"),
        (["experiment=pca", "model.likelihood.mean=sigmoid"], "gaussian with mean=identity and a number as its scale"),
        (["experiment=pca", "callbacks.closed_form.method=ppca"], "model/posterior=diagonal_gaussian.* scale=learned"),
        (["experiment=ppca", "model/likelihood=laplace"], "with method=ppca needs .* model/likelihood=gaussian"),
        (["experiment=ppca", "model/prior=mixture"], "with method=ppca needs .* model/prior=standard_normal"),
        (["experiment=ppca", "model.prior.scale=2.0"], "with method=ppca needs .* of scale 1 and model/likelihood"),
        (["experiment=ppca", "data.binarization=dynamic"], "redraws the images, but a closed form needs fixed"),
        (["experiment=linear_autoencoder", "model/network=mlp"], "compares the columns of one matrix"),
        (["experiment=linear_autoencoder", "model.num_classes=10"], "one likelihood parameter per pixel and no labels"),
    ],
)
def test_a_callback_names_the_model_that_it_needs(
    config: Compose, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(config(*overrides), tmp_path)


def test_there_are_two_closed_forms() -> None:
    with pytest.raises(ValueError, match="method=ica: choose one of pca, ppca"):
        ClosedForm("ica")


def test_tutorial_reports_squared_error_plus_kl(config: Compose, tmp_path: Path) -> None:
    train(config("experiment=tutorial", "data.val_size=0", "trainer.max_epochs=2"), tmp_path)
    content = metrics(tmp_path)
    assert content["protocol"]["images"] == {"train": 600, "val": 0, "test": 200}
    expected = content["train"]["loss"] - 392 * math.log(math.pi)
    assert content["train"]["average_loss"] == pytest.approx(expected)
    assert "val" not in content
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    assert content["weights"]["test"] == "last"


def test_average_loss_needs_its_likelihood(config: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"average_loss computes squared error .* needs model/likelihood=gaussian"):
        train(config("+callbacks.average_loss._target_=vaelab.training.AverageLoss"), tmp_path)
    with pytest.raises(ValueError, match=r"which needs .* objective=elbo, beta 1 and no free bits"):
        train(config("experiment=tutorial", "data.val_size=0", "objective.beta=4"), tmp_path)


# A collapse that is foreseen ------------------------------------------------------------------------------------------

MEAN_ERROR = ["data.binarization=none", "model/likelihood=gaussian", "model.likelihood.scale=19.8"]  # sigma^2 = 392
HEAVY_RATE = ["data.binarization=none", "model/likelihood=squared_error", "objective.beta=784"]


@pytest.mark.parametrize(
    ("overrides", "noise"),
    [
        (MEAN_ERROR, "392"),
        (HEAVY_RATE, "392"),
        ([*MEAN_ERROR, "objective=iwae"], "392"),
        ([*MEAN_ERROR, "data.binarization=dynamic"], "392"),
        ([*HEAVY_RATE[:2], "objective/beta=linear", "objective.beta.end=784"], "392"),
        ([*MEAN_ERROR, "objective.free_bits=0.1"], None),
        ([*MEAN_ERROR, "objective.beta=0"], None),
        ([*MEAN_ERROR, "objective=mmd"], None),
        (["experiment=tutorial"], None),
        (["data.binarization=none", "model/likelihood=gaussian"], None),  # a learned scale
        ([], None),
    ],
    ids=str,
)
def test_a_collapse_is_foretold_where_the_noise_exceeds_all_eigenvalues(
    config: Compose, overrides: list[str], noise: str | None
) -> None:
    cfg = config(*overrides)
    state = torch.get_rng_state()
    data, module = instantiate(cfg.data, _convert_="all"), runs.build(cfg)
    data.setup()
    torch.set_rng_state(state)
    sentence = foretold_collapse(module, data)
    assert torch.equal(state, torch.get_rng_state())
    if noise is None:
        assert sentence is None
        return
    assert sentence is not None
    assert f"beta * sigma^2 = {noise} is above the largest eigenvalue" in sentence
    assert "from 500 training images" in sentence


def test_images_in_any_order_have_the_same_largest_eigenvalue(digits: tuple[Tensor, Tensor]) -> None:
    """Neither the order by class nor the digits in turn, 0, 1, ..., 9, 0, ..., changes it by much."""
    images, labels = digits
    exact = float(linear.spectrum(images.float() / 255)[0])
    module = SimpleNamespace(model=SimpleNamespace(likelihood=Gaussian(9.0)), objective=ELBO())
    for order in (labels.argsort(stable=True), torch.arange(len(labels))):
        data = SimpleNamespace(splits={"train": (images[order], labels)}, binarization="none")
        sentence = foretold_collapse(module, data)
        assert sentence is not None
        found = float(sentence.split("covariance (")[1].split(",")[0])
        assert found == pytest.approx(exact, rel=0.06)


def test_the_sentence_stands_at_the_start_of_the_log(config: Compose, tmp_path: Path) -> None:
    train(config(*MEAN_ERROR, "trainer.max_epochs=0"), tmp_path)
    text = " ".join((tmp_path / "train.log").read_text().split())
    assert "The code will almost certainly collapse" in text


def test_the_threshold_is_the_largest_eigenvalue(data_root: Path) -> None:
    data = MNISTDataModule(str(data_root), val_size=0, binarization="none")
    data.setup()
    x = data.images("train")[0].flatten(1).double()
    largest = float(torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-1])
    for factor, foretold in ((0.99, False), (1.01, True)):
        likelihood = Gaussian(math.sqrt(largest * factor))
        module = SimpleNamespace(model=SimpleNamespace(likelihood=likelihood), objective=ELBO())
        sentence = foretold_collapse(module, data)
        assert bool(sentence) is foretold
