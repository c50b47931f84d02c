"""An untrusted config builds only parts of this package, and a file that is not a config is named."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, refused
from omegaconf import OmegaConf

from train import train
from vaelab import load_run, runs
from vaelab.runs.config import LIGHTNING, check_root

MARKER = "payload_ran"


def config_of(folder: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))


def resume(folder: Path, *overrides: str) -> None:
    cfg = runs.saved_config(folder, ["trainer.max_epochs=2", *overrides])
    cfg.resume = str(folder)
    train(cfg, folder)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that creates the marker file when it is imported."""
    Path("planted.py").write_text(f"class Thing:\n    open({MARKER!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "planted", raising=False)


TOUCH = {"command": f"touch {MARKER}"}


def put(key: str, value: Any) -> Callable[[dict], None]:
    """A function that sets one dotted key of a config."""

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
    """A run and an export refuse a forbidden target and do not import its module."""
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
        ("callbacks.mine", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}, "ModelCheckpoint"),
        ("callbacks.mine", {"_target_": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "dirpath": "."}, "On"),
        ("callbacks.mine", {"_target_": "lightning.pytorch.callbacks.SpikeDetection"}, "SpikeDetection"),
        ("callbacks.mine", {"_target_": "vaelab.files.write_atomically", "_partial_": True}, "write_atomically"),
        ("logger.more", {"_target_": "lightning.pytorch.loggers.NeptuneLogger"}, "NeptuneLogger"),
        ("logger.more", {"_target_": "lightning.pytorch.loggers.WandbLogger"}, "WandbLogger"),
        ("logger.more", {"_target_": "lightning.pytorch.loggers.MLFlowLogger"}, "MLFlowLogger"),
        ("trainer.profiler", {"_target_": "lightning.pytorch.profilers.SimpleProfiler"}, "SimpleProfiler"),
        ("optimizer", {"_target_": "torch.load", "f": "weights.pt"}, "torch.load"),
        ("scheduler.scheduler", {"_target_": "os.system", **TOUCH}, "os.system"),
        ("more", {"_target_": "os.system", **TOUCH}, "os.system"),
        ("logger.tensorboard._target_", "lightning.pytorch.cli.LightningCLI", "lightning.pytorch.cli.LightningCLI"),
        ("module._target_", "vaelab.models.VAE", "vaelab.models.VAE"),
        ("trainer._target_", "vaelab.training.FastTrainer", "vaelab.training.FastTrainer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("planted")
def test_only_resuming_builds_callbacks_trainer_and_logger(run: Path, key: str, value: Any, name: str) -> None:
    """A forbidden callback, Trainer or logger is not run: load_run ignores it, and resuming refuses it."""
    config = config_of(run)
    put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert load_run(run).latent_dim
    assert name in refused(resume, run)


@pytest.mark.usefixtures("planted")
def test_a_target_behind_another_key_of_the_same_name(run: Path) -> None:
    """A key that contains dots does not hide the nested key of the same name."""
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
    """Resuming composes config.yaml, so a list of defaults could add files that were not checked."""
    (run / "evil.yaml").write_text(f'callbacks: {{more: "{DECODED}"}}')
    path = run / "config.yaml"
    path.write_text(f"{lines}\n{path.read_text()}")
    key = lines.split(":")[0]
    assert f"is not the config of a run: its {key} is" in refused(resume, run)
    assert f"is not the config of a run: its {key} is" in refused(load_run, run)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


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
        ("{" * 20000, "it has an alias, or more than 64 levels"),
        ("".join(f"{' ' * i}a:\n" for i in range(200)), "it has an alias, or more than 64 levels"),
        ("a: &a [1]\nb: *a", "it has an alias, or more than 64 levels"),
        ("a: &a {b: 1}\nc: {<<: *a}", "it has an alias, or more than 64 levels"),
        (LAUGHS, "it has an alias, or more than 64 levels"),
        ("a: " + "[1," * 25_000, "75,003 bytes, but such a file of this run has at most 50,000"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "bytes",
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_a_file_that_is_no_config_is_named(run: Path, name: str, content: str | bytes, sentence: str) -> None:
    (run / "config.yaml").unlink()
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence in refused(load_run, run)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            put("model.depth", 3),
            "cannot build vaelab.models.VAE: VAE.__init__() got an unexpected keyword argument 'depth'",
        ),
        (put("model.latent_dim", 0), "cannot build vaelab.models.VAE: latent_dim=0: a whole number"),
        (put("model._args_", [1]), "cannot build vaelab.models.VAE: "),
        (put("model._partial_", True), None),
        (put("model.decoder._partial_", False), "cannot build vaelab.models.VAE"),
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


@pytest.mark.parametrize(
    "override",
    ["seed=5", "model.latent_dim=3", "data.val_size=50", "data.batch_size=10", "steps=9", "objective.beta=2"],
)
def test_a_resumed_run_keeps_model_data_and_seed(config: Compose, tmp_path: Path, override: str) -> None:
    train(config(), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    key, value = override.split("=")
    remedy = "Set trainer.max_epochs to change its length" if key == "steps" else "Start a new run to change it"
    with pytest.raises(ValueError, match=f"{key} was .* and cannot become {value}: .* {remedy}"):
        runs.saved_config(tmp_path, ["trainer.max_epochs=3", override])
    assert (tmp_path / "config.yaml").read_text() == before
    assert runs.saved_config(tmp_path, ["data.root=elsewhere"]).data.root == "elsewhere"


OWN = """from vaelab.networks import MLPEncoder


class Own(MLPEncoder):
    pass
"""


ELSEWHERE = {
    "logger.tensorboard.name": "../elsewhere",
    "logger.tensorboard.version": "a/../../elsewhere",
    "logger.tensorboard.sub_dir": "$HOME/elsewhere",
    "logger.tensorboard.filename_suffix": "/../../elsewhere",
    "logger.tensorboard.save_dir": "/elsewhere",
    "logger.csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "."},
    "logger.db": {"tracking_uri": "sqlite:///mlflow.db"},
    "logger.up": {"tracking_uri": "sqlite:///{folder}/../a"},
    "logger.net": {"tracking_uri": "http://else/{folder}"},
    "trainer.default_root_dir": "~/elsewhere",
    "trainer.profiler": {"deep": ["file:///elsewhere"]},
    "callbacks.pictures": {"_target_": "vaelab.training.Pictures", "dirpath": "elsewhere"},
    "module.more": Path("/elsewhere"),
}


@pytest.mark.parametrize("key", ELSEWHERE)
def test_a_path_that_leads_out_of_the_folder(run: Path, key: str) -> None:
    """The user can set another one. Runs are read without these paths."""
    config = config_of(run)
    put(key, ELSEWHERE[key])(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    sentence = refused(resume, run)
    assert f"{key}" in sentence
    assert "outside of the run's folder" in sentence
    assert load_run(run).latent_dim
    if isinstance(ELSEWHERE[key], str):
        assert runs.saved_config(run, [f"{key}=inside"])


def test_paths_within_the_folder(run: Path) -> None:
    config = config_of(run)
    own = {"name": "a/../b", "sub_dir": str(run / "c"), "tracking_uri": "sqlite:///{folder}/mlflow.db"}
    paths = {f"logger.tensorboard.{name}": path for name, path in own.items()}
    for key, value in {**paths, "trainer.dirpath": str(run)}.items():
        put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert runs.saved_config(run).logger.tensorboard.name == "a/../b"


@pytest.mark.parametrize("name", ["train.log", ".config.yaml.new", "pictures", "checkpoints/best.ckpt", "more"])
def test_a_link_that_leads_out_of_the_folder(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "profile").write_text("alias ls=ls\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "profile")
    for action in (load_run, resume, lambda folder: runs.open_run(str(folder))):
        assert f"{run / name} is a link that leads out of the folder" in refused(action, run)
    assert (tmp_path / "profile").read_text() == "alias ls=ls\n"


def test_a_run_that_is_reached_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(run)
    (run / "latest.pt").symlink_to("weights.pt")
    assert load_run(tmp_path / "alias").latent_dim == 3
    resume(tmp_path / "alias")


@pytest.mark.parametrize(
    "key", ["name", "data.root", "model.encoder.activation", "callbacks.more", "trainer.precision"]
)
@pytest.mark.parametrize("value", ["\x1b]0;title\x07", "a\n2026-01-01 INFO done", "\u202e"])
def test_hidden_characters_in_a_config(run: Path, key: str, value: str) -> None:
    config = config_of(run)
    put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    for action in (load_run, resume):
        assert "has hidden characters in a text" in refused(action, run)
    put(key, {value: 1})(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert "has hidden characters in a text" in refused(load_run, run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", 3),
        ("data.dataset", "../elsewhere"),
        ("data.dataset", 5),
        ("data.used", "a b"),
        ("data.binarization", None),
        ("data.root", ["data"]),
    ],
)
def test_a_section_of_another_type(run: Path, key: str, value: Any) -> None:
    config = config_of(run)
    put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert f"is not the config of a run: its {key} is missing or has no meaning" in refused(load_run, run)


@pytest.mark.parametrize(("key", "value"), [("callbacks", []), ("trainer", None), ("logger", "x"), ("module", 3)])
def test_a_section_that_only_resuming_reads(run: Path, key: str, value: Any) -> None:
    config = config_of(run)
    put(key, value)(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert load_run(run).latent_dim
    assert f"its {key} is missing or has no meaning" in refused(resume, run)


def test_a_config_s_own_header_and_neighbours_have_no_effect(run: Path) -> None:
    """Hydra would read a header of a file, and other files of its folder."""
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"# @package hydra\n{text}")
    (run / "model").mkdir()
    (run / "model" / "evil.yaml").write_text("_target_: os.system\n")
    assert runs.saved_config(run).model.latent_dim == 3
    assert "would replace a whole group" in refused(lambda: runs.saved_config(run, ["model=evil"]))


def test_data_are_not_downloaded_to_a_place_that_only_a_config_names(run: Path, tmp_path: Path) -> None:
    config, outside = config_of(run), tmp_path.parent / "elsewhere"
    put("data.root", str(outside))(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    for action in (resume, lambda folder: runs.open_run(str(folder))):
        assert f"{outside}/MNIST, where the run found its data, does not exist" in refused(action, run)
    assert load_run(run).latent_dim
    emnist = {"_target_": "vaelab.data.EMNISTDataModule", "dataset": "EMNIST-letters", "used": "EMNIST-letters"}
    with pytest.raises(ValueError, match="elsewhere/EMNIST, where the run found its data, does not exist"):
        check_root(OmegaConf.create({**emnist, "root": str(outside)}))
    assert runs.saved_config(run, [f"data.root={outside}"]).data.root == str(outside)
    put("data.root", "elsewhere")(config)  # in the working directory
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert runs.saved_config(run).data.root == "elsewhere"


OWN_CALLBACK = """from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class Mine(Callback):
    pass
"""


@pytest.fixture
def own(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with an encoder and a callback of one's own."""
    (tmp_path / "own_nets.py").write_text(OWN)
    (tmp_path / "own_callbacks.py").write_text(OWN_CALLBACK)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "own"
    folder.mkdir()
    parts = ["model.encoder._target_=own_nets.Own", "+callbacks.own._target_=own_callbacks.Mine"]
    train(config(*parts, "callbacks.pictures.count=0", "trainer.max_epochs=1"), folder)
    return folder


def test_a_module_of_one_s_own_is_built_if_it_is_trusted(own: Path) -> None:
    """A callback of one's own is built by resuming alone."""
    log = (own / "train.log").read_text()
    assert "evaluate.py, generate.py and export.py need trust=[own_nets]\n" in log
    assert "resume= needs trust=[own_callbacks,own_nets]\n" in log
    sentence = refused(load_run, own)
    assert "names own_nets.Own, which is not a class of vaelab" in sentence
    assert "trust=[own_nets] allows it" in sentence
    assert type(load_run(own, trust=["own_nets"]).encoder).__name__ == "Own"
    assert runs.open_run(str(own), trust=["own_nets"]).folder == own
    assert "names own_callbacks.Mine" in refused(lambda: runs.saved_config(own, trust=["own_nets"]))
    assert runs.saved_config(own, trust=["own_nets", "own_callbacks"]).trainer.max_epochs == 1


@pytest.mark.parametrize("trust", [["own"], ["own_nets.Own"], [""], ["vaelab"]])
def test_trust_is_for_exactly_the_modules_that_are_named(own: Path, trust: list[str]) -> None:
    assert "it is not run" in refused(lambda: load_run(own, trust=trust))


OS = "import os\nfrom os import system\nfrom vaelab.networks import MLPEncoder\nfrom functools import partial\n"


@pytest.mark.parametrize("target", ["own_nets.system", "own_nets.os.system", "own_nets.partial", "own_nets.nothing"])
def test_trust_is_for_what_a_module_defines_itself(own: Path, target: str) -> None:
    (own.parent / "own_nets.py").write_text(OS + OWN)
    sys.modules.pop("own_nets")
    config = config_of(own)
    put("model.more", {"_target_": target, **TOUCH})(config)
    (own / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    sentence = refused(lambda: load_run(own, trust=["own_nets"]))
    assert f"names {target}, which {target.rpartition('.')[0]} does not define: it is not run" in sentence


def test_a_trusted_module_that_is_not_there_is_named(own: Path) -> None:
    config = config_of(own)
    put("model.more", {"_target_": "elsewhere_nets.Thing", **TOUCH})(config)
    (own / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    sentence = refused(lambda: load_run(own, trust=["own_nets", "elsewhere_nets"]))
    assert "names elsewhere_nets.Thing, which cannot be imported: No module named 'elsewhere_nets'" in sentence


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("target", ["own_nets_evil.Thing", "planted.Thing", "os.system", "own.Thing"])
def test_trust_in_one_module_opens_no_other(own: Path, target: str) -> None:
    Path("own_nets_evil.py").write_text(Path("planted.py").read_text())
    config = config_of(own)
    put("model.more", {"_target_": target})(config)
    (own / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert f"names {target}, which is not a class of vaelab" in refused(lambda: load_run(own, trust=["own_nets"]))


def test_a_class_of_lightning_that_writes_files_needs_trust(run: Path) -> None:
    """The trusted module may import it, and it is defined in another module."""
    config = config_of(run)
    put("callbacks.mine", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": str(run)})(config)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert "trust=[lightning.pytorch.callbacks] allows it" in refused(resume, run)
    assert runs.saved_config(run, trust=["lightning.pytorch.callbacks"])
    assert runs.saved_config(run, trust="lightning.pytorch.callbacks")


@pytest.mark.parametrize("name", LIGHTNING)
def test_the_listed_classes_of_lightning_exist(name: str) -> None:
    from lightning import pytorch as pl

    assert isinstance(getattr(pl, name, None) or getattr(pl.callbacks, name, None) or getattr(pl.loggers, name), type)


def test_a_config_cannot_trust_itself(own: Path) -> None:
    with (own / "config.yaml").open("a") as file:
        file.write("trust: [own_nets]\n")
    assert "it is not run" in refused(load_run, own)
