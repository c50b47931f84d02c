"""A run writes its metrics, config and record, and the folder of an older version opens."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import metrics
from omegaconf import OmegaConf

from vaelab import runs
from vaelab.errors import UserError
from vaelab.runs.config import RENAMED

TERMS = ("loss", "elbo", "rate", "distortion")


def test_metrics_name_protocol_units_and_metrics(finished: Path) -> None:
    content = metrics(finished)
    assert content["protocol"]["dataset"] == "MNIST"
    assert content["protocol"]["images"] == {"train": 500, "val": 100, "test": 200}
    assert content["epochs"] == 4
    assert content["steps"] == 20
    for split in ("train", "val", "test"):
        means = content[split]
        assert set(TERMS) <= set(means)
        assert means["elbo"] == pytest.approx(-means["rate"] - means["distortion"])
        assert means["loss"] == pytest.approx(-means["elbo"])


def test_config_and_record_tell_what_was_run(finished: Path) -> None:
    cfg = runs.saved_config(finished)
    assert cfg.data.used == "MNIST"
    assert cfg.model.image_shape == [1, 28, 28]
    assert "${" not in (finished / "config.yaml").read_text()
    (start,) = json.loads((finished / "run.json").read_text())["starts"]
    assert {"torch", "lightning", "hydra-core"} <= set(start["versions"])
    assert set(start) >= {"command", "overrides", "git", "time", "python"}


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """The folder of a run of version 0.1, with the older names of classes, keys and folders."""
    folder = shutil.copytree(finished, tmp_path / "old")
    (folder / "pictures").rename(folder / "figures")
    config = OmegaConf.load(folder / "config.yaml")
    del config["module"]
    config.trainer["_target_"] = "vaelab.training.FastTrainer"
    config.callbacks.pictures["_target_"] = "vaelab.training.Figures"
    OmegaConf.save(config, folder / "config.yaml")
    evaluation = {"figures": {"elbo": -100.0}, "standard_errors": {}, "protocol": {"num_samples": 5}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_a_run_of_version_0_1_opens_and_is_not_resumed(old: Path) -> None:
    x = torch.zeros(1, 1, 28, 28)
    assert torch.equal(runs.load_run(old).encode(x), runs.open_run(str(old)).model.encode(x))
    assert runs.read_json(old / "evaluation.json")["metrics"] == {"elbo": -100.0}
    assert runs.read_pictures(old, "samples") == (old / "figures" / "samples.png").read_bytes()
    assert runs.read_pictures(old, "nothing") is None
    with pytest.raises(UserError, match=r"from vaelab 0\.1"):
        runs.saved_config(old)


@pytest.mark.parametrize(
    ("part", "new"),
    [("posterior", "vaelab.posteriors.FlowPosterior"), ("posterior", "vaelab.posteriors.Hyperspherical"),
     ("prior", "vaelab.priors.FlowPrior")],
)  # fmt: skip
def test_parts_by_their_old_names(old: Path, part: str, new: str) -> None:
    (name,) = (name for name, renamed in RENAMED.items() if renamed == new)
    config = OmegaConf.load(old / "config.yaml")
    config.model[part]["_target_"] = name
    OmegaConf.save(config, old / "config.yaml")
    assert runs.read_config(old).model[part]["_target_"] == new
    module, _, cls = new.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), cls), type)


def test_runs_with_the_same_data_share_them(finished: Path, tmp_path: Path) -> None:
    """data.seed affects only training, so runs with different seeds share their data."""
    first = runs.open_run(str(finished))
    other = shutil.copytree(finished, tmp_path / "other")
    config = OmegaConf.load(other / "config.yaml")
    config.data.seed = 5
    OmegaConf.save(config, other / "config.yaml")
    assert runs.open_run(str(other), like=first).data is first.data
    config.data.binarization = "threshold"
    OmegaConf.save(config, other / "config.yaml")
    assert runs.open_run(str(other), like=first).data is not first.data


def test_a_folder_is_held_by_one_process_and_never_written_over(tmp_path: Path, finished: Path) -> None:
    script = "import sys, pathlib; from vaelab.runs import held\n"
    script += "with held(pathlib.Path(sys.argv[1]), new=False): pass"

    def elsewhere(folder: Path) -> str:
        return subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True).stderr

    with runs.held(tmp_path, new=True):
        assert "is in use: another process trains this run" in elsewhere(tmp_path)
    assert not elsewhere(tmp_path)
    assert not list(tmp_path.iterdir())  # nothing was written
    with pytest.raises(UserError, match="has a run already: resume="), runs.held(finished, new=True):
        pass
    with runs.held(finished, new=False):
        pass
