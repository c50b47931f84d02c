"""An export holds the same model in other formats, and a card with the metrics of the run."""

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from safetensors import safe_open

from vaelab import export as exports
from vaelab import load_run
from vaelab.export import files


def test_export(run: Path, command: Callable, data_root: Path) -> None:
    """Two exports of a run, the second after an evaluation, keep the weights bit for bit and hold no local paths."""
    evaluation = {
        "protocol": {"num_samples": 17, "test_images": 9},
        "metrics": {"log_likelihood": -3.25},
        "standard_errors": {},
    }
    for again in (False, True):
        if again:
            (run / "evaluation.json").write_text(json.dumps(evaluation))
            (run / "export" / "notes.txt").write_text("mine")
            (run / "export" / "page.html").write_text("an earlier page")
        code, printed = command(f"run={run}")
        assert code is None, printed
        assert len(printed.splitlines()) == 10 + again, printed
    assert "removed the page.html of an earlier export: page=true writes a new one" in printed
    folder = run / "export"
    ours = {"README.md", "config.json", "model.safetensors", "encoder.onnx", "decoder.onnx", *files.PICTURES}
    assert {path.name for path in folder.iterdir()} == {*ours, "notes.txt"}
    for name in ours:
        content = (folder / name).read_bytes()
        for place in (str(data_root), str(run.parent), str(ROOT), torch.__path__[0], str(Path.home() / "")):
            assert place.encode() not in content, (name, place)

    model, loaded = load_run(run), load_run(folder)
    x = torch.rand(5, 1, 28, 28)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model.infer(x).stddev, loaded.infer(x).stddev)
    assert torch.equal(model.reconstruct(x).mean, loaded.reconstruct(x).mean)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "vaelab": version("vaelab")}
    expected, config = OmegaConf.load(run / "config.yaml"), json.loads((folder / "config.json").read_text())
    expected.data.root = "data"
    assert config == OmegaConf.to_container(expected)

    card = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    scope = {"x": np.asarray(x), "z": np.zeros((2, 3), np.float32)}
    for block in blocks:
        exec(block.replace('"this/folder"', f'r"{folder}"').replace('Session("', f'Session(r"{folder}/'), scope)
    assert torch.equal(scope["model"].encode(x), model.encode(x))
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"| `elbo` | {metrics['test']['elbo']:.5g} |" in card
    assert "`MNIST`, 500 training and 200 test images, binarization `static(0)`; `nats per image" in card
    assert "`num_samples` `17`" in card
    assert "| `log_likelihood`, a lower bound from num_samples samples | -3.25 |" in card
    assert "| `encoder` | `MLPEncoder(hidden=[8], activation=relu, gated=False, norm=none)` |" in card
    assert all(f"]({name})" in card for name in files.PICTURES)
    assert (folder / "samples.png").read_bytes() == (run / "pictures" / "samples.png").read_bytes()


@pytest.mark.parametrize("name", ["pictures/samples.png", "figures/samples.png", "run.json", "export", "weights.pt"])
def test_a_secret_behind_a_link_is_not_exported(run: Path, command: Callable, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("SECRET")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "secret")
    code, _ = command(f"run={run}")
    assert f"{run / name} is a link that leads out of the folder, to {tmp_path}/secret" in code
    assert not (run / "export").is_dir()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["run={run}", "output={other}"],
            "other holds files other than an export: output=FOLDER chooses another folder",
        ),
        (["run={run}", "output={run}"], "run holds files other than an export: output=FOLDER chooses another folder"),
        (["run=nowhere"], "nowhere is not a run: no such folder"),
        ([], "run=None: the folder of a finished run is needed, such as run=logs/RUN"),
        (["run={run}", "data.root=data"], "data.root=data changes nothing without page=true: only the page shows test"),
        (["run=[a,b]"], "run=['a', 'b']: the folder of a finished run is needed"),
        (["run={run}", "output={run}/train.log"], "train.log cannot be read or written: File exists"),
    ],
)
def test_refusals(run: Path, command: Callable, arguments: list[str], sentence: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(exports, "graphs", lambda _: GRAPHS)
    before = {path.name for path in run.iterdir()}
    other = run.parent / "other"  # such as a model of another library
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    code, _ = command(*(argument.format(run=run, other=other) for argument in arguments))
    assert (other / "config.json").read_text() == '{"model_type": "bert"}'
    assert sentence in code
    assert "\n" not in code
    assert {path.name for path in run.iterdir()} == before


GRAPHS = {"decoder.onnx": exports.Graph(b"graph", ["code"], ["image"], 2e-7)}
