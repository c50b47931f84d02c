"""A stranger's run: what it holds is read and never run, and whatever is wrong with it is one sentence."""

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

from train import train
from vaelab import load_run, runs

SMALL = ("model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "model.latent_dim=3", "callbacks.pictures=null")
MARKER = "payload_ran"


class Payload:
    """Whoever unpickles it leaves a file in the working directory."""

    def __reduce__(self) -> tuple:
        return open, (MARKER, "w")


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test ends without the file that a payload would have left."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARKER).exists()


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(compose_config(data_root, *SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2"), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    """The files of an export that make it a model."""
    folder = tmp_path / "export"
    folder.mkdir()
    save_file(torch.load(run / "weights.pt"), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_of(run)))
    return folder


def config_of(folder: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))


def refused(action: Callable[..., Any], *arguments: Any) -> str:
    """The one sentence that an action ends with."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        action(*arguments)
    return str(error.value)


def resume(folder: Path, *overrides: str) -> None:
    cfg = runs.saved_config(folder, ["trainer.max_epochs=2", *overrides])
    cfg.resume = str(folder)
    train(cfg, folder)


def test_a_run_and_its_export_are_the_same_model(run: Path, exported: Path) -> None:
    model = instantiate(OmegaConf.load(run / "config.yaml").model, _convert_="all")
    model.load_state_dict(torch.load(run / "weights.pt"))
    x = torch.rand(3, 1, 28, 28)
    for folder in (run, str(run), exported):
        loaded = load_run(folder)
        assert not loaded.training
        assert torch.equal(loaded.encode(x), model.eval().encode(x))


# Pickles --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that leaves the file when it is imported."""
    Path("planted.py").write_text(f"class Thing:\n    open({MARKER!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "planted", raising=False)


@pytest.mark.usefixtures("planted")
def test_the_payloads_of_these_tests_run_where_they_may(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload())).close()
    (tmp_path / MARKER).unlink()
    instantiate({"_target_": "planted.Thing"})
    (tmp_path / MARKER).unlink()


@pytest.mark.parametrize("plant", [lambda _: Payload(), lambda state: {**state, "decoder.layers.0.bias": Payload()}])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_payload_in_the_weights(run: Path, plant: Callable, save: Callable) -> None:
    save(plant(torch.load(run / "weights.pt")), run / "weights.pt")
    assert refused(load_run, run) == f"{run}/weights.pt holds more than plain data, or is damaged: none of it was run"


def test_a_payload_in_the_checkpoint_that_resuming_starts_from(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "more": Payload()}, path)
    assert "last.ckpt holds more than plain data, or is damaged: none of it was run" in refused(resume, run)
    torch.save({"state_dict": {}}, path)
    assert "last.ckpt is no checkpoint of this program: 'loops'" in refused(resume, run)


def test_a_payload_in_the_best_checkpoint(run: Path) -> None:
    """It is read after training, where no epoch was better than a figure that no epoch can reach."""
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["BestCheckpoint"]["score"] = -1e9
    torch.save(checkpoint, last)
    torch.save({**torch.load(best, weights_only=True), "more": Payload()}, best)
    assert "best.ckpt holds more than plain data" in refused(resume, run)


@pytest.mark.parametrize("place", ["https://127.0.0.1:9/best.ckpt", "{folder}/checkpoints/../../victim"])
@pytest.mark.parametrize("score", [-1e9, 1e9])
def test_a_checkpoint_that_names_files_elsewhere(
    run: Path, tmp_path: Path, place: str, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would load, as a pickle, what an address gives it, and delete the file that an epoch outdid."""
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a stranger's address"))
    (tmp_path / "victim").write_text("precious")
    last, elsewhere = run / "checkpoints" / "last.ckpt", place.format(folder=run)
    checkpoint = torch.load(last, weights_only=True)
    places = dict.fromkeys(("path", "_file", "best_model_path", "kth_best_model_path", "last_model_path"), elsewhere)
    for name in ("BestCheckpoint", "LastCheckpoint"):
        checkpoint["callbacks"][name] = {
            **places,
            "dirpath": str(run / "checkpoints"),
            "score": score,
            "saved": True,
            "step": 2,
        }
    torch.save(checkpoint, last)
    resume(run)
    assert json.loads((run / "metrics.json").read_text())["best_checkpoint"] == "checkpoints/best.ckpt"
    assert (tmp_path / "victim").read_text() == "precious"


# Configs --------------------------------------------------------------------------------------------------------------

TOUCH = {"command": f"touch {MARKER}"}


def put(key: str, value: Any) -> Callable[[dict], None]:
    """A change of a config: set one dotted key."""

    def change(config: dict) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("model", {"_target_": "os.system", **TOUCH}, "os.system"),
        ("model", {"_target_": "planted.Thing"}, "planted.Thing"),
        ("model", {"_target_": "vaelab.runs.os.system", **TOUCH}, "vaelab.runs.os.system"),
        ("model", {"_target_": "vaelab.runs.subprocess.run", "args": ["touch", MARKER]}, "vaelab.runs.subprocess.run"),
        ("model", {"_target_": "vaelab.runs.subprocess.Popen", "args": ["touch", MARKER]}, "subprocess.Popen"),
        ("model.encoder", {"_target_": "builtins.open", "_partial_": True, "mode": "w"}, "builtins.open"),
        ("model.extra", [[{"_target_": "os.system", **TOUCH}]], "os.system"),
        ("model.prior.scale", {"deep": [{"er": {"_target_": "os.system", **TOUCH}}]}, "os.system"),
        ("model.likelihood._target_", ["os.system"], "os.system"),
        ("model.likelihood._target_", None, "None"),
        ("model.likelihood", {"_target_": "torch.load", "f": "weights.pt", "weights_only": False}, "torch.load"),
        ("model.likelihood", {"_target_": "torch.optim.Adam", "params": []}, "torch.optim.Adam"),
        (
            "model.extra",
            {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "."},
            "TensorBoardLogger",
        ),
        ("model.extra", {"_target_": "vaelab.data.module.L.pytorch.loggers.CSVLogger", "save_dir": "."}, "CSVLogger"),
        ("model.extra", {"_target_": "vaelab.training.callbacks.ModelCheckpoint"}, "ModelCheckpoint"),
        ("model.extra", {"_target_": "planted.Thing"}, "planted.Thing"),
        ("model._target_", "vaelab.data.MNISTDataModule", "vaelab.data.MNISTDataModule"),
        ("data._target_", "vaelab.models.VAE", "vaelab.models.VAE"),
        ("data", {"_target_": "os.system", **TOUCH}, "os.system"),
        ("data.extra", {"_target_": "vaelab.runs.os.system", **TOUCH}, "vaelab.runs.os.system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("planted")
def test_a_hostile_target(run: Path, exported: Path, key: str, value: Any, name: str) -> None:
    """In a run and in an export; not even the module of a name that is not allowed is imported."""
    config = config_of(run)
    put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (exported / "config.json").write_text(json.dumps(config))
    for folder in (run, exported):
        sentence = refused(load_run, folder)
        assert name in sentence
        assert "it is not run" in sentence
    assert "it is not run" in refused(resume, run)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("trainer.plugins", [{"_target_": "os.system", **TOUCH}], "os.system"),
        ("callbacks.mine", {"_target_": "planted.Thing"}, "planted.Thing"),
        ("logger._target_", "lightning.pytorch.cli.LightningCLI", "lightning.pytorch.cli.LightningCLI"),
        ("module._target_", "vaelab.models.VAE", "vaelab.models.VAE"),
        ("trainer._target_", "vaelab.training.FastTrainer", "vaelab 0.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("planted")
def test_what_trains_is_built_by_resuming_alone(run: Path, key: str, value: Any, name: str) -> None:
    """A callback, Trainer or logger of a stranger's stops nobody from looking at the model, and is not run."""
    config = config_of(run)
    put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert load_run(run).latent_dim
    assert name in refused(resume, run)


@pytest.mark.usefixtures("planted")
def test_a_target_behind_another_key_of_the_same_name(run: Path) -> None:
    """A key with dots in it cannot stand in for the nested one."""
    config = config_of(run)
    config["model"] |= {"encoder": {"_target_": "planted.Thing"}, "encoder._target_": "vaelab.models.VAE"}
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert "names planted.Thing" in refused(load_run, run)


DECODED = "${oc.decode:'{_target_: planted.Thing}'}"


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("key", ["model", "model.encoder", "model.likelihood._target_", "callbacks.more", "extra"])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"a": {"b": value}}])
def test_a_target_that_an_interpolation_would_build(run: Path, key: str, wrap: Callable) -> None:
    config = config_of(run)
    put(key, wrap(DECODED))(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    for action in (load_run, resume):
        assert re.search("is not the config of a run|it is not run", refused(action, run))


@pytest.mark.parametrize(
    "lines",
    [
        "defaults: [_self_, evil]",
        "hydra: {searchpath: ['file://evil']}",
        "hydra: {searchpath: ['pkg://planted']}",
    ],
)
@pytest.mark.usefixtures("planted")
def test_a_config_that_would_bring_in_others(run: Path, lines: str) -> None:
    """Resuming composes config.yaml, so that a list of defaults could add what was never looked at."""
    (run / "evil.yaml").write_text(f'callbacks: {{more: "{DECODED}"}}')
    path = run / "config.yaml"
    path.write_text(f"{lines}\n{path.read_text()}")
    key = lines.split(":")[0]
    assert f"is not the config of a run: its {key} is" in refused(resume, run)
    assert f"is not the config of a run: its {key} is" in refused(load_run, run)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (f"model: !!python/object/apply:os.system ['touch {MARKER}']", "could not determine a constructor"),
        (f"? !!python/object/apply:os.system ['touch {MARKER}']\n: 1", "could not determine a constructor"),
        ("[1, 2]", "it has no model and data"),
        ("", "it has no model and data"),
        ("model", "it has no model and data"),
        ("3", "cannot be read"),
        ("model: {a: [", "cannot be read"),
        ("model: {_target_: vaelab.models.VAE}", "it has no model and data"),
        ("model: \ndata: ", "it has no model and data"),
        ("model: [{_target_: vaelab.models.VAE}]\ndata: {_target_: vaelab.data.MNISTDataModule}", "no model and data"),
        ("model: ???\ndata: {_target_: vaelab.data.MNISTDataModule}", "no model and data"),
        ("model: ${data}\ndata: {_target_: vaelab.data.MNISTDataModule}", "no model and data"),
        ("model: {latent_dim: 3}\ndata: {_target_: vaelab.data.MNISTDataModule}", "no model and data"),
        ("[" * 5000, "cannot be read"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "bytes",
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_what_is_no_config(run: Path, name: str, content: str | bytes, sentence: str) -> None:
    (run / "config.yaml").unlink()
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence in refused(load_run, run)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            put("model.depth", 3),
            "builds no vaelab.models.VAE: VAE.__init__() got an unexpected keyword argument 'depth'",
        ),
        (put("model.latent_dim", 0), "builds no vaelab.models.VAE: latent_dim=0: a whole number"),
        (put("model._args_", [1]), "builds no vaelab.models.VAE: "),
        (put("model._partial_", True), None),
        (put("model.decoder._partial_", False), "builds no vaelab.models.VAE"),
        (put("model.latent_dim", 5), "decoder.layers.0.weight (8, 3) for (8, 5)"),
    ],
)
def test_a_config_that_does_not_fit(run: Path, change: Callable, sentence: str | None) -> None:
    config = config_of(run)
    change(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    if sentence is None:
        assert load_run(run).latent_dim == 3
    else:
        assert sentence in refused(load_run, run)


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights_of_another_version(run: Path, exported: Path) -> None:
    state = torch.load(run / "weights.pt")
    name = "decoder.layers.0.bias"
    others = {
        f"{name} (7,) for (8,)": {**state, name: torch.zeros(7)},
        f"{name} missing for (8,)": {key: weight for key, weight in state.items() if key != name},
        "prior.more (2,) for none": {**state, "prior.more": torch.zeros(2)},
    }
    for differing, weights in others.items():
        torch.save(weights, run / "weights.pt")
        save_file(weights, exported / "model.safetensors")
        for folder in (run, exported):
            sentence = refused(load_run, folder)
            assert f"({differing}): the config was changed, or another version wrote it" in sentence


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"a": 3}, {3: torch.zeros(3)}, 3])
def test_what_are_no_weights(run: Path, content: Any) -> None:
    torch.save(content, run / "weights.pt")
    assert "weights.pt holds no weights by name" in refused(load_run, run)


@pytest.mark.parametrize("size", [0, 7, 100, 1000, -1])
def test_damaged_weights(run: Path, exported: Path, size: int) -> None:
    for path in (run / "weights.pt", exported / "model.safetensors"):
        path.write_bytes(path.read_bytes()[:size])
        assert "damaged" in refused(load_run, path.parent)


def test_what_is_no_run_or_not_finished(run: Path, exported: Path) -> None:
    needed = "the folder of a run is needed, such as logs/RUN"
    assert refused(load_run, "nowhere") == f"nowhere is no run: no such folder; {needed}"
    assert refused(load_run, run / "checkpoints") == f"{run}/checkpoints is no run: it has no config.yaml; {needed}"
    (run / "weights.pt").unlink()
    assert refused(load_run, run) == (
        f"{run} is not finished, it has no weights.pt: python train.py resume={run} goes on"
    )
    assert "exported model, which has no checkpoints to go on from" in refused(runs.saved_config, exported)
