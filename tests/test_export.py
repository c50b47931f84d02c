"""An export: the same model in other formats, and a card that says what the run's files say."""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, compose_config
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors import safe_open
from torch import nn

from export import export
from train import train
from vaelab import cli, load_run
from vaelab import export as exports
from vaelab.export import files
from vaelab.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vaelab.models import VAE, VQVAE, LadderVAE
from vaelab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian, FlowPosterior
from vaelab.priors import StandardNormal

SHAPE = (1, 6, 5)
SMALL = ("model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=3")


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(compose_config(data_root, *SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2"), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., tuple[Any, str]]:
    """python export.py with arguments: the exit code or sentence, and all that was printed."""

    def call(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
        GlobalHydra.instance().clear()
        code = None
        try:
            cli.main(export, ROOT / "configs", "export")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out + err

    return call


def build(**parts: Any) -> VAE:
    """A small VAE whose weights are large enough to tell one code from another."""
    chosen = {
        "encoder": partial(MLPEncoder, hidden=[7], norm="batch"),
        "posterior": DiagonalGaussian,
        "prior": StandardNormal,
        "decoder": partial(MLPDecoder, hidden=[7]),
        "likelihood": Bernoulli(),
    }
    return VAE(3, SHAPE, **chosen | parts).eval()


def onnx(graph: exports.Graph, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(graph.content)
    names = [given.name for given in session.get_inputs()]
    assert names == graph.inputs
    assert [result.name for result in session.get_outputs()] == graph.outputs
    return [
        torch.from_numpy(array) for array in session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
    ]


# The whole ------------------------------------------------------------------------------------------------------------


def test_export(run: Path, command: Callable, data_root: Path) -> None:
    """Twice, the second time with an evaluation: weights bit for bit, graphs near, no trace of this machine."""
    evaluation = {"protocol": {"num_samples": 17}, "metrics": {"log_likelihood": -3.25}, "standard_errors": {}}
    for again in (False, True):
        if again:
            (run / "evaluation.json").write_text(json.dumps(evaluation))
            (run / "export" / "notes.txt").write_text("mine")
        code, printed = command(f"run={run}")
        assert code is None, printed
        assert len(printed.splitlines()) == 10, printed
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
    assert f"| elbo | {metrics['test']['elbo']:.5g} |" in card
    assert "MNIST, 500 training and 200 test images, binarization static(0); nats per image" in card
    assert "num_samples 17" in card
    assert "| log_likelihood | -3.25 |" in card
    assert "| encoder | MLPEncoder(hidden=[8], activation=relu, gated=False, norm=none) |" in card
    assert all(f"]({name})" in card for name in files.PICTURES)
    assert (folder / "samples.png").read_bytes() == (run / "pictures" / "samples.png").read_bytes()


# ONNX -----------------------------------------------------------------------------------------------------------------


def vq() -> nn.Module:
    parts = {"encoder": partial(ConvEncoder, channels=[4], hidden=[]), "decoder": partial(ConvDecoder, channels=[4])}
    return VQVAE(2, 5, SHAPE, likelihood=Gaussian(), **parts).eval()


def ladder() -> nn.Module:
    encoder, decoder = partial(MLPEncoder, hidden=[6]), partial(MLPDecoder, hidden=[6])
    return LadderVAE([2, 3], SHAPE, encoder, encoder, StandardNormal, decoder, Bernoulli()).eval()


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (partial(build, num_classes=4, likelihood=ContinuousBernoulli()), ["code", "std"]),
        (vq, ["code"]),
        (ladder, ["code", "std"]),
    ],
    ids=["conditional", "vq", "ladder"],
)
def test_graphs_agree_with_torch(make: Callable[[], Any], outputs: list[str]) -> None:
    """At a batch size that was neither traced nor compared before."""
    torch.distributions.Distribution.set_default_validate_args(False)
    model = make()
    graphs = exports.graphs(model)
    x, y = torch.rand(13, *SHAPE), (torch.arange(13) % 4,) * bool(model.num_classes)
    assert graphs["encoder.onnx"].inputs == ["image", "label"][: 1 + len(y)]
    assert graphs["encoder.onnx"].outputs == outputs
    code, *std = onnx(graphs["encoder.onnx"], x, *y)
    torch.testing.assert_close(code, model.encode(x, *y), rtol=0, atol=1e-5)
    if std:
        torch.testing.assert_close(std[0], model.infer(x, *y).stddev, rtol=0, atol=1e-5)
    (image,) = onnx(graphs["decoder.onnx"], code, *y)
    torch.testing.assert_close(image, model.decode(code, *y).mean, rtol=0, atol=1e-4)
    assert all(0 <= graph.difference < 1e-4 for graph in graphs.values())


def test_a_posterior_without_a_mean_has_no_encoder() -> None:
    torch.distributions.Distribution.set_default_validate_args(False)
    model = build(posterior=partial(FlowPosterior, num_transforms=1, hidden=[4]))
    graphs = exports.graphs(model)
    assert list(graphs) == ["decoder.onnx"]
    card = exports.card(Path("nowhere"), config_of(), model, graphs)
    assert f"There is no encoder: {exports.NO_MEAN}." in card
    assert "encoder.onnx" not in card


def test_graphs_that_differ_are_refused(run: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaelab.export.onnx.TOLERANCE", -1.0)
    code, _ = command(f"run={run}")
    assert re.fullmatch(r"error: as ONNX the encoder differs from torch by \S+, so nothing was written", code)
    assert not (run / "export").exists()


def test_what_onnx_cannot_express_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, *sizes: int) -> None:
            super().__init__()
            self.wrapped = DiagonalGaussian(*sizes)

        def forward(self, h: torch.Tensor) -> Any:
            return self.wrapped(torch.linalg.eigvals(h.unsqueeze(-1) * h.unsqueeze(-2)).real)

    with pytest.raises(ValueError, match=r"\AONNX cannot express the encoder, so nothing was written: [^\n]+\Z"):
        exports.graphs(build(posterior=Odd))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run={run}", "output={run}"], "run holds something else than an export: output=FOLDER chooses another place"),
        (["run=nowhere"], "nowhere is no run: no such folder"),
        ([], "run=None: the folder of a finished run is needed, such as run=logs/RUN"),
        (["run=[a,b]"], "run=['a', 'b']: the folder of a finished run is needed"),
        (["run={run}", "output={run}/train.log"], "train.log cannot be read or written: File exists"),
    ],
)
def test_refusals(run: Path, command: Callable, arguments: list[str], sentence: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(exports, "graphs", lambda _: GRAPHS)
    before = {path.name for path in run.iterdir()}
    code, _ = command(*(argument.format(run=run) for argument in arguments))
    assert sentence in code
    assert "\n" not in code
    assert {path.name for path in run.iterdir()} == before


def test_missing_packages_are_named_first(run: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnxs" in name else find(name))
    code, _ = command(f"run={run}")
    assert code == "error: an export needs onnxscript, not installed here: pip install -e '.[export]'"
    assert not (run / "export").exists()


def test_a_full_disk_leaves_nothing_that_loads(run: Path, command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "graphs", lambda _: GRAPHS)
    assert command(f"run={run}")[0] is None
    assert load_run(run / "export").latent_dim == 3
    write = files.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == "README.md":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    assert "export/README.md cannot be read or written: No space left on device" in command(f"run={run}")[0]
    with pytest.raises(ValueError, match="export is no run: it has no config"):
        load_run(run / "export")


# The card -------------------------------------------------------------------------------------------------------------

GRAPHS = {"decoder.onnx": exports.Graph(b"graph", ["code"], ["image"], 2e-7)}


def config_of(*overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose_config(Path("data"), *overrides), resolve=True)
    return config


@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        ([], "one seeded draw", "grey levels is no density"),
        (["data.binarization=none"], "grey levels is no density", "one seeded draw"),
        (["experiment=autoencoder"], "Nothing fits the codes of an autoencoder to the prior", "one seeded draw"),
        (["experiment=wae_mmd"], "likelihood | Gaussian(scale=", "Nothing fits the codes"),
        (["data=mnist_5k"], "no published figure compares", "Nothing fits"),
        (
            ["experiment=joint_vae"],
            "blocks=[DiagonalGaussian(), Categorical(num_categories=10, ",
            "published figure",
        ),
        (["model.num_classes=10"], "model.sample(16, y).mean` makes new ones. Labels y (B,)", "published figure"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_card_says_what_holds(overrides: list[str], present: str, absent: str) -> None:
    from hydra.utils import instantiate

    config = config_of(*overrides)
    model = instantiate(config["model"], _convert_="all")
    card = exports.card(Path("nowhere"), config, model, GRAPHS)
    assert present in card
    assert absent not in card
    assert "None were recorded." in card
    assert "| `decoder.onnx` | code | image | 2.0e-07 |" in card


def test_the_card_of_a_vq_vae_promises_no_samples() -> None:
    card = exports.card(Path("nowhere"), config_of("experiment=vq_vae"), vq(), GRAPHS)
    assert "model.sample" not in card
    assert "so that there is nothing to sample from" in card


def test_the_command_on_the_card_is_of_any_machine(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["starts"][0]["overrides"] = [
        "data.root=/home/me",
        "experiment=vae_iwae_protocol",
        "hydra.run.dir=/home/me/x",
        "seed=3",
    ]
    (run / "run.json").write_text(json.dumps(record))
    card = exports.card(run, config_of(), build(), GRAPHS)
    assert "`python train.py experiment=vae_iwae_protocol seed=3`" in card
    assert "/home/me" not in card


def test_a_damaged_record_is_named(run: Path) -> None:
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is no JSON: "):
        exports.card(run, config_of(), build(), GRAPHS)
