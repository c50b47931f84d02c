"""Every option of every group trains, resumes and draws pictures; a new YAML file is tested at once."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from archives import WRITERS
from conftest import OTHER_FILES, ROOT, Compose, write_idx
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from train import train
from vaelab import runs
from vaelab.data import MNISTDataModule, files
from vaelab.runs import building
from vaelab.training import VAEModule

CONFIGS = ROOT / "configs"
EXPERIMENTS = {path.stem: path.read_text() for path in sorted((CONFIGS / "experiment").glob("*.yaml"))}
OVERRIDE = r"override /(\S+): (\w+)"
CHOSEN = {f"{group}={option}" for text in EXPERIMENTS.values() for group, option in re.findall(OVERRIDE, text)}
with initialize_config_dir(str(CONFIGS), version_base="1.3"):
    CHOICES = compose("train", return_hydra_config=True).hydra.runtime.choices
CHOSEN |= {f"{group}={option}" for group, option in CHOICES.items()}
OPTIONS = sorted(  # those that neither the default run nor an experiment has
    option
    for path in CONFIGS.rglob("*.yaml")
    if (option := f"{path.parent.relative_to(CONFIGS)}={path.stem}") not in CHOSEN
    and path.parent != CONFIGS
    and path.parent.parts[len(CONFIGS.parts)] not in ("hydra", "experiment", "logger", "trainer", "row")
)
FEW = ("data.batch_size=20", "data.eval_batch_size=20")  # images
TRAINERS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Records for each trainable parameter of a test's runs whether a gradient reached it."""
    reached: dict[str, bool] = {}

    def on_before_optimizer_step(self: VAEModule, _: object) -> None:
        for name, parameter in self.named_parameters():
            gradient = parameter.grad is not None and bool(parameter.grad.any())
            reached[name] = reached.get(name, False) or gradient

    monkeypatch.setattr(VAEModule, "on_before_optimizer_step", on_before_optimizer_step)
    return reached


def trains(cfg: DictConfig, folder: Path) -> None:
    train(cfg, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] > 0
    assert all(math.isfinite(metric) for split in ("train", "test") for metric in metrics[split].values())
    pictures = {"reconstructions.png", *(["samples.png"] if "prior" in cfg.model else [])}
    assert {path.name for path in (folder / "pictures").iterdir()} >= pictures


def resumes(folder: Path, epochs: int) -> None:
    cfg = runs.saved_config(folder, [f"trainer.max_epochs={epochs}"])
    cfg.resume = str(folder)
    train(cfg, folder)
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == epochs


def own_files(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write small files of a data set that is not in MNIST's format, and return the settings that name them."""
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    if name == "arrays":
        np.savez(folder / "x.npz", train_images=images, test_images=images)
        return [f"data.path={folder / 'x.npz'}"]
    if name == "folder":
        for i, image in enumerate(images):
            (folder / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / "images" / "ab"[i % 2] / f"{i}.png")
        return [f"data.root={folder / 'images'}"]
    if name.startswith("sprites"):
        small = ["data.image_shape=[1,16,16]", "data.factor_sizes=[3,2,4,4,4]"]
        return [*small, "data.num_images=100", "data.val_size=10", "data.test_size=10"]
    for dataset, write in WRITERS.items():
        if dataset.lower() == name:
            write(folder, monkeypatch)
            return [f"data.root={folder}", "data.val_size=4"]
    return []


@pytest.mark.parametrize("option", OPTIONS)
def test_option(
    config: Compose, tmp_path: Path, digits: tuple, option: str, monkeypatch: pytest.MonkeyPatch, moved: dict
) -> None:
    overrides = [option, *FEW]
    if option.startswith("data="):  # other data sets have other folders and names, so write small files
        monkeypatch.setattr(files, "reachable", lambda *_: ())
        overrides += own_files(option.removeprefix("data="), tmp_path, monkeypatch)
        root = [] if option in OTHER_FILES else [f"data.root={tmp_path / 'data'}"]
        data = instantiate(config(*overrides, *root).data, _convert_="all")
        if isinstance(data, MNISTDataModule) and data.dataset not in ("MNIST", "MNIST-5k"):
            for name, count in zip(data.names, (600, 600, 200, 200), strict=True):
                images = digits[0][:count, 0].numpy()
                labels = 1 + np.arange(8 * count).reshape(count, 8) % 8  # the columns of idx2
                write_idx(
                    data.folder / name, images if "images" in name else labels if "idx2" in name else labels[:, 0]
                )
            overrides.append(f"data.root={data.root}")
    folder = tmp_path / "run"
    folder.mkdir()
    trains(config(*overrides, "trainer.max_epochs=1"), folder)
    assert all(moved.values()), [name for name in moved if not moved[name]]
    resumes(folder, epochs=2)


def test_a_callback_is_added_to_those_of_an_experiment(config: Compose) -> None:
    callbacks = config("experiment=vampprior", "callbacks=ema").callbacks
    assert {"ema", "early_stopping", "best_checkpoint"} <= {*callbacks}
    assert callbacks.early_stopping.monitor == "auto"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment(
    config: Compose, tmp_path: Path, experiment: str, monkeypatch: pytest.MonkeyPatch, moved: dict
) -> None:
    """A run of two epochs equals one that was killed after the first, including discriminators and codebooks."""
    text = EXPERIMENTS[experiment]
    assert all(word in text.split("\n\n")[0] for word in ("Expected:", "Time:"))
    assert sum(not line.startswith("#") for line in text.splitlines()) <= 15
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def on_train_epoch_start(self: VAEModule, original: Callable = VAEModule.on_train_epoch_start) -> None:
        original(self)
        if self.current_epoch == 1 and not killed.exists():
            self.trainer.strategy.checkpoint_io.teardown()  # waits until the checkpoints are written
            shutil.copytree(whole, killed)

    monkeypatch.setattr(VAEModule, "on_train_epoch_start", on_train_epoch_start)
    whole.mkdir()
    cfg = config(f"experiment={experiment}", *FEW)
    cfg.trainer.max_epochs, cfg.callbacks.pictures.count = 2, 0  # pictures at the start alone
    trains(cfg, whole)
    steps = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert not (killed / "metrics.json").exists()
    resumes(killed, epochs=2)
    assert all(moved.values()), [name for name in moved if not moved[name]]
    ends = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 2 * steps
    assert all(torch.equal(ends[0]["state_dict"][name], ends[1]["state_dict"][name]) for name in ends[0]["state_dict"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_schedule_of_an_experiment_is_longer_than_its_run(experiment: str) -> None:
    """At its real length, with the images of full MNIST."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}"])
    batches = range(-(-(60_000 - cfg.data.val_size) // cfg.data.batch_size))
    cfg.trainer.max_epochs = building.epochs(cfg, len(batches))
    objective = instantiate(cfg.objective, _convert_="all")
    runs.check_schedules(cfg, objective, SimpleNamespace(train_dataloader=lambda: batches), ())


@pytest.mark.parametrize(
    "trainer",  # training/test_processes.py trains with ddp, and test_docs.py with mixed_precision
    [name for name in TRAINERS if name not in ("gpu", "ddp", "mixed_precision")],
)
def test_trainer(config: Compose, tmp_path: Path, trainer: str) -> None:
    limits = ["trainer.max_epochs=1", "trainer.limit_train_batches=3"]
    trains(config(f"trainer={trainer}", "trainer.accelerator=cpu", *limits), tmp_path)


def test_gpu_trainer(config: Compose, tmp_path: Path) -> None:
    cfg = config("trainer=gpu", "trainer.accelerator=gpu", "trainer.max_epochs=1", "trainer.limit_train_batches=3")
    if torch.cuda.is_available():
        trains(cfg, tmp_path)
    else:
        with pytest.raises(ValueError, match="finds no GPU on this machine"):
            train(cfg, tmp_path)


def test_images_of_another_size(config: Compose, tmp_path: Path) -> None:
    """Images of another size need only data.image_shape."""
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 20))
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(60) % 10)
    trains(config(f"data.root={tmp_path}", "data.image_shape=[1,12,20]", "data.val_size=10"), tmp_path)


def test_class_conditioning_from_the_command_line(config: Compose, tmp_path: Path) -> None:
    trains(config("model.num_classes=10"), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model/posterior=point_mass"], "ELBO does not go with VAE (posterior PointMass, .*): its loss is inf"),
        (["model/posterior=categorical"], "lies on 2 one-hot vectors of 10 categories, but the prior on R^20"),
        (["model/prior=uniform_sphere"], "the posterior lies on R^20, but the prior on the unit sphere"),
        (["model/posterior=joint"], "lies on blocks of 10 + 10 dimensions, but the prior on R^20: choose both"),
        (["model=vqvae"], "ELBO does not go with VQVAE .*: ELBO scores a Trace, and the model returns a Quantized"),
        (["objective=vq"], "VQ does not go with VAE .*: VQ scores a Quantized, and the model returns a Trace"),
        (["model=ladder", "objective=dreg"], "DReG is biased for the 2 layers of this model: use objective=iwae"),
        (["model=ladder", "objective=mmd"], "MMD is defined for one code, and this model has 2"),
        (["model=ladder", "model/prior=vampprior", "model.inference=bottom_up"], "does not have: use inference="),
        (["model=ladder", "objective=factor"], "FactorVAE is defined for the code of model=vae"),
        (["model/posterior=flow", "objective=beta_tc"], "needs factorised Gaussians, got q = Flow"),
        (["model/posterior=full_covariance", "objective.free_bits=0.1"], "needs factorised Gaussians"),
        (
            ["model/posterior=categorical", "model/prior=uniform_categorical", "objective=iwae"],
            "objective IWAE does not go with .*: a relaxed categorical sample has no probability",
        ),
        (
            ["objective=reconstruction", "model/posterior=point_mass", "model/prior=mixture"],
            "no gradient reaches its prior.logits, prior.mean, prior.log_std",
        ),
        (["model/posterior=joint", "model/prior=vampprior"], "VampPrior.*: a posterior of blocks needs"),
        (["model/posterior=point_mass"], "a point mass has no density, which this objective needs"),
        (["objective=factor", "optimizer=sgd"], "sets its parameters' betas, which optimizer SGD does not have"),
        (["model/prior=vampprior", "model.num_classes=10"], "has no labels for its pseudo-inputs"),
        (["model/likelihood=autoregressive", "data.image_shape=[3,8,8]"], "autoregressive pixels have one channel"),
        (["model=vqvae", "objective=vq", "model/network=mlp"], "VQVAE quantises a feature map, which MLPEncoder lacks"),
        (["objective=capacity", "model/posterior=joint", "model/prior=joint"], "has 1 entries for 2 latents"),
        (["objective=m2"], "M2 needs codes that have a class: use model/posterior=classes model/prior=classes"),
        (["model/posterior=classes", "model/prior=classes"], "no gradient through a sample: use objective=m2"),
        (["model/posterior=classes"], "lies on vectors of 10 dimensions with one of 10 classes, but the prior on R^20"),
        (["experiment=semi_supervised", "model.latent_dim=10"], "so that it is at least 11, or in_code=false"),
        (["model/posterior=hyperspherical", "model.latent_dim=1"], "latent_dim=1: a whole number, at least 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_parts_that_do_not_go_together(config: Compose, tmp_path: Path, overrides: list, sentence: str) -> None:
    """The error comes before any data is loaded, with a sentence that names the parts."""
    with pytest.raises((ValueError, InstantiationException)) as error:
        train(config(*overrides, f"data.root={tmp_path}", "data.allow_subset=false"), tmp_path)
    text = f"{error.value} {error.value.__cause__}"
    assert re.search(sentence.replace("(", r"\(").replace(")", r"\)").replace("^", r"\^").replace("+", r"\+"), text), (
        text
    )
