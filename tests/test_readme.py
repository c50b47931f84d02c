"""The README's commands run (the long ones shortened), its Python code runs, and its new part trains."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT, Command, compose_config
from hydra import compose, initialize_config_dir
from PIL import Image

from train import train
from vaelab import posteriors
from vaelab.objectives import elbo

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
LATER = [shlex.split(line)[1:] for line in COMMANDS if re.match(r"python (evaluate|generate|export)\.py", line)]
TRAINING = [
    line.removeprefix("python train.py").split()
    for line in COMMANDS
    if line.startswith("python train.py") and "trainer=ddp" not in line  # training/test_processes.py runs these
]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_promised_commands_stand_there_word_for_word() -> None:
    promised = (
        "python train.py",
        "python train.py trainer.accelerator=gpu model.latent_dim=2",
        "python train.py -m model.latent_dim=2,10",
        "python train.py experiment=tutorial",
        "tensorboard --logdir logs",
    )
    assert set(promised) <= set(COMMANDS)
    first_screen = "\n".join(README.splitlines()[:30])
    assert "pip install -e . && python train.py" in first_screen
    assert "pip install -e '.[dev]' && pytest" in first_screen


@pytest.mark.parametrize("arguments", TRAINING, ids=" ".join)
def test_training_commands(command: Command, arguments: list[str]) -> None:
    if any(argument.startswith("resume=") for argument in arguments):
        assert command()[0] is None
        (run,) = (command.folder / "logs").iterdir()
        more = [] if len(arguments) > 1 else ["trainer.max_epochs=3"]
        limits = ["trainer.max_epochs=3" if "max_epochs" in argument else argument for argument in arguments + more]
        code, printed = command(*(a.replace("logs/RUN", f"logs/{run.name}") for a in limits), small=False)
        assert code is None, printed
        return
    trains = not any(argument.startswith("--") for argument in arguments)
    accumulates = any("accumulate_grad_batches" in argument for argument in arguments)  # which takes a longer epoch
    more = ["trainer.limit_train_batches=4"] if accumulates else []
    code, printed = command(*arguments, *more, small=trains)
    if {"trainer.accelerator=gpu", "trainer=gpu_fast"} & {*arguments} and not torch.cuda.is_available():
        assert "finds no GPU on this machine" in str(code)
    else:
        assert code in (None, 0), printed
        runs = len(list(command.folder.glob("logs/**/metrics.json")))
        assert runs == (2 if "-m" in arguments else int(trains))


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with the README's names, and codes of two dimensions so that all pictures can be drawn."""
    folder = tmp_path_factory.mktemp("readme")
    for name, overrides in {"RUN": [], "B": ["seed=1"], "AE": ["experiment=autoencoder"]}.items():
        (folder / "logs" / name).mkdir(parents=True)
        train(compose_config(data_root, "model.latent_dim=2", *overrides), folder / "logs" / name)
    for name in ("A", "C", "VAE"):
        shutil.copytree(folder / "logs" / "RUN", folder / "logs" / name)
    (folder / "FOLDER").mkdir()
    Image.new("L", (28, 28)).save(folder / "FOLDER" / "digit.png")
    return folder


@pytest.mark.parametrize("arguments", LATER, ids=" ".join)
def test_commands_for_a_finished_run(
    arguments: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script, *settings = arguments
    name = script.removesuffix(".py")
    if name == "evaluate":
        short = ["num_samples=3", "num_images=60", "sizes.steps=2", "sizes.refined_samples=2"]
        short += ["annealing.temperatures=2"]
        settings = [word for word in settings if not word.startswith("num_")] + short
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", arguments)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(name, settings)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    getattr(importlib.import_module(name), name)(cfg, Path())
    assert capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} != before  # the command wrote a file


def test_tensorboard_serves_the_run(command: Command) -> None:
    assert command("model.latent_dim=2", "trainer.log_every_n_steps=1")[0] is None
    (run,) = (command.folder / "logs").iterdir()
    tool = str(Path(sys.executable).with_name("tensorboard"))
    with subprocess.Popen(
        [tool, "--logdir", "logs", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=command.folder,
    ) as server:  # fmt: skip
        try:
            address = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
            deadline = time.monotonic() + 60
            tags: dict = {}
            while "train/loss" not in tags.get(run.name, {}) and time.monotonic() < deadline:
                time.sleep(0.5)
                with urllib.request.urlopen(f"{address}data/plugin/scalars/tags") as reply:
                    tags = json.load(reply)
            assert {"train/loss", "val/elbo", "test/rate", "train/lr"} <= set(tags[run.name])
            with urllib.request.urlopen(f"{address}data/plugin/images/tags") as reply:
                assert set(json.load(reply)[run.name]) == {"reconstructions", "samples", "manifold", "codes"}
        finally:
            server.terminate()


def test_model_in_python(capsys: pytest.CaptureFixture) -> None:
    exec(next(block for block in BLOCKS if "log_weight(x).shape" in block), {})
    assert "torch.Size([5, 16])" in capsys.readouterr().out


def test_two_lines_load_a_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    names: dict = {}
    exec(next(block for block in BLOCKS if "load_run" in block), names)
    assert names["model"].encode(torch.zeros(3, 1, 28, 28)).shape == (3, 2)


@pytest.mark.parametrize(
    ("block", "module", "option"), [(0, posteriors, r"`python train.py (model/posterior=\S+)` trains it"),
                                    (1, elbo, r"is `(objective=\S+)` with")],
)  # fmt: skip
def test_added_part_trains(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, module: ModuleType, option: str
) -> None:
    code = [code for code in BLOCKS if code.startswith("class")][block]
    monkeypatch.setattr(module, re.search(r"class (\w+)", code)[1], None, raising=False)
    exec(code, vars(module))
    yamls = re.findall(r"`(configs/\S+)`:\n\n```yaml\n(.*?)```", README, re.S)
    path, content = yamls[block]
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / path).write_text(content)
    override = re.search(option, README)[1]
    settings = [f"data.root={data_root}", "data.md5=null", "data.val_size=100", "trainer=debug"]
    with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
        cfg = compose("train", [*settings, override])
    train(cfg, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["rate"] > 0


def test_lock_file_has_versions_and_hashes_but_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted += project["optional-dependencies"]["export"]
    assert {re.match(r"[\w.-]+", each)[0] for each in wanted} - {"vaelab"} <= {name for name, _ in pinned}
    assert lock.count("--hash=sha256:") >= len(pinned)
