"""reproduce.py trains the seeds that are missing, continues interrupted ones, and records what it found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import reproduce
from vaelab.evaluation.reproduction import compare

SHORT = ("data=mnist_5k", "trainer.max_steps=3", "trainer.accelerator=cpu", "callbacks.pictures.count=0")
SMALL = f"row.overrides={json.dumps(SHORT)}"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = [f"folder={folder}/runs", f"records={folder}/records"]
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments, *places]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_a_row_from_nothing_to_its_verdict(tmp_path: Path) -> None:
    done = run(tmp_path, "row=grey_bernoulli", "row.seeds=[0,1]", SMALL, 'settings=["trainer.log_every_n_steps=2"]')
    assert not done.returncode, done.stderr
    record = json.loads((tmp_path / "records" / "grey_bernoulli.json").read_text())
    tested = [
        json.loads((tmp_path / "runs" / "grey_bernoulli" / f"seed-{seed}" / "metrics.json").read_text())
        for seed in (0, 1)
    ]
    assert [each["value"] for each in record["runs"]] == [metrics["test"]["loss"] for metrics in tested]
    assert record["runs"][0]["value"] != record["runs"][1]["value"]
    assert record["result"] == compare(record, [each["value"] for each in record["runs"]])
    assert record["result"]["verdict"].startswith("missed by ")
    assert record["result"]["verdict"].endswith(" (2 of 3 seeds)")
    assert record["runs"][0]["starts"][0]["versions"]["torch"]
    assert record["runs"][0]["steps"] == 3
    assert "trainer.log_every_n_steps=2" in record["runs"][0]["starts"][0]["overrides"]
    assert "| `grey_bernoulli` |" in (tmp_path / "records" / "README.md").read_text()

    shutil.rmtree(tmp_path / "runs" / "grey_bernoulli" / "seed-1")
    done = run(tmp_path, "row=grey_bernoulli", "row.seeds=[0,1]", SMALL)
    assert done.stdout.count("python train.py") == 1
    assert "seed=1" in done.stdout
    assert json.loads((tmp_path / "records" / "grey_bernoulli.json").read_text())["result"] == record["result"]

    listed = run(tmp_path).stdout.splitlines()
    assert [line for line in listed if "`grey_bernoulli`" in line and "missed by" in line]
    assert [line for line in listed if "`vae_static`" in line and "not run" in line]


def test_an_interrupted_run_is_resumed_and_a_start_without_a_checkpoint_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(reproduce, "start", lambda *given: started.append(given[:2]))
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.json").touch()
    for name in "abc":
        reproduce.train(tmp_path / name, ["seed=3"], None)
    fresh = ["seed=3", f"hydra.run.dir={tmp_path / 'b'}"]
    assert started == [("train.py", [f"resume={tmp_path / 'a'}"]), ("train.py", fresh)]
    assert not (tmp_path / "b").exists()


def test_a_row_that_does_not_exist(tmp_path: Path) -> None:
    done = run(tmp_path, "row=vae_sttic")
    assert done.returncode == 1
    assert done.stderr.startswith("error: row=vae_sttic: did you mean vae_static? choose one of ")
