"""Every option of every group composes, instantiates, takes steps and draws: a new YAML file is a test case already."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Compose, write_idx
from omegaconf import DictConfig

from train import train
from vaelab.data import mnist

CONFIGS = ROOT / "configs"
OPTIONS = sorted(
    f"{path.parent.relative_to(CONFIGS)}={path.stem}"
    for path in CONFIGS.rglob("*.yaml")
    if path.parent != CONFIGS and path.parent.parts[len(CONFIGS.parts)] not in ("hydra", "experiment", "trainer")
)
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
COMPANIONS = {"model=vqvae": ["objective=vq"], "objective=vq": ["model=vqvae"]}  # these go together only
TRAINERS = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))


def trains(cfg: DictConfig, folder: Path) -> None:
    train(cfg, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] > 0
    pictures = {"reconstructions.png", *(["samples.png"] if "prior" in cfg.model else [])}
    assert {path.name for path in (folder / "figures").iterdir()} >= pictures
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("option", OPTIONS)
def test_option(config: Compose, tmp_path: Path, data_root: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [option, *COMPANIONS.get(option, [])]
    if option.startswith("data="):  # other data sets lie in other folders, and the small files have other checksums
        dataset = config(option).data.dataset
        monkeypatch.setattr(mnist, "reachable", lambda *_: ())
        if dataset != "MNIST":
            for path in (data_root / "MNIST" / "raw").iterdir():
                target = tmp_path / "data" / dataset / "raw" / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            overrides.append(f"data.root={tmp_path / 'data'}")
    trains(config(*overrides), tmp_path)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment(config: Compose, tmp_path: Path, experiment: str) -> None:
    cfg = config(f"experiment={experiment}", "trainer.max_epochs=2")
    trains(cfg, tmp_path)
    header = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().split("\n\n")[0]
    assert all(word in header for word in ("Expected:", "Time:"))


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name not in ("gpu", "ddp")])
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


def test_ddp_trainer_on_two_processes(data_root: Path, tmp_path: Path) -> None:
    """Each process trains on half of the images, so that an epoch has half as many steps."""
    settings = [
        "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", f"data.root={data_root}", "data.md5=null",
        "data.val_size=100", "data.batch_size=50", f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *settings], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 5
    assert metrics["protocol"]["images"]["train"] == 500
    assert len(list(tmp_path.glob("checkpoints/*.ckpt"))) == 2


def test_images_of_another_size(config: Compose, tmp_path: Path) -> None:
    """The image's size stands in one place."""
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (60, 12, 20))
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(60) % 10)
    trains(config(f"data.root={tmp_path}", "data.image_shape=[1,12,20]", "data.val_size=10"), tmp_path)


def test_class_conditioning_from_the_command_line(config: Compose, tmp_path: Path) -> None:
    trains(config("model.num_classes=10"), tmp_path)
