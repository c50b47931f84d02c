"""A sweep's folder: which of its runs are finished, which go on, and a table of all.

| file | content |
|---|---|
| RUN/ | a run's folder |
| RUN/failed.json | the settings and the error of a run that failed |
| sweep.md | the table: what differs, the monitored metric, the status |
| mean/, mean+sd/, mean-sd/ | the curves of runs that differ only in the seed, for TensorBoard |
| replaced/ | runs that were repeated: those that failed, and those that stopped before their first checkpoint |
"""

import os
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError
from vaelab.files import check_links, read_text, write_atomically
from vaelab.runs.config import MOST_BYTES, parse
from vaelab.runs.folder import ELSEWHERE, LOCK, held, read_json, write_json
from vaelab.runs.log import shown
from vaelab.text import cut, folder_name, plain, rounded, table

REPLACED, FAILED, TABLE, UNFINISHED = "replaced", "failed.json", "sweep.md", "not finished"
_KNOWN: dict[Path, tuple[list[Any], dict[str, str]]] = {}  # see `_settings`


class Started(NamedTuple):
    """A run of a sweep that was started, now or earlier."""

    folder: Path
    settings: dict[str, str]  # the overrides of its command
    status: str  # finished, failed, not finished, or finished in epoch N if the run ended before its length
    monitor: str  # the name of the monitored metric, such as val/loss; empty until the run is finished
    value: float | None  # the monitored metric of the weights that were kept
    error: str  # why it failed

    @property
    def finished(self) -> bool:
        return self.status.startswith("finished")

    @property
    def resumable(self) -> bool:
        return self.status == UNFINISHED and (self.folder / "checkpoints" / "last.ckpt").is_file()


class Announcement(Callback):
    """Says at the start of a sweep where its runs are and how to continue it. Hydra calls it, see train.yaml.

    It also leaves the settings that all runs share out of the names of their folders.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        shared = [each.key_or_group for each in overrides if not each.is_sweep_override()]
        shared += config.hydra.job.config.override_dirname.exclude_keys
        quoted = ",".join(f"'{key}'" for key in shared)
        config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]")
        HydraConfig.instance().set_config(config)  # so that `sweep_folder` knows it at the end of the command
        sweep_folder().mkdir(parents=True, exist_ok=True)
        print(f"sweep    {shown(sweep_folder())}{continued('; if it stops, this continues it: ')}", flush=True)


def continued(words: str) -> str:
    """These words and the command that continues the present sweep, or nothing if its runs train together."""
    if HydraConfig.get().launcher._target_.endswith(".Together"):
        return ""
    arguments = [argument for argument in sys.argv if not argument.startswith("hydra.sweep.dir=")]
    return words + plain(shlex.join(["python", *arguments, f"resume={shown(sweep_folder())}"]))


def sweep_folder() -> Path:
    """The folder of the present sweep."""
    return Path(to_absolute_path(HydraConfig.get().sweep.dir))


def override_of(folder: str) -> str:
    """The override that lets Hydra use the folder of an earlier sweep. Raises UserError if it is no such folder."""
    path = Path(folder).expanduser()
    if not path.is_dir() or (path / "config.yaml").exists():
        why = "it is one run, so leave out -m" if path.is_dir() else "no such folder"
        raise UserError(f"-m continues a sweep, but {folder} is not the folder of a sweep: {why}")
    check_links(path)
    if others := sorted(each.parent.name for each in path.glob(f"*/{TABLE}")):
        raise UserError(f"-m continues a sweep, but {folder} holds whole sweeps: name one of them, such as {others[0]}")
    quoted = str(path).replace('"', '\\"')
    return f'hydra.sweep.dir="{quoted}"'


def check_settings(arguments: Sequence[str]) -> None:
    """Raise UserError for a command that continues a sweep without its settings: it would train one of the defaults."""
    place = [each.partition("=")[2].strip("'\"") for each in arguments if each.startswith("hydra.sweep.dir=")]
    typed = [each for each in arguments if "=" in each and not each.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if not place or as_settings(typed):
        return
    folder = Path(place[-1]).expanduser()
    settings = [_settings(run) for run in _folders(folder)]
    if not settings and (path := folder / "multirun.yaml").is_file():  # it was stopped before its first run
        whole = parse(read_text(path, MOST_BYTES), path)
        settings = [as_settings(OmegaConf.select(whole, "hydra.overrides.task") or [])]
    if settings and all(settings):
        known = ", ".join(dict.fromkeys(key for each in settings for key in each))
        raise UserError(
            f"{place[-1]} is a sweep whose runs were started with {known}: repeat its command to continue it"
        )


def threads_of_each(side_by_side: int | None) -> str:
    """The CPU threads of each of several runs that share the CPUs of this machine. With None, all start at once: 1."""
    return str(max(1, joblib.cpu_count() // side_by_side) if side_by_side else 1)


def started(sweep: Path) -> list[Started]:
    """The runs in a sweep's folder, in the order of their names, where numbers count as numbers."""
    return [_read(folder) for folder in sorted(_folders(sweep), key=_order)]


def _folders(sweep: Path) -> Iterator[Path]:
    """The folders of the runs of a sweep, without those that were replaced."""
    for folder, below, names in os.walk(sweep):  # other processes may remove empty folders meanwhile
        if {"run.json", FAILED} & {*names}:
            below.clear()  # the folders of a run hold no runs
            yield Path(folder)
        below[:] = [name for name in below if name != REPLACED]


def _order(path: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for part, text in re.findall(r"(\d*)(\D*)", str(path))]


def _settings(folder: Path) -> dict[str, str]:
    """The settings with which the run of a folder was started. They are read again only if its files have changed."""
    files = [folder / "run.json", folder / FAILED]
    states = [(path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None for path in files]
    if folder not in _KNOWN or _KNOWN[folder][0] != states:  # each run of a sweep asks for those of all others
        first = (read_json(files[0]).get("starts") or [read_json(files[1])])[0]
        _KNOWN[folder] = states, as_settings(first.get("overrides", []))
    return _KNOWN[folder][1]


def _read(folder: Path) -> Started:
    failed, metrics = read_json(folder / FAILED), read_json(folder / "metrics.json")
    settings, monitor, value = _settings(folder), "", None
    if not metrics:
        return Started(folder, settings, "failed" if failed else UNFINISHED, "", None, failed.get("error", ""))
    split, _, name = str(metrics.get("monitored")).partition("/")
    known = metrics.get(split)
    if isinstance(known, dict) and isinstance(known.get(name), float):  # not so in a run of an older version
        monitor, value = f"{split}/{name}", known[name]
    path = folder / "config.yaml"
    most = OmegaConf.select(parse(read_text(path, MOST_BYTES), path), "trainer.max_epochs")
    early = isinstance(most, int) and 0 <= metrics["epochs"] < most
    return Started(folder, settings, "finished" + f" in epoch {metrics['epochs']}" * early, monitor, value, "")


def finished_runs(names: Sequence[str]) -> list[str]:
    """The runs that are meant: run folders, and the finished runs of sweeps and of patterns with *, ? or [.

    A name that means none of them is returned unchanged. Raises UserError for a link that leads out of a folder.
    """
    found: list[str] = []
    for name in names:
        path, members = Path(str(name)).expanduser(), []
        pattern = not path.exists() and bool(set(name) & set("*?["))
        folders = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))), key=_order) if pattern else [path]
        for folder in folders:
            if (folder / "config.yaml").exists() or (folder / "config.json").exists():
                if not pattern or (folder / "metrics.json").exists() or (folder / "config.json").exists():
                    members.append(str(folder))
            elif folder.is_dir() and not (pattern and folder.name == REPLACED):
                check_links(folder)
                members += [str(run.folder) for run in started(folder) if run.finished]
        found += members or [name]
    return list(dict.fromkeys(found))


def as_settings(overrides: Sequence[str]) -> dict[str, str]:
    """The settings {key: value} of overrides, without those that do not tell two runs of a sweep apart."""
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    return {key: value for key, _, value in pairs if key not in ELSEWHERE}


def find(sweep: Path, overrides: Sequence[str]) -> Started | None:
    """The run of a sweep that has these overrides, or None if it was not started."""
    wanted = as_settings(overrides)
    same = [folder for folder in _folders(sweep) if _settings(folder) == wanted]
    return _read(min(same, key=_order)) if same else None


def put_aside(run: Started, sweep: Path) -> None:
    """Move the folder of a run that is repeated to replaced/, because it may be of use. UserError if it is in use."""
    place = free(sweep / REPLACED / run.folder.name)
    place.parent.mkdir(exist_ok=True)
    with held(run.folder, new=False):  # no other process trains it
        run.folder.rename(place)


def free(folder: Path) -> Path:
    """A folder of this name, with a number if it has files other than those of a run that was killed at its start."""
    place, number = folder, 2
    while place.is_dir() and not all(path.name.startswith((LOCK, "events.out.")) for path in place.iterdir()):
        place, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return place


def record_failure(folder: Path, overrides: Sequence[str], error: str) -> None:
    """Write why a run failed, with its settings, into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FAILED, {"overrides": [plain(each) for each in overrides], "error": plain(error)})


def finish_sweep(sweep: Path) -> None:
    """Print and write the table of a sweep, and write the mean curves of its seeds.

    Raises UserError with a sentence that names all runs that failed or are not finished.
    """
    runs = started(sweep)
    if not runs:
        return
    groups = seed_groups(runs)
    rows = _rows(runs, groups)
    print(f"\n{table(rows)}\n", flush=True)
    write_atomically(sweep / TABLE, (table(rows, "markdown") + "\n").encode())
    for old in [*sweep.glob("mean*/events.*.mean"), *sweep.glob("*/mean*/events.*.mean")]:
        if (old.parents[1] / TABLE).exists() and old.parents[1] != sweep:  # those of another sweep
            continue
        old.unlink()  # an earlier end of this sweep may have had other groups
        if not any(old.parent.iterdir()):
            old.parent.rmdir()
    if groups:
        from vaelab.training.seeds import add_mean_curves

        drawn = [name for name, group in groups.items() if add_mean_curves(sweep / name, [run.folder for run in group])]
        if drawn:  # not without TensorBoard's files
            means = ", ".join(f"{shown(sweep / name)}/mean" for name in drawn)
            print(f"seeds    mean and mean ± s.d. of all curves: {means} ...", flush=True)
    print(f"table    {shown(sweep / TABLE)}", flush=True)
    open_ends = [f"{plain(run.folder.name)}: {run.error or run.status}" for run in runs if not run.finished]
    if open_ends:
        raise UserError(f"{len(open_ends)} of {len(runs)} runs are not finished: {'; '.join(open_ends)}")


def seed_groups(runs: Sequence[Started]) -> dict[str, list[Started]]:
    """The groups of at least two finished runs that differ only in the seed, by the settings that tell them apart.

    No two runs of a group have the same seed.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Started]] = {}
    keys = [key for key in _differing(runs) if key != "seed"]
    for run in runs:
        if run.finished and run.value is not None:
            groups.setdefault(tuple((key, run.settings.get(key, "default")) for key in keys), []).append(run)
    named: dict[str, list[Started]] = {}
    for settings, group in groups.items():
        if len({run.settings.get("seed") for run in group}) == len(group) > 1:
            name = folder_name("_".join(f"{key}-{value}" for key, value in settings))
            named[f"{name}_{len(named)}" if name in named else name] = group
    return named


def _differing(runs: Sequence[Started]) -> list[str]:
    """The settings in which runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def _rows(runs: Sequence[Started], groups: Mapping[str, Sequence[Started]]) -> list[list[str]]:
    keys, monitors = _differing(runs), sorted({run.monitor for run in runs} - {""})
    rows = [["run", *keys, *monitors, "status"]]
    for run in runs:
        values = [_number(run.value) if run.monitor == each and run.value is not None else "–" for each in monitors]
        cells = [cut(run.settings.get(key, "–"), 24) for key in keys]
        rows.append([cut(plain(run.folder.name), 30), *cells, *values, run.status])
    for group in groups.values():
        settings = group[0].settings
        cells = ["" if key == "seed" else cut(settings.get(key, "–"), 24) for key in keys]
        rows.append([f"mean ± s.d., n = {len(group)}", *cells, *_spreads(group, monitors), ""])
    return rows


def _spreads(group: Sequence[Started], monitors: Sequence[str]) -> Iterator[str]:
    for each in monitors:
        values = [run.value for run in group if run.monitor == each and run.value is not None]
        whole = len(values) == len(group)
        yield f"{_number(statistics.mean(values))} ± {rounded(statistics.stdev(values))}" if whole else "–"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
