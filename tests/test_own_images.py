"""Colour images of one's own, from the folder to the exported model, with labels and without."""

import csv
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, compose_config
from hydra import compose, initialize_config_dir
from PIL import Image

from evaluate import evaluate
from export import export
from generate import generate
from train import train
from vaelab import runs
from vaelab.data import cache
from vaelab.errors import UserError
from vaelab.export.page import page
from vaelab.runs import read_json

NETWORK = ("model/network=conv", "model.encoder.channels=[4,8]", "model.decoder.channels=[8,4]")
SMALL = (
    *NETWORK,
    "model.encoder.hidden=[16]",
    "model.decoder.hidden=[16]",
    "model.latent_dim=2",
    "data.batch_size=20",
    "callbacks.pictures.count=1",
)
SHORT = ("num_samples=5", "sizes.train_samples=5", "sizes.steps=2", "sizes.refined_samples=2", "sizes.drawn=20")
SCRIPTS = {"evaluate": evaluate, "generate": generate, "export": export}
LIKELIHOODS = {"classes": "discretized_logistic", "flat": "gaussian"}  # by the folder with and without labels


@pytest.fixture(scope="module", params=["classes", "flat"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 100 red and blue squares of several sizes in images/, and the run that is trained on it in run/."""
    home, rng = tmp_path_factory.mktemp(request.param), np.random.default_rng(0)
    for i in range(100):
        image = Image.new("RGB", [(32, 32), (40, 30)][i % 4 == 0], (30, 60, 30))
        x, y = rng.integers(4, 16, 2).tolist()
        image.paste([(220, 30, 30), (30, 30, 220)][i % 2], (x, y, x + 12, y + 12))
        path = home / "images" / (["blue", "red"][1 - i % 2] if request.param == "classes" else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (home / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAELAB_CACHE", str(home / "cache"))
        chosen = [f"model/likelihood={LIKELIHOODS[request.param]}", f"data.root={home / 'images'}"]
        chosen += ["callbacks=[metrics]", "callbacks.metrics.num_samples=2"]
        train(compose_config(home, "data=folder", *chosen, *SMALL, "trainer.max_epochs=1"), home / "run")
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAELAB_CACHE", str(trained / "cache"))
    return shutil.copytree(trained, tmp_path / "home")


@pytest.fixture
def script(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs evaluate.py, generate.py or export.py on the run."""

    def call(name: str, *overrides: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py"])
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(name, [f"run={home / 'run'}", *overrides])
        SCRIPTS[name](cfg, Path())

    return call


def has_colour(path: Path) -> bool:
    with Image.open(path) as image:
        red, green, blue = np.asarray(image.convert("RGB")).astype(int).transpose(2, 0, 1)
    return bool((abs(red - green) + abs(green - blue)).max() > 30)


def test_training_draws_in_colour(trained: Path) -> None:
    assert has_colour(trained / "run" / "pictures" / "reconstructions.png")
    assert read_json(trained / "run" / "metrics.json")["protocol"]["images"] == {"train": 80, "val": 10, "test": 10}


def test_it_is_measured_and_what_needs_labels_is_left_out(
    home: Path, script: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    script("evaluate", *SHORT)
    record, printed = read_json(home / "run" / "evaluation.json"), capsys.readouterr().out
    metrics, labelled = record["metrics"], (home / "images" / "red").exists()
    assert ("linear_accuracy" in metrics) == ("knn_accuracy" in metrics) == labelled
    assert ("no linear_accuracy: the images have no labels" in printed) == (not labelled)
    assert ("bits_per_dim" in metrics) == labelled  # a density has none
    if labelled:
        dims = 3 * 32 * 32
        assert metrics["bits_per_dim"] == pytest.approx(-metrics["log_likelihood"] / dims / np.log(2))
    assert has_colour(home / "run" / "pictures" / "nearest.png")


def test_pictures_are_in_colour(trained: Path, home: Path, script: Callable[..., None]) -> None:
    kinds = ["interpolation", "codes"]  # those that labels change
    if "flat" in trained.name:
        kinds += ["samples", "reconstructions", "traversal", "manifold", "prior", "training"]
    for kind in kinds:
        script("generate", f"kind={kind}", *(["num=1"] if kind == "interpolation" else []))
    pictures = sorted((home / "run" / "generated").iterdir())
    assert len(pictures) == len(kinds)
    assert all(map(has_colour, pictures))


def test_a_conditional_model_needs_labels(home: Path) -> None:
    chosen = [f"data.root={home / 'images'}", "model.num_classes=2"]
    (home / "new").mkdir()
    if (home / "images" / "red").exists():
        cfg = compose_config(home, "data=folder", *chosen, *SMALL, "trainer.max_epochs=1", "callbacks.pictures=null")
        assert train(cfg, home / "new") > 0
    else:
        with pytest.raises(UserError, match=r"^model.num_classes=2, but the images of folder-\w+ have no labels"):
            train(compose_config(home, "data=folder", *chosen, *SMALL), home / "new")


def test_images_of_any_size_are_ranked(trained: Path, home: Path, script: Callable[..., None]) -> None:
    (home / "mine").mkdir()
    first = min((home / "images").rglob("*.png"))
    Image.open(first).resize((90, 70)).save(home / "mine" / "usual.png")
    Image.new("RGB", (64, 64), (255, 255, 0)).save(home / "mine" / "yellow.png")
    script("evaluate", f"images={home / 'mine'}", "sizes.train_samples=5", "sizes.drawn=20")
    rows = list(csv.DictReader((home / "run" / "strangeness.csv").read_text().splitlines()))
    assert {row["name"] for row in rows} == {"usual.png", "yellow.png"}
    assert float(rows[0]["bound"]) <= float(rows[1]["bound"])
    if "flat" in trained.name:  # plain colours at the ends of the scale are likely under a discretised logistic
        assert rows[0]["name"] == "yellow.png"
        assert float(rows[0]["percentile"]) == 0
    with np.load(home / "run" / "codes.npz") as saved:
        assert saved["codes"].shape == (2, 2)
    assert has_colour(home / "run" / "pictures" / "strangest.png")


@pytest.mark.parametrize("trained", ["flat"], indirect=True)
def test_its_page_needs_no_labels(home: Path) -> None:
    run = runs.open_run(str(home / "run"), str(home / "images"), device="cpu")
    assert b'"labels": null' in page(run.model, run.data, {}, "mine")


def test_training_measures_what_needs_no_labels(trained: Path) -> None:
    curves = (trained / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "val_subset/active_units" in curves
    assert ("val_subset/knn_accuracy" in curves) == (trained / "images" / "red").exists()


@pytest.mark.parametrize("trained", ["classes"], indirect=True)
def test_it_is_exported(home: Path, script: Callable[..., None]) -> None:
    script("export")
    model = runs.load_run(home / "run")
    decoder = onnxruntime.InferenceSession(home / "run" / "export" / "decoder.onnx")
    z = torch.randn(5, 2)
    (image,) = decoder.run(["image"], {"code": z.numpy()})
    assert image.shape == (5, 3, 32, 32)
    np.testing.assert_allclose(image, model.decode(z).mean.detach(), atol=1e-5)
    text = (home / "run" / "export" / "config.json").read_text() + (home / "run" / "export" / "README.md").read_text()
    assert str(home) not in text


def test_changed_files_are_refused(home: Path, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAELAB_CACHE", str(home / "cache"))
    min((home / "images").rglob("*.png")).unlink()
    with pytest.raises(
        UserError, match=r"^this run was trained on folder-\w+, but data.root=.* now gives folder-\w+: "
    ):
        script("evaluate", f"data.root={home / 'images'}", *SHORT)
    config = home / "run" / "config.yaml"
    config.write_text(re.sub(r"used: folder-\w+", "used: null", config.read_text()))  # by a stranger
    monkeypatch.setattr(cache, "decoded", lambda *_: pytest.fail("the files are decoded"))
    with pytest.raises(UserError, match=r"^this run was trained on folder, but data.root=.* now gives folder-\w+: "):
        script("evaluate", f"data.root={home / 'images'}", *SHORT)
