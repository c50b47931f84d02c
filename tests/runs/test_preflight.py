"""Settings that cannot work are refused before anything slow starts."""

from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from conftest import Compose

from train import train
from vaelab.errors import UserError
from vaelab.runs import check_config


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+model.depth=3"], "model.depth: vaelab.models.VAE takes no such argument; it takes latent_dim, "),
        (["+model.encoder.width=3"], "model.encoder.width: .*MLPEncoder takes no such argument; it takes .*hidden"),
        (["+model.posterior.scale=3"], "model.posterior.scale: .*DiagonalGaussian takes no such argument"),
        (["+objective.betta=3"], "objective.betta: .*ELBO takes no such argument; it takes beta, "),
        (["objective/beta=linear", "+objective.beta.step=3"], "objective.beta.step: .*Linear takes no such argument"),
        (["+optimizer.lrr=3"], "optimizer.lrr: torch.optim.Adam takes no such argument; it takes .*lr"),
        (["scheduler=cosine", "+scheduler.scheduler.eta=1"], "scheduler.scheduler.eta: .*Cosine takes no such"),
        (["+data.batch=3"], "data.batch: .*MNISTDataModule takes no such argument; it takes .*dataset.*, batch_size,"),
        (
            ["data=binarized_mnist", "+data.md5=null"],
            "data.md5: .*takes no such argument; it takes root, dataset, val_s",
        ),
        (["+trainer.max_epoch=3"], "trainer.max_epoch: lightning.pytorch.Trainer takes no such argument"),
        (["+callbacks.pictures.num=3"], "callbacks.pictures.num: .*Pictures takes no such argument"),
        (
            ["data=folder", "model.num_classes=${data.num_classes}"],
            "model.num_classes is that of the data, and it is no",
        ),
        (["+module.compiled=true"], "module.compiled: .*VAEModule takes no such argument"),
    ],
    ids=str,
)
def test_an_argument_that_a_class_does_not_take(config: Compose, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_config(config(*overrides))


def test_batch_normalisation_needs_two_images(config: Compose, tmp_path: Path) -> None:
    norm = [f"model.{part}.norm=batch" for part in ("encoder", "decoder")]
    train(config(*norm, "data.train_size=61", "data.batch_size=20", "trainer.limit_train_batches=null"), tmp_path)
    with pytest.raises(UserError, match=r"data.batch_size=1: batch normalisation needs at least two images in a batch"):
        train(config(*norm, "data.batch_size=1"), tmp_path)


def test_a_conditional_model_needs_labels_in_every_split(config: Compose, tmp_path: Path) -> None:
    images = np.zeros((12, 28, 28), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(12) % 3, test_images=images)
    sentence = r"^model.num_classes=3, but the test images of arrays-\w+ have no labels: set it to 0$"
    with pytest.raises(UserError, match=sentence):
        train(config("data=arrays", f"data.path={tmp_path / 'x.npz'}", "model.num_classes=3"), tmp_path)


def test_more_processes_than_cpus(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    check_config(config("trainer=ddp", "trainer.devices=2"))
    check_config(config("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=50"))
    with pytest.raises(UserError, match=r"trainer.devices=100 .* 2"):
        check_config(config("trainer.devices=100"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.num_labels=100"], "data.num_labels=100 is for objective=m2, and ELBO has no use for images without"),
        (["experiment=semi_supervised", "model.posterior.num_classes=4"], "=4, but MNIST has 10 classes: raise it, or"),
        (
            ["experiment=semi_supervised", "objective.num_labels=70"],
            "^objective.num_labels=70, but data.num_labels=100: l",
        ),
        (
            ["experiment=gaussian_mixture_vae", "objective.num_labels=null"],
            "=null, but data.num_labels=0: leave it out",
        ),
        (["experiment=semi_supervised", "data.num_labels=95"], "a multiple of the 10 classes is needed, at most 500"),
    ],
    ids=str,
)
def test_labels_that_the_objective_cannot_use(
    config: Compose, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config(*overrides), tmp_path)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_half_precision_needs_a_gpu(config: Compose) -> None:
    with pytest.raises(UserError, match=r"trainer.precision=16-mixed needs a GPU"):
        check_config(config("trainer.precision=16-mixed"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["callbacks=[ema,swa]"], "two callbacks average the weights"),
        (["callbacks=swa", "model.encoder.norm=batch"], "callbacks=swa does not go with batch normalisation"),
        (["callbacks=[ema,metrics]", "data.val_size=0"], "callbacks=metrics measures validation images"),
        (
            ["model/likelihood=autoregressive", "data.binarization=none"],
            "has 2 grey levels, and data.binarization=none keeps 256 .*: set model.likelihood.levels=256, or",
        ),
        (
            ["model/likelihood=autoregressive", "model.likelihood.levels=16", "data.binarization=none"],
            "has 16 grey levels, and data.binarization=none keeps 256 of them",
        ),
    ],
    ids=str,
)
def test_parts_that_do_not_go_with_each_other_or_with_the_data(
    config: Compose, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config(*overrides), tmp_path)
    assert not (tmp_path / "config.yaml").exists()
