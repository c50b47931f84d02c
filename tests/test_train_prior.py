"""`python train_prior.py` fits a prior to the codes of a run, which is then sampled, measured, exported and checked."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, compose_config, refused
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from evaluate import evaluate
from export import export
from generate import generate
from train import train
from train_prior import train_prior
from vaelab import cli, load_run, runs

SCRIPTS = {"evaluate": evaluate, "export": export, "generate": generate, "train_prior": train_prior}
SMALL = ("channels=8", "kernel_size=3", "num_blocks=1", "epochs=2")
NETWORKS = ("model.encoder.channels=[4,4]", "model.decoder.channels=[4,4]", "callbacks.pictures=null")


@pytest.fixture(scope="module")
def trained(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short runs: a VQ-VAE with a prior over its codes, one with finite scalars, and a VAE."""
    home = tmp_path_factory.mktemp("runs")
    for name, settings in {
        "vq": ["experiment=vq_vae", "model.num_embeddings=8"],
        "fsq": ["experiment=fsq_vae"],
    }.items():
        (home / name).mkdir()
        train(compose_config(data_root, *settings, *NETWORKS), home / name)
    (home / "vae").mkdir()
    train(compose_config(data_root, "model.encoder.hidden=[8]", "callbacks.pictures=null"), home / "vae")
    call("train_prior", f"run={home / 'vq'}", *SMALL)
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def call(script: str, *settings: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(script, list(settings))
    SCRIPTS[script](cfg, Path())


def test_the_command_reports_nats_and_repeats_itself(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    first = (home / "vq" / "prior.pt").read_bytes()
    monkeypatch.setattr(sys, "argv", ["train_prior.py", "run=vq", *SMALL])
    GlobalHydra.instance().clear()
    cli.main(train_prior, ROOT / "configs", "train_prior")
    printed = capfd.readouterr().out.splitlines()
    assert printed[0].startswith("training a prior on 500 maps of 7 x 7 codes out of 8, MNIST (500 / 100 / 200 images")
    assert printed[1] == "uniform codes have 101.89 nats per image"  # 49 log 8
    assert [line.split(":")[0] for line in printed[2:-1]] == ["epoch 1", "epoch 2"]
    assert printed[-1].startswith("vq/prior.pt: the weights after epoch ")
    assert (home / "vq" / "prior.pt").read_bytes() == first

    opened = runs.open_run("vq")
    x, _ = opened.data.images("test")
    rate = -opened.model.code_prior.log_prob(opened.model.indices(x)).mean()
    assert f"test {rate:.2f}" in printed[-1]
    assert torch.load("vq/prior.pt", weights_only=True)["weights"] == runs.digest(load_run("vq", with_prior=False))


def test_a_run_with_a_prior_is_drawn_and_measured(home: Path, capsys: pytest.CaptureFixture) -> None:
    call("generate", "run=vq", "num=9")
    assert capsys.readouterr().out == "vq/generated/samples_num-9.png\n"  # and no caveat
    call("evaluate", "run=vq", "num_images=50", "sizes.drawn=20")
    record = json.loads((home / "vq" / "evaluation.json").read_text())
    metrics = record["metrics"]
    assert {"sample_distance", "code_nats", "code_bound", "train_perplexity", "test_codes_used"} <= metrics.keys()
    assert 1 <= metrics["test_perplexity"] <= 8
    assert 1 / 8 <= metrics["train_codes_used"] <= 1
    assert not any("cannot draw samples" in caveat for caveat in record["caveats"])
    assert "-log p(k) of the codes k of test images" in capsys.readouterr().out


def test_an_export_takes_the_prior_along(home: Path) -> None:
    call("export", "run=vq")
    loaded, model = load_run("vq/export"), load_run("vq")
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded.code_prior.log_prob(loaded.indices(x)), model.code_prior.log_prob(model.indices(x)))
    assert "`model.sample(16).mean` makes new images" in (home / "vq" / "export" / "README.md").read_text()
    (home / "vq" / "prior.pt").unlink()
    call("export", "run=vq")
    assert load_run("vq/export").code_prior is None


@pytest.mark.usefixtures("home")
def test_finite_scalars_get_a_prior(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(NotImplementedError, match=r"python train_prior.py run=logs/RUN trains one"):
        call("generate", "run=fsq")
    call("train_prior", "run=fsq", *SMALL)
    call("generate", "run=fsq", "num=4")
    printed = capsys.readouterr().out
    assert "7 x 7 codes out of 1,000" in printed
    assert printed.endswith("fsq/generated/samples_num-4.png\n")


@pytest.mark.usefixtures("home")
def test_a_prior_of_other_weights_is_refused_until_it_is_trained_again() -> None:
    state = torch.load("vq/weights.pt", weights_only=True)
    state["codebook"][0, 0] += 1
    torch.save(state, "vq/weights.pt")
    sentence = "vq/prior.pt was fitted to the codes of other weights than those of vq: python train_prior.py run=vq "
    assert refused(load_run, "vq").startswith(sentence)
    call("train_prior", "run=vq", *SMALL)
    assert load_run("vq").code_prior is not None


@pytest.mark.usefixtures("home")
def test_a_prior_that_is_too_large_to_load_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST_PRIOR", 10**6 + 5000)
    sentence = "a prior with channels=8, kernel_size=3 and num_blocks=1 for 8 codes has 5,824 bytes, and at most"
    assert refused(call, "train_prior", "run=vq", *SMALL).startswith(sentence)


def change(name: str, value: Any) -> Callable[[dict], Any]:
    return lambda content: {**content, name: value}


SIZES = {"channels": 8, "kernel_size": 3, "num_blocks": 1}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda _: [1], "is not a prior that train_prior.py has written"),
        (change("more", 1), "is not a prior that train_prior.py has written"),
        (change("sizes", {**SIZES, "channels": {"_target_": "os.system"}}), "is not a prior that train_prior.py"),
        (change("sizes", {**SIZES, "_target_": 1}), "is not a prior that train_prior.py has written"),
        (change("state", {"a": 1}), "is not a prior that train_prior.py has written"),
        (change("sizes", {**SIZES, "channels": 9}), r"does not fit its own sizes \(blocks.0.masked.bias \(16,\) for"),
        (change("sizes", {**SIZES, "kernel_size": 4}), "kernel_size=4: an odd number is needed"),
        (change("sizes", {**SIZES, "channels": 10**9}), "cannot build vaelab.networks.PixelCNN: .*memory"),
        (lambda content: {**content, "state": {name: w * torch.nan for name, w in content["state"].items()}}, "finite"),
    ],
)
def test_a_damaged_prior_is_refused(damage: Callable, sentence: str) -> None:
    torch.save(damage(torch.load("vq/prior.pt", weights_only=True)), "vq/prior.pt")
    with pytest.raises(ValueError, match=sentence):
        load_run("vq")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["run=vae"], "run=vae: only a VQ-VAE needs a prior over its codes, and this is a VAE"),
        (["run=null"], "run=None: the folder of a finished run is needed, such as run=logs/RUN"),
        (["run=vq", "epochs=0"], "epochs=0: a whole number, at least 1, is needed"),
        (["run=vq", "lr=0"], "lr=0: a number above zero is needed"),
        (["run=vq", "channels=0"], "channels=0: a whole number, at least 1, is needed"),
        (["run=vq", "seed=-1"], "seed=-1: a whole number, at least 0, is needed"),
    ],
)
def test_settings_that_are_refused(home: Path, settings: list[str], sentence: str) -> None:
    before = (home / "vq" / "prior.pt").read_bytes()
    assert refused(call, "train_prior", *settings) == sentence
    assert (home / "vq" / "prior.pt").read_bytes() == before
