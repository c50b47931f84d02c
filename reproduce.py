"""Reproduce a published figure: `python reproduce.py row=NAME`; without a row, it lists all rows and verdicts."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaelab import cli
from vaelab.errors import UserError

ROOT = Path(__file__).parent
ROWS = ROOT / "configs" / "row"
FULL = "data.allow_subset=false"  # MNIST-5k is no row's data
FOLDERS = ("data.root=", "resume=", "hydra.", FULL)  # overrides that no record needs
OF_ROWS = ("folder", "settings", "minutes", "data.root")  # the settings that only row=NAME uses
HEADER = """# Reproduced figures

`python reproduce.py row=NAME` trains, measures and compares a row of this table. `python reproduce.py` lists all rows.
The figures are log-likelihoods, ELBOs or losses in nats per test image, if a row does not name another quantity. The
verdict is computed: *reproduced* means that the mean over all seeds of the row is within its tolerance. The file of a
row holds its commands, versions, seeds, hardware and seconds; `configs/row/` holds its protocol and its source.

"""


def reproduce(cfg: DictConfig, _: Path) -> None:
    """Train the seeds that are missing, measure them, and write the row's record and the table of all rows."""
    from hydra.core.hydra_config import HydraConfig

    from vaelab import runs
    from vaelab.evaluation import reproduction

    folder, records, chosen = Path(cfg.records), {}, "row" in cfg
    rows: dict[str, Any] = {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted(ROWS.glob("*.yaml"))
    }
    for key, default in runs.settings(OmegaConf.load(ROOT / "configs" / "reproduce.yaml")):
        if key in OF_ROWS and not chosen and OmegaConf.select(cfg, key) != default:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)} changes nothing without row=NAME")
    if chosen:
        name, row = HydraConfig.get().runtime.choices["row"], OmegaConf.to_container(cfg.row, resolve=True)
        if cfg.settings and "script" in row:
            raise UserError(f"settings={cfg.settings} changes nothing in row={name}, which runs {row['script']}")
        end = time.monotonic() + 60 * cfg.minutes if cfg.minutes else None
        for seed in row["seeds"]:
            run = Path(cfg.folder) / name / f"seed-{seed}"
            if "script" not in row:
                train(run, [*row["overrides"], *cfg.settings, f"seed={seed}", f"data.root={cfg.data.root}"], end)
            elif not (run / "measured.json").is_file():
                start(row["script"], [*shlex.split(row["options"]), f"--seed={seed}", f"--out={run}"], end)
            if row["evaluation"]:
                evaluate(run, [*row["evaluation"], f"data.root={cfg.data.root}"], end)
        folder.mkdir(parents=True, exist_ok=True)
        whole = {**row, **{key: rows[name][key] for key in ("seeds", "published", "tolerance")}}
        runs.write_json(folder / f"{name}.json", record(name, whole, Path(cfg.folder) / name))
    for path in folder.glob("*.json"):
        records[path.stem] = json.loads(path.read_text())
    table = reproduction.table(rows, records)
    if chosen:
        (folder / "README.md").write_text(HEADER + table + "\n")
        print(reproduction.table({name: rows[name]}, records))
    else:
        print(table)


def train(run: Path, overrides: list[str], end: float | None) -> None:
    """Train a run, or continue it. A finished run is left as it is.

    Raises UserError for a run with other settings, apart from those that only choose where it computes.
    """
    from vaelab import runs

    started = runs.read_json(run / "run.json").get("starts")
    if started and (other := _settings(started[0]["overrides"]) ^ _settings(overrides)):
        raise UserError(f"{run} has other settings ({', '.join(sorted(other))}): move it away, or set folder=...")
    if (run / "metrics.json").is_file():
        return
    resumed = (run / "checkpoints" / "last.ckpt").is_file()
    if not resumed and run.is_dir():
        with runs.held(run, new=False):  # raises UserError if another process trains it
            shutil.rmtree(run)  # a start that was stopped before its first checkpoint
    full = [] if any(override.startswith("data=") for override in overrides) else [FULL]
    start("train.py", [f"resume={run}"] if resumed else [*overrides, *full, f"hydra.run.dir={run}"], end)


def evaluate(run: Path, settings: list[str], end: float | None) -> None:
    """Measure a finished run. A run that is measured is left as it is; `record` refuses other settings."""
    if not (run / "evaluation.json").is_file():
        start("evaluate.py", [f"run={run}", *settings], end)


def _settings(overrides: list[str]) -> set[str]:
    """The overrides that change what a run computes, not where."""
    where = ("trainer=", "trainer.accelerator=", *FOLDERS)
    return {override for override in overrides if not override.startswith(where)}


def start(script: str, arguments: list[str], end: float | None) -> None:
    """Run a script to its end. Ctrl-C, SIGTERM and the time `end` tell it once to save and to stop."""
    print(shlex.join(["python", script, *arguments]), flush=True)
    started: list[subprocess.Popen[bytes]] = []
    stopped: list[int] = []

    def pass_on(signum: int, _: FrameType | None) -> None:
        stopped.append(signum)
        for process in started:
            process.send_signal(signum)

    signals = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, pass_on) for each in signals}
    try:
        # In a process group of its own it does not get a signal twice, from a terminal or a scheduler and from here
        started.append(subprocess.Popen([sys.executable, str(ROOT / script), *arguments], process_group=0))
        if stopped:
            started[0].send_signal(stopped[0])
        code = started[0].wait(None if end is None else max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        started[0].terminate()
        started[0].wait()
        sys.exit("the minutes are over; the same command continues")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if stopped:
        sys.exit("stopped; the same command continues")
    if code:
        sys.exit(f"stopped, because {script} ended with {code}")


def record(name: str, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was measured, by seed, with seconds and device, and each start's settings, versions and hardware.

    It holds all seeds that are finished. Raises UserError for an evaluation with other settings than the row's.
    """
    from vaelab import runs
    from vaelab.evaluation import reproduction

    each = []
    for seed in row["seeds"]:
        run = folder / f"seed-{seed}"
        path = run / ("measured.json" if "script" in row else "metrics.json")
        if not path.is_file() or (row["evaluation"] and not (run / "evaluation.json").is_file()):
            continue
        metrics = json.loads(path.read_text()) if "script" in row else runs.read_json(path)
        value, protocol = metrics["test"].get(row["metric"]), metrics.get("protocol")
        if row["evaluation"]:
            evaluation = runs.read_json(run / "evaluation.json")
            value, protocol = evaluation["metrics"][row["metric"]], evaluation["protocol"]
            images = {"test_images": str(metrics["protocol"]["images"]["test"]), "seed": "0"}
            wanted = images | dict(setting.split("=") for setting in row["evaluation"])
            if protocol.get("ais") or any(str(protocol.get(key)) != size for key, size in wanted.items()):
                raise UserError(f"{run}/evaluation.json was measured with other settings than {wanted}: move it away")
        starts = []
        for one in runs.read_json(run / "run.json")["starts"]:
            kept = [override for override in one["overrides"] if not override.startswith(FOLDERS)]
            facts = {key: one[key] for key in ("time", "git", "python", "versions", "machine")}
            starts.append({"overrides": kept, **facts})
        ended = {key: metrics[key] for key in ("epochs", "steps", "fit_seconds", "device")}
        each.append({"seed": seed, "value": value, "protocol": protocol, **ended, "starts": starts})
    result = reproduction.compare(row, [one["value"] for one in each])
    return {"command": f"python reproduce.py row={name}", **row, "result": result, "runs": each}


if __name__ == "__main__":
    cli.main(reproduce, ROOT / "configs", "reproduce")
