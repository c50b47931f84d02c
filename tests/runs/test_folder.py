"""A run writes its metrics, config and record, and the folder of an older version opens."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, metrics, refused
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
    evaluation = {
        "figures": {"elbo": -100.0},
        "standard_errors": {},
        "protocol": {"num_samples": 5, "test_images": 200},
    }
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
        return subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=300
        ).stderr

    with runs.held(tmp_path, new=True):
        assert "is in use: another process trains this run" in elsewhere(tmp_path)
    assert not elsewhere(tmp_path)
    assert not list(tmp_path.iterdir())  # nothing was written
    with pytest.raises(UserError, match="has a run already: resume="), runs.held(finished, new=True):
        pass
    with runs.held(finished, new=False):
        pass


NO_JSON = {
    "empty": b"",
    "half": b"{",
    "bytes": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "nan": b'{"test": NaN}',
    "infinity": b'{"test": -Infinity}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", ["metrics.json", "evaluation.json", "run.json"])
@pytest.mark.parametrize("content", NO_JSON)
def test_a_file_that_is_not_json_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(NO_JSON[content])
    sentence = refused(runs.read_json, tmp_path / name)
    assert re.search(f"{tmp_path}/{name} (is not JSON: |cannot be read: it is not a text in UTF-8)", sentence)


@pytest.mark.parametrize("name", ["metrics.json", "evaluation.json", "run.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{}", '{"protocol": null, "starts": 3}'])
def test_json_that_no_run_writes_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    sentence = refused(runs.read_json, tmp_path / name)
    assert f"{tmp_path}/{name} is not what a run writes, see its " in sentence


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("metrics.json", "test.elbo", "-100"),
        ("metrics.json", "test.elbo", None),
        ("metrics.json", "test.elbo", True),
        ("metrics.json", "test.elbo", 10**400),
        ("metrics.json", "test.elbo", 1e200),
        ("metrics.json", "test.more", [1.0]),
        ("metrics.json", "epochs", 2.5),
        ("metrics.json", "steps", "many"),
        ("metrics.json", "unit", None),
        ("metrics.json", "protocol.images", 3),
        ("metrics.json", "protocol.images.train", "x"),
        ("metrics.json", "protocol.dataset", ["MNIST"]),
        ("metrics.json", "protocol.binarization.test", {}),
        ("run.json", "starts", {"overrides": []}),
        ("run.json", "starts", [None]),
        ("run.json", "starts", [{}]),
        ("run.json", "starts", [{"overrides": [3]}]),
        ("evaluation.json", "standard_errors.elbo", "x"),
        ("evaluation.json", "protocol.num_samples", "x"),
        ("evaluation.json", "caveats", "none"),
        ("evaluation.json", "predictive", {"ink": {"distance": 0.1, "p_value": 0.5, "floor": "x"}}),
    ],
)
def test_a_value_of_another_type_is_named(finished: Path, tmp_path: Path, name: str, key: str, value: Any) -> None:
    content = EVALUATION if name == "evaluation.json" else json.loads((finished / name).read_text())
    (tmp_path / name).write_text(json.dumps(content))
    assert runs.read_json(tmp_path / name)
    content = json.loads((tmp_path / name).read_text())
    *parents, last = key.split(".")
    node = content
    for parent in parents:
        node = node[parent]
    node[last] = value
    (tmp_path / name).write_text(json.dumps(content))
    assert "is not what a run writes, see its " in refused(runs.read_json, tmp_path / name)


EVALUATION: dict = {
    "protocol": {"num_samples": 5, "test_images": 200},
    "metrics": {"elbo": -100.0},
    "standard_errors": {"elbo": 1.0},
}


def test_an_infinite_number_and_hidden_characters_are_refused(finished: Path, tmp_path: Path) -> None:
    text = (finished / "metrics.json").read_text()
    path = tmp_path / "metrics.json"
    path.write_text(text.replace('"epochs": 4', '"epochs": 4, "more": {"a\\u001b]0;title": 1}'))
    assert "has hidden characters in a text" in refused(runs.read_json, path)
    path.write_text(re.sub(r'"elbo": [-\d.]+', '"elbo": 1e999', text))
    assert "see its elbo" in refused(runs.read_json, path)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    os.truncate(tmp_path / "run.json", 10**10)  # on the disk, it takes no place
    assert "run.json has 10,000,000,000 bytes" in refused(runs.read_json, tmp_path / "run.json")


def test_a_picture_is_a_png_of_usual_size(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "pictures" / "samples.png"
    content = path.read_bytes()
    assert runs.read_pictures(run, "samples") == content
    path.write_bytes(content[:16] + b"\0\1\0\0\0\1\0\0" + content[24:])
    assert "samples.png has 65,536 x 65,536 pixels" in refused(runs.read_pictures, run, "samples")
    path.write_text("<script>")
    assert "samples.png is not a PNG picture" in refused(runs.read_pictures, run, "samples")
    os.truncate(path, 10**10)
    assert "samples.png has 10,000,000,000 bytes" in refused(runs.read_pictures, run, "samples")


@pytest.mark.parametrize(("key", "value"), [("name", "a\tb"), ("data.root", "a\x1b[31m"), ("more", ["x" * 50_000])])
def test_a_config_that_could_not_be_read_again_is_not_written(
    config: Compose, tmp_path: Path, key: str, value: Any
) -> None:
    cfg = config()
    OmegaConf.update(cfg, key, value, force_add=True)
    assert f"{tmp_path}/config.yaml has " in refused(runs.record_start, tmp_path, cfg)
    assert not list(tmp_path.iterdir())


def test_the_record_of_a_start_has_no_hidden_characters(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the run could not be read again."""
    monkeypatch.setattr(sys, "argv", ["train.py", "name=a\nb", "trainer=[\n]"])
    runs.record_start(tmp_path, config())
    (start,) = runs.read_json(tmp_path / "run.json")["starts"]
    assert start["overrides"] == [r"name=a\nb", r"trainer=[\n]"]
    assert start["command"] == r"python train.py name=a\nb trainer=[\n]"


def test_the_starts_of_a_run_before_processors_were_recorded_are_read(tmp_path: Path) -> None:
    start = {"overrides": ["seed=0"], "machine": {"system": "Linux", "cpus": 2}}
    runs.write_json(tmp_path / "run.json", {"starts": [start]})
    assert runs.read_json(tmp_path / "run.json") == {"starts": [start]}
    runs.write_json(tmp_path / "run.json", {"starts": [{**start, "machine": {"processor": 3}}]})
    with pytest.raises(UserError, match="is not what a run writes, see its processor"):
        runs.read_json(tmp_path / "run.json")
