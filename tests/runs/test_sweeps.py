"""A sweep lies in one folder, goes on where it stopped, and ends with a table."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ARGUMENTS, ROOT, Command, equal, metrics, stop_at
from conftest import checkpoint as checkpoint_of

from vaelab import runs
from vaelab.errors import UserError
from vaelab.runs import sweeps
from vaelab.training.seeds import read_curves

SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "callbacks.pictures.count=0"]
SEEDS = ["-m", *SMALL, "model.latent_dim=2,3", "seed=range(0,2)"]
NAMES = ["0_model.latent_dim-2_seed-0", "1_model.latent_dim-2_seed-1"]
NAMES += ["2_model.latent_dim-3_seed-0", "3_model.latent_dim-3_seed-1"]


def rows(folder: Path) -> list[list[str]]:
    lines = (folder / "sweep.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_a_sweep_ends_with_a_table_and_mean_curves(command: Command) -> None:
    code, printed = command(*SEEDS, "hydra.sweep.dir=logs/s")
    assert code is None, printed
    folder = command.folder / "logs" / "s"
    values = [metrics(folder / name)["val"]["loss"] for name in NAMES]
    table = rows(folder)
    assert table[0] == ["run", "model.latent_dim", "seed", "val/loss", "status"]
    assert table[2] == [NAMES[1], "2", "1", f"{values[1]:.2f}", "finished"]
    mean, spread = statistics.mean(values[2:]), abs(values[3] - values[2]) / 2**0.5  # s.d. of two values
    assert table[6] == ["mean ± s.d., n = 2", "3", "", f"{mean:.2f} ± {spread:.2g}", ""]
    assert all(cell in printed for row in table for cell in row)
    whole = [read_curves(folder / name)["val/loss"] for name in NAMES[2:]]
    curves = {name: read_curves(folder / "model.latent_dim-3" / name) for name in ("mean", "mean+sd", "mean-sd")}
    for step in whole[0]:
        pair = [curve[step] for curve in whole]
        assert curves["mean"]["val/loss"][step] == pytest.approx(statistics.mean(pair))
        assert curves["mean+sd"]["val/loss"][step] == pytest.approx(statistics.mean(pair) + statistics.stdev(pair))
        assert curves["mean-sd"]["val/loss"][step] == pytest.approx(statistics.mean(pair) - statistics.stdev(pair))
    assert {"train/loss", "train/lr", "weights/test_elbo"} <= set(curves["mean"])
    names = [f"logs/s/{name}" for name in NAMES]
    assert sweeps.finished_runs(["logs/s"]) == sweeps.finished_runs(["logs/*"]) == names
    assert sweeps.finished_runs(["logs/s/*_seed-1", "logs/s", "nowhere", str(folder / NAMES[0])]) == [
        *names[1::2], *names[::2], "nowhere", str(folder / NAMES[0]),
    ]  # fmt: skip


def test_a_sweep_that_was_killed_goes_on_bit_for_bit(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run was stopped within an epoch, and one never began."""
    sweep = ["-m", *SMALL, "seed=0,1"]
    assert command("-m", *SMALL, "seed=0", "hydra.sweep.dir=logs/whole")[0] is None
    with monkeypatch.context() as patch:
        stop_at(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        code, printed = command(*sweep, "hydra.sweep.dir=logs/s")
    assert code == 128 + signal.SIGTERM
    assert re.search(r"\nthis continues the sweep: python train.py -m .* seed=0,1 resume=logs/s\n", printed), printed
    folder, whole = command.folder / "logs" / "s", command.folder / "logs" / "whole" / "0"
    assert sorted(path.name for path in folder.iterdir()) == ["0_seed-0", "multirun.yaml"]
    code, printed = command(*sweep, "resume=logs/s")
    assert (code, printed.count("skipped  ")) == (None, 0), printed
    assert "out of order" not in printed  # which TensorBoard says of each resumed run
    assert metrics(folder / "0_seed-0")["test"] == metrics(whole)["test"]
    assert equal(*(checkpoint_of(run)["state_dict"] for run in (folder / "0_seed-0", whole)))
    starts = [json.loads((run / "run.json").read_text())["starts"] for run in sorted(folder.glob("*_seed-*"))]
    assert [len(each) for each in starts] == [2, 1]


@pytest.mark.parametrize("moment", ["check_data", "record_start", "announce"])
def test_a_sweep_that_was_killed_at_its_start(command: Command, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The repeated run has the name of the run that never began."""
    with monkeypatch.context() as patch:
        patch.setattr(runs, moment, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        code, printed = command("-m", *SMALL, "seed=0", "hydra.sweep.dir=logs/s")
    assert code == 128 + signal.SIGTERM
    assert "\nthis continues the sweep: " in printed
    run = command.folder / "logs" / "s" / "0"
    run.mkdir(exist_ok=True)
    (run / ".lock").touch()  # SIGKILL leaves it
    assert command("-m", *SMALL, "seed=0", "resume=logs/s")[0] is None
    assert [row[::2] for row in rows(run.parent)[1:]] == [["0", "finished"]]


def test_failures_are_named_and_repeated(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the settings, a loss that is not finite, and a bug in the user's code."""
    bug = (
        "from vaelab.networks import MLPEncoder\n\n\nclass Own(MLPEncoder):\n    def __init__(self, *a, **k):\n        "
    )
    (command.folder / "own_bug.py").write_text(bug + "BUG\n")
    monkeypatch.syspath_prepend(command.folder)
    one = ["-m", *SMALL, "model.encoder._target_=own_bug.Own,vaelab.networks.MLPEncoder", "hydra.sweep.dir=logs/a"]
    two = ["-m", *SMALL, "optimizer.lr=-1,1e30,1e-3", "hydra.sweep.dir=logs/b", "hydra.sweep.subdir=${hydra.job.num}"]
    code, printed = command(*two)
    assert str(code).startswith("error: 2 of 3 runs are not finished: 0: optimizer.lr=-1: ")
    assert "; 1: the loss is not a finite number at step 2" in str(code)
    folder = command.folder / "logs" / "b"
    assert [row[1::2] for row in rows(folder)[1:]] == [["-1", "failed"], ["1e+30", "failed"], ["0.001", "finished"]]
    assert "Traceback" not in printed
    code, printed = command(*one)
    assert "1 of 2 runs are not finished" in str(code)
    assert "NameError(\"name 'BUG' is not defined\")" in str(code)
    assert 'own_bug.py", line 6, in __init__' in printed
    (command.folder / "own_bug.py").write_text(bug + "super().__init__(*a, **k)\n")
    del sys.modules["own_bug"]
    code, printed = command(*one)
    assert (code, printed.count("skipped  ")) == (None, 1), printed


def test_more_values_add_runs_to_a_sweep(command: Command) -> None:
    assert command("-m", *SMALL, "seed=1", "hydra.sweep.dir=logs/s")[0] is None
    code, printed = command("-m", *SMALL, "seed=0,1", "resume=logs/s")
    assert (code, printed.count("skipped  ")) == (None, 1)
    assert [row[:2] for row in rows(command.folder / "logs" / "s")[1:3]] == [["0", "1"], ["0_seed-0", "0"]]
    small = "data.md5, data.val_size, trainer.max_epochs, trainer.limit_train_batches, "
    small += "callbacks.pictures.num_reconstructions, callbacks.pictures.num_samples, "
    small += "model.encoder.hidden, model.decoder.hidden, callbacks.pictures.count, seed"
    sentence = f"logs/s is a sweep whose runs were started with {small}: repeat its command to continue it"
    for alone in (
        ["resume=logs/s"],
        ["resume=logs/s", "data.root=x"],
        ["resume=logs/s", "trust=[mynets]"],
        ["hydra.sweep.dir=logs/s", "hydra/launcher=basic"],
    ):
        assert command("-m", *alone, small=False)[0] == f"error: {sentence}"  # it would train a run of the defaults


def test_what_is_no_sweep_is_refused(command: Command) -> None:
    before = command.folder / "before"
    before.mkdir()  # a sweep that was stopped before its first run
    (before / "multirun.yaml").write_text("hydra: {overrides: {task: [seed=1, data.root=x]}, run: {dir: '${a:b}'}}")
    sentence = "error: before is a sweep whose runs were started with seed: repeat its command to continue it"
    assert command("-m", "resume=before", small=False)[0] == sentence
    assert "nowhere is not the folder of a sweep: no such folder" in command("-m", "resume=nowhere", small=False)[0]
    together = ["-m", *SMALL, "hydra/launcher=together", "seed=1,2", "hydra.sweep.dir=logs/s"]
    assert command(*together)[0] is None
    again, _ = command(*together)
    assert again == "error: hydra/launcher=together cannot continue a sweep, and its folder has 0_seed-1 already"


def test_a_run_without_a_checkpoint_is_repeated_unless_another_process_trains_it(command: Command) -> None:
    assert command("-m", *SMALL, "seed=1", "hydra.sweep.dir=logs/s")[0] is None
    run = command.folder / "logs" / "s" / "0"
    first = metrics(run)["test"]
    (run / "metrics.json").unlink()  # as if it was killed before its first checkpoint
    shutil.rmtree(run / "checkpoints")
    with sweeps.held(run, new=False):
        code, printed = command("-m", *SMALL, "seed=1", "resume=logs/s")
    assert code == "error: 1 of 1 runs are not finished: 0: not finished"
    assert "error: logs/s/0 is in use: another process trains this run" in printed
    assert not (run / "failed.json").exists()
    assert command("-m", *SMALL, "seed=1", "resume=logs/s")[0] is None
    assert metrics(run)["test"] == first
    assert (run.parent / "replaced" / "0" / "weights.pt").exists()


def test_settings_tell_runs_apart(tmp_path: Path) -> None:
    sweeps.record_failure(tmp_path / "a", ["+x=1", "seed=2", "data.root=here"], "an error")
    found = sweeps.find(tmp_path, ["seed=2", "+x=1", "data.root=there"])
    assert found is not None
    assert (found.folder, found.status, found.error) == (tmp_path / "a", "failed", "an error")
    assert sweeps.find(tmp_path, ["seed=2"]) is None
    sweeps.put_aside(found, tmp_path)
    assert not sweeps.started(tmp_path)
    sweeps.record_failure(tmp_path / "b", [], "an error")
    (tmp_path / "b" / "failed.json").write_text("{}")
    with pytest.raises(UserError, match=r"failed\.json is not what a run writes"):
        sweeps.started(tmp_path)


def test_a_sweep_of_many_runs_reads_each_of_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run looks for itself among those that were started before."""
    read, original = [], sweeps.read_json
    monkeypatch.setattr(sweeps, "read_json", lambda path: read.append(path) or original(path))
    for seed in range(5):
        assert sweeps.find(tmp_path, [f"seed={seed}"]) is None
        sweeps.record_failure(tmp_path / str(seed), [f"seed={seed}"], "an error")
    assert len(read) == len({*read}) == 2 * 4  # run.json and failed.json of all but the last one
    sweeps.record_failure(tmp_path / "0", ["seed=9"], "another error")  # a file that changes is read again
    found = sweeps.find(tmp_path, ["seed=9"])
    assert found is not None
    assert (found.folder, found.error) == (tmp_path / "0", "another error")
    (tmp_path / "0" / "checkpoints").mkdir()
    (tmp_path / "0" / "checkpoints" / "failed.json").touch()  # the folders of a run hold no runs
    assert len(sweeps.started(tmp_path)) == 5


@pytest.mark.parametrize("launcher", ["joblib", "local", "ray"])
def test_other_launchers_use_one_folder(launcher: str, data_root: Path, tmp_path: Path) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.replace('local', 'submitit')}_launcher"
    if not find_spec("hydra_plugins") or not find_spec(plugin):
        pytest.skip(f"{plugin} is not installed")
    sweep = [*ARGUMENTS, *SMALL, f"data.root={data_root}", "optimizer.lr=1e-3,-1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", f"hydra/launcher={launcher}", *sweep],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: 1 of 2 runs are not finished: 1_optimizer.lr-1: optimizer.lr=-1: a number above" in done.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    assert [row[1::2] for row in rows(folder)[1:]] == [["0.001", "finished"], ["-1", "failed"]]
    assert "threads  1;" in (folder / "0_optimizer.lr-0.001" / "train.log").read_text()


def test_runs_of_one_seed_are_no_group(tmp_path: Path) -> None:
    def run(name: str, seed: str) -> sweeps.Started:
        settings = {"model.latent_dim": "2", "seed": seed}
        return sweeps.Started(tmp_path / name, settings, "finished", "val/loss", 1.0, "")

    assert sweeps.seed_groups([run("a", "0"), run("b", "0")]) == {}
    assert [
        [each.folder.name for each in group] for group in sweeps.seed_groups([run("a", "0"), run("b", "1")]).values()
    ] == [["a", "b"]]


def test_the_folder_of_several_sweeps_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "logs" / "one").mkdir(parents=True)
    (tmp_path / "logs" / "one" / "sweep.md").touch()
    with pytest.raises(UserError, match="holds whole sweeps: name one of them, such as one"):
        sweeps.override_of(str(tmp_path / "logs"))
    (tmp_path / "logs" / "one" / "mean").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link that leads out of the folder"):
        sweeps.override_of(str(tmp_path / "logs" / "one"))
