"""Measure finished runs: `python evaluate.py run=logs/RUN [setting=value ...]`; `--help` lists them."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vaelab import cli
from vaelab.errors import UserError


def evaluate(cfg: DictConfig, _: Path) -> None:
    """Measure on the test images: print a table, write evaluation.json, add to the run's page in TensorBoard."""
    import torch

    from vaelab import runs
    from vaelab.evaluation import measure, report

    torch.distributions.Distribution.set_default_validate_args(False)
    folders = [cfg.run] if not cfg.run or isinstance(cfg.run, str) else list(cfg.run)
    if cfg.images:
        return encode(cfg)
    protocols, configs = {}, {}
    for folder in folders:  # all of them, before the first is measured
        run = runs.open_run(folder, cfg.data.root, cfg.device)
        protocols[folder] = measure.protocol(run.model, run.data, cfg.num_samples, cfg.num_images, cfg.seed)
        configs[folder] = dict(runs.settings(run.cfg))
    if not cfg.across_protocols:
        report.check_protocols(protocols)
    records = {folder: measured(folder, protocols[folder], cfg, reuse=len(folders) > 1) for folder in folders}
    if len(folders) == 1:
        print(report.table(records[folders[0]]))
    else:
        print(report.comparison(records, report.seed_groups(configs)))


def encode(cfg: DictConfig) -> None:
    """Write the codes of a folder of images to codes.npz in the run's folder."""
    from vaelab import runs
    from vaelab.data.folder import write_codes

    if not isinstance(cfg.run, str):
        raise UserError(f"run={cfg.run}: codes are written for one run at a time, such as run=logs/RUN")
    run = runs.open_run(cfg.run, cfg.data.root, cfg.device)
    path = run.folder / "codes.npz"
    count = write_codes(run.model, run.data, cfg.images, path)
    print(f"{path}: names and codes of {count:,} images")


def measured(folder: str, protocol: dict[str, Any], cfg: DictConfig, reuse: bool) -> dict[str, Any]:
    """The record of a run; with `reuse`, that of its evaluation.json if weights and protocol are the same."""
    from vaelab import figures, pictures, runs
    from vaelab.evaluation.measure import measure
    from vaelab.training import tensorboard

    run = runs.open_run(folder, cfg.data.root, cfg.device)
    path, weights = run.folder / "evaluation.json", runs.digest(run.model)
    old = json.loads(path.read_text()) if path.is_file() else {}
    known = old.get("protocol", {}) if old.get("weights") == weights else {}
    if reuse and known == protocol:
        return old
    if not os.access(run.folder, os.W_OK):  # before minutes are spent
        raise UserError(f"{folder} cannot be written to, and evaluation.json goes there: measure a copy of it")
    for note in runs.notes(run.cfg, run.data):
        print(note)
    print(f"measuring {folder} on {run.data.description}", flush=True)
    measurement = measure(run.model, run.data, cfg.num_samples, cfg.num_images, cfg.seed)
    record = {**measurement.record, "weights": weights}
    if any(known.get(size, 0) > protocol[size] for size in ("num_samples", "test_images")):
        print(f"{path} stays as it is: it has K = {known['num_samples']:,}, {known['test_images']:,} test images")
        return record
    runs.write_json(path, record)
    if measurement.pairs is not None:
        title = "The samples nearest to training images, and right of each that image"
        nearest = figures.framed(figures.grid(measurement.pairs, 8), title)
        command, about = shlex.join(["python", *sys.argv]), f"{run.folder.name}: {run.data.description}"
        pictures.save(nearest, run.folder / "figures" / "nearest.png", command, about)
    tensorboard.add_evaluation(run.folder, measurement, *run.data.images("test", len(measurement.codes)))
    return record


if __name__ == "__main__":
    cli.main(evaluate, Path(__file__).parent / "configs", "evaluate")
