"""`python classify.py` trains a classifier once, and `evaluate.py samples=` finds it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, compose_config, refused
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from classify import classify
from evaluate import classify_command, evaluate
from train import train
from vaelab.data import cache
from vaelab.evaluation import classifier


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture
def arrays(tmp_path: Path) -> list[str]:
    """The settings of labelled images of 12 x 12 pixels: class 0 is dark above and class 1 below."""
    images = np.random.default_rng(0).integers(0, 80, (100, 12, 12), dtype=np.uint8)
    labels = np.arange(100) % 2
    images[labels == 0, 6:] += 160
    images[labels == 1, :6] += 160
    parts = {"train_images": images[:70], "train_labels": labels[:70]}
    np.savez(tmp_path / "a.npz", **parts, test_images=images[70:], test_labels=labels[70:])
    np.savez(tmp_path / "unlabelled.npz", train_images=images[:70], test_images=images[70:])
    small = {name: part[:, :6] if part.ndim == 3 else part for name, part in parts.items()}
    np.savez(tmp_path / "small.npz", **small, test_images=images[70:, :6], test_labels=labels[70:])
    return ["data=arrays", f"data.path={tmp_path}/a.npz", "data.image_shape=[1,12,12]"]


def test_own_images(
    arrays: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(sys, "argv", ["train.py", *arrays])
    cfg = compose_config(tmp_path, *arrays, "data.batch_size=20", "model.latent_dim=2", "callbacks.pictures.count=0")
    train(cfg, run)
    short = [f"run={run}", "num_samples=2", "sizes.steps=2", "sizes.refined_samples=2", "samples=30"]
    command = f": python classify.py {arrays[0]} {{}}{arrays[1]} 'data.image_shape=[1,12,12]' trains one"
    message = refused(evaluate, composed("evaluate", *short), Path())
    assert message.startswith("samples=30 needs a classifier of arrays-")
    assert message.endswith(command.format(""))
    message = refused(evaluate, composed("evaluate", *short, f"data.root={tmp_path}"), Path())
    assert message.endswith(command.format(f"data.root={tmp_path} "))
    assert not (run / "evaluation.json").exists()

    monkeypatch.setattr(sys, "argv", ["classify.py", *arrays])
    classify(composed("classify", *arrays, "epochs=40"), Path())
    printed = capsys.readouterr().out
    assert "training on 70 images of arrays-" in printed
    assert "right on 30 test images of arrays-" in printed
    (weights,) = (cache.folder() / "classifiers").glob("arrays-*.safetensors")
    record = classifier.load(weights)[1]
    assert record["accuracy"]["grey levels"] > 0.9
    assert (record["images"], record["epochs"]) == ({"train": 70, "test": 30}, 40)
    assert record["command"].startswith("python classify.py data=arrays")

    before = weights.read_bytes()
    for setting in ("epochs=40", "epochs=10"):  # it is there, so only its accuracy is measured; 10 is the default
        classify(composed("classify", *arrays, setting), Path())
        assert "training" not in capsys.readouterr().out
    message = refused(classify, composed("classify", *arrays, "epochs=1"), Path())
    assert "epochs=1 changes nothing: " in message
    assert "is there already, trained with epochs=40; output=FILE.safetensors trains another" in message
    assert "seed=3 changes nothing" in refused(classify, composed("classify", *arrays, "seed=3"), Path())
    message = refused(classify, composed("classify", "data=mnist_5k", "epochs=1", f"output={weights}"), Path())
    assert f"{weights} has a classifier of arrays-" in message
    assert message.endswith(", not of MNIST-5k: choose another file")
    assert weights.read_bytes() == before
    about = weights.with_suffix(".json")
    kept = about.read_text()
    about.write_text(kept.replace(json.loads(kept)["dataset"], "MNIST-5k"))
    message = refused(evaluate, composed("evaluate", *short), Path())
    assert message.startswith(f"{weights} has a classifier of MNIST-5k, not of arrays-")
    assert message.endswith("trains the right one")
    about.write_text(kept)

    evaluate(composed("evaluate", *short), Path())
    found = json.loads((run / "evaluation.json").read_text())
    assert found["protocol"]["classifier"].startswith("arrays-")
    assert found["references"]["real"]["frechet_distance"] < found["references"]["noise"]["frechet_distance"]
    assert found["metrics"]["frechet_distance"] > found["references"]["real"]["frechet_distance"]


def test_the_command_is_built_from_the_data_of_the_run() -> None:
    fashion = composed(
        "classify", "data=fashion_mnist", "data.batch_size=7", "data.root=else where", "data.md5=null"
    ).data
    assert classify_command(fashion) == "python classify.py data=fashion_mnist 'data.root=\"else where\"' data.md5=null"
    fashion._target_, fashion.dataset = "strange.Data", "odd\x1b"
    assert classify_command(fashion) == "python classify.py with the data settings of this run"


def test_digits_have_the_classifier_of_the_package(data_root: Path, capsys: pytest.CaptureFixture) -> None:
    digits = [f"data.root={data_root}", "data.md5=null", "data.val_size=100"]
    classify(composed("classify", *digits), Path())
    printed = capsys.readouterr().out
    assert "digits.safetensors: a classifier of MNIST" in printed
    assert "right on 200 test images of MNIST: 99." in printed or "100.00% (grey levels)" in printed
    assert not cache.folder().exists()


def test_another_file(arrays: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    classify(composed("classify", *arrays, "epochs=1", f"output={path}"), Path())
    first = path.read_bytes()
    classify(composed("classify", *arrays, "epochs=1", "seed=1", f"output={path}"), Path())  # trained anew
    assert path.read_bytes() != first
    model, record = classifier.load(path)
    assert record["seed"] == 1
    assert model(torch.zeros(2, 1, 12, 12)).shape == (2, 2)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("epochs=0", "epochs=0: a whole number, at least 1"),
        ("output=weights.pt", "output=weights.pt: a file that ends in .safetensors, in a folder"),
        ("output=nowhere/a.safetensors", "in a folder that can be written to"),
        ("data.path=unlabelled.npz", ": the images have no labels"),
        ("data.path=small.npz", ": the images have 6 x 12 pixels, fewer than 8 x 8"),
    ],
)
def test_mistakes(
    arrays: list[str], setting: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "small" in setting:
        arrays[-1] = "data.image_shape=[1,6,12]"
    assert sentence in refused(classify, composed("classify", *arrays, setting), Path())
