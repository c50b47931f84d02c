"""reproduce.py trains the seeds that are missing, continues interrupted ones, and records what it found."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import reproduce
from vaelab.errors import UserError
from vaelab.evaluation.reproduction import compare
from vaelab.runs import held, write_json

SHORT = ("data=mnist_5k", "trainer.max_steps=3", "trainer.accelerator=cpu", "callbacks.pictures.count=0")
SMALL = f"row.overrides={json.dumps(SHORT)}"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    row = any(argument.startswith("row=") for argument in arguments)
    places = [f"records={folder}/records", *([f"folder={folder}/runs"] if row else [])]
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments, *places]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=300)


def test_a_row_from_nothing_to_its_verdict(tmp_path: Path) -> None:
    words = ("row=grey_bernoulli", SMALL, 'settings=["trainer.log_every_n_steps=2"]')
    done = run(tmp_path, *words, "row.seeds=[0]")
    assert not done.returncode, done.stderr
    (first,) = json.loads((tmp_path / "records" / "grey_bernoulli.json").read_text())["runs"]
    done = run(tmp_path, *words, "row.seeds=[0,1]")
    assert not done.returncode, done.stderr
    assert done.stdout.count("python train.py") == 1  # of the seed that is missing
    assert "seed=1" in done.stdout
    record = json.loads((tmp_path / "records" / "grey_bernoulli.json").read_text())
    tested = [
        json.loads((tmp_path / "runs" / "grey_bernoulli" / f"seed-{seed}" / "metrics.json").read_text())
        for seed in (0, 1)
    ]
    assert [each["value"] for each in record["runs"]] == [metrics["test"]["loss"] for metrics in tested]
    assert record["runs"][0] == first
    assert record["runs"][0]["value"] != record["runs"][1]["value"]
    assert record["result"] == compare(record, [each["value"] for each in record["runs"]])
    assert record["result"]["verdict"].startswith("differs by ")
    assert record["result"]["verdict"].endswith(" (2 of 3 seeds)")
    assert record["runs"][0]["starts"][0]["versions"]["torch"]
    assert record["runs"][0]["steps"] == 3
    assert "trainer.log_every_n_steps=2" in record["runs"][0]["starts"][0]["overrides"]
    assert "| `grey_bernoulli` |" in (tmp_path / "records" / "README.md").read_text()
    assert "\n| `grey_bernoulli` | PyTorch's example" in done.stdout

    listed = run(tmp_path).stdout.splitlines()
    assert [line for line in listed if "`grey_bernoulli`" in line and "differs by" in line]
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
    fresh = ["seed=3", "data.allow_subset=false", f"hydra.run.dir={tmp_path / 'b'}"]  # MNIST-5k is no row's data
    assert started == [("train.py", [f"resume={tmp_path / 'a'}"]), ("train.py", fresh)]
    assert not (tmp_path / "b").exists()


def test_a_run_that_is_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(reproduce, "start", lambda *given: started.append(given[:2]))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "evaluation.json").touch()
    for name in "ab":
        reproduce.evaluate(tmp_path / name, ["num_samples=200"], None)
    assert started == [("evaluate.py", [f"run={tmp_path / 'b'}", "num_samples=200"])]


def test_a_run_with_other_settings_or_of_another_process_is_left_alone(tmp_path: Path) -> None:
    """Settings that only choose where a run computes may differ."""
    given = ["seed=3", "trainer.max_epochs=1", "trainer=gpu_fast", "data.root=elsewhere"]
    write_json(tmp_path / "run.json", {"starts": [{"overrides": given}]})
    (tmp_path / "metrics.json").touch()
    reproduce.train(tmp_path, ["seed=3", "trainer.max_epochs=1", "data.root=data"], None)
    with pytest.raises(UserError, match=r"has other settings \(trainer.max_epochs=1, trainer.max_epochs=300\)"):
        reproduce.train(tmp_path, ["seed=3", "trainer.max_epochs=300", "data.root=data"], None)

    (tmp_path / "live").mkdir()
    with held(tmp_path / "live", new=True), pytest.raises(UserError, match="in use"):
        reproduce.train(tmp_path / "live", ["seed=3"], None)


def test_an_evaluation_of_another_protocol_is_not_recorded(tmp_path: Path) -> None:
    facts = ("time", "git", "python", "versions", "machine")
    run = tmp_path / "seed-0"
    run.mkdir()
    write_json(run / "run.json", {"starts": [{"overrides": [], **dict.fromkeys(facts)}]})
    protocol = {"dataset": "MNIST", "images": {"train": 1, "test": 1}, "binarization": {"test": "none"}}
    ended = {"epochs": 1, "steps": 1, "fit_seconds": 1.0, "device": "cpu", "unit": "nats"}
    write_json(run / "metrics.json", {"protocol": protocol, "test": {"elbo": -100.0}, **ended})
    row = {"evaluation": ["num_samples=200"], "metric": "log_likelihood", "seeds": [0, 1, 2]}
    row |= {"published": -90.0, "tolerance": 0.5}
    others: list[dict] = [{"num_samples": 5000}, {"ais": {}}, {"test_images": 2}, {"seed": 1}]
    for more, refused in (({"num_samples": 200}, False), *((other, True) for other in others)):
        measured = {"num_samples": 200, "test_images": 1, "seed": 0, "ais": None, **more}
        if "ais" in more:
            measured["ais"] = {"chains": 16}
        values = {"metrics": {"log_likelihood": -90.2}, "standard_errors": {}, "caveats": []}
        write_json(run / "evaluation.json", {"protocol": measured, **values})
        if refused:
            with pytest.raises(UserError, match="was measured with other settings"):
                reproduce.record("vae", row, tmp_path)
        else:
            found = reproduce.record("vae", row, tmp_path)
            assert found["result"]["verdict"] == "within 0.5 (1 of 3 seeds)"
            assert found["runs"][0]["protocol"] == measured
            shutil.copytree(run, tmp_path / "seed-1", ignore=shutil.ignore_patterns("evaluation.json"))
            assert reproduce.record("vae", row, tmp_path) == found  # seed 1 is trained, but not evaluated yet


@pytest.mark.parametrize("code", [0, 143])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int
) -> None:
    """The script gets it from here alone, saves and ends, and nothing is started after it, whatever its exit code."""
    (tmp_path / "wait.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def save(*_):\n    print('saved', file=open('log', 'a'), flush=True)\n    time.sleep(0.3)\n"
        f"    sys.exit({code})\n"
        f"signal.signal({signum:d}, save)\nassert os.getpgid(0) != os.getpgid(os.getppid())\n"
        f"os.kill(os.getppid(), {signum:d})\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signum, lambda *_: None)
    try:
        with pytest.raises(SystemExit, match="stopped; the same command continues"):
            reproduce.start("wait.py", [], None)
    finally:
        assert signal.signal(signum, before) is not before
    assert (tmp_path / "log").read_text() == "saved\n"


def test_settings_that_change_nothing_are_refused(tmp_path: Path) -> None:
    for arguments, sentence in {
        ("minutes=3",): "minutes=3 changes nothing without row=NAME",
        ("data.root=elsewhere",): "data.root=elsewhere changes nothing without row=NAME",
        ("folder=elsewhere",): "folder=elsewhere changes nothing without row=NAME",
        ("row=snr_dreg", "settings=['seed=1']"): "settings=['seed=1'] changes nothing in row=snr_dreg, which runs "
        "benchmarks/snr.py",
    }.items():
        assert run(tmp_path, *arguments).stderr == f"error: {sentence}\n"
    assert [*tmp_path.iterdir()] == []


def test_a_row_that_does_not_exist(tmp_path: Path) -> None:
    done = run(tmp_path, "row=vae_sttic")
    assert done.returncode == 1
    assert done.stderr.startswith("error: row=vae_sttic: did you mean vae_static? choose one of ")
