"""A run's folder and its files. All of them hold plain data.

| file | content |
|---|---|
| config.yaml | the resolved config |
| run.json | each start: command, overrides, versions, git state, machine |
| train.log | the messages of the run, with their times |
| metrics.json | the metrics of train.py, with their protocol |
| metrics.csv | the points of the curves, a row each |
| weights.pt | the state dict of the model, with the weights that were tested |
| checkpoints/ | best.ckpt and last.ckpt |
| pictures/ | the latest pictures |
| events.out.* | the curves and pictures for TensorBoard |
| evaluation.json | the metrics of evaluate.py, with their protocol |
| prior.pt | the prior over the codes of a VQ-VAE, which train_prior.py fits |
"""

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError
from vaelab.files import check_values, png_size, read_bytes, read_text, write_atomically, write_plain
from vaelab.runs.config import parse, settings
from vaelab.runs.log import log, rank, shown
from vaelab.text import plain

if TYPE_CHECKING:
    from vaelab.training import VAEModule

LOCK = ".lock"
PACKAGES = ("vaelab", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")

MOST_JSON, MOST_PNG = 10**7, 10**8  # bytes
ELSEWHERE = ("data.root", "resume", "trust")  # settings that a later start of the same run may change
LARGEST = 1e100  # a number of a run is smaller
# What an earlier version did not write to evaluation.json
LATER: dict[str, Any] = {
    **{"caveats": [], "absent": {}, "variance_per_dim": [], "rate_per_dim": None, "collapse": None},
    **{"references": {}, "missing": None, "predictive": None},
}
HISTOGRAM = ({"mean": float, "sd": float, "shares": [float]},)
CHECK = {**dict.fromkeys(("distance", "p_value", "floor"), float), **dict.fromkeys(("samples", "tests"), HISTOGRAM)}
# What the rest of the package reads from each file: the type of each value, a list of one form, a dict with a form for
# each key, and a tuple with the form of a value that can be missing or null. float is a finite number, and ... stands
# for all other keys
FORMS: dict[str, Any] = {
    "metrics.json": {
        "protocol": {"dataset": str, "images": {"train": int, "test": int}, "binarization": {"test": str}},
        "unit": str,
        "test": {...: float},
        "epochs": int,
        "steps": int,
    },
    "evaluation.json": {
        "protocol": {"num_samples": int, "test_images": int, "samples": (int,)},
        "metrics": {...: float},
        "standard_errors": {...: float},
        "caveats": [str],
        "absent": {...: str},
        "variance_per_dim": [float],
        "rate_per_dim": ([float],),
        "collapse": (str,),
        "references": {...: {...: float}},
        "missing": (str,),
        "predictive": ({...: {**CHECK, "edges": ([float],)}},),
    },
    "run.json": {
        "starts": [
            {
                "overrides": [str],
                "time": (str,),
                "git": ({"commit": str, "modified": bool},),
                "python": (str,),
                "versions": ({...: str},),
                "machine": ({"processor": (str,)},),
            }
        ]
    },
    "failed.json": {"overrides": [str], "error": str},
}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON. A number that is not finite is an error."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read metrics.json, evaluation.json, run.json or failed.json. The result is empty if there is no such file.

    Raises UserError for a file that is not JSON, and for one that lacks what this project writes.
    """
    if not path.is_file():
        return {}
    text = read_text(path, MOST_JSON)
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    check_values(content, path)
    if isinstance(content, dict) and path.name == "evaluation.json":
        if "figures" in content:  # the name in version 0.1
            content["metrics"] = content.pop("figures")
        content = {**LATER, **content}
    for key in _misfits(content, FORMS[path.name]):
        raise UserError(f"{path} is not what a run writes, see its {key}: restore this file, or move it away")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _misfits(value: Any, form: Any, key: str = "content") -> Iterator[str]:
    """Yield the keys whose values are missing or do not have their form."""
    if isinstance(form, dict) and isinstance(value, dict):
        for name in {**form, **value} if ... in form else form:
            if name is not ...:
                yield from _misfits(value.get(name), form.get(name, form.get(...)), str(name))
    elif isinstance(form, list) and isinstance(value, list):
        for each in value:
            yield from _misfits(each, form[0], key)
    elif isinstance(form, tuple):
        if value is not None:
            yield from _misfits(value, form[0], key)
    elif form in (int, float):
        if type(value) not in (int, form) or not -LARGEST < value < LARGEST:  # also true if it is not a number
            yield key
    elif isinstance(form, dict | list) or type(value) is not form:
        yield key


def read_pictures(run: Path, name: str) -> bytes | None:
    """The PNG of a picture in a run's folder, or None if it does not exist. Raises UserError for any other content."""
    paths = (run / folder / f"{name}.png" for folder in ("pictures", "figures"))  # the second is from version 0.1
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    content = read_bytes(path, MOST_PNG)
    png_size(content, path)
    return content


@contextlib.contextmanager
def held(folder: Path, new: bool) -> Iterator[None]:
    """Hold a run's folder, so that no other process writes to it meanwhile.

    Raises UserError if another process holds it, or if it already has a run that a `new` one would replace.
    """
    if rank() > 0:
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{shown(folder)} is in use: another process trains this run") from None
    try:
        if new and (folder / "config.yaml").is_file():
            again = shlex.quote(f"resume={shown(folder)}")
            text = f"{shown(folder)} has a run already: {again} continues it, another hydra.run.dir starts a new one"
            raise UserError(text)
        yield
    finally:
        lock.release()
        if folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK]:  # nothing was written
            (folder / LOCK).unlink()


def record_start(folder: Path, cfg: DictConfig) -> None:
    """Add this start to run.json (overrides, versions, git state, machine), then write config.yaml.

    Raises UserError for a config that could not be read again.
    """
    if rank() > 0:
        return
    config, text = folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True)
    parse(text, config)  # otherwise the run could not be read again
    path = folder / "run.json"
    starts = read_json(path).get("starts", [])
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    if HydraConfig.initialized():
        overrides = list(HydraConfig.get().overrides.task)
    start = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": plain(" ".join(["python", *sys.argv])),
        "overrides": [plain(override) for override in overrides],
        "git": _git_state(),
        "python": platform.python_version(),
        "versions": _versions(),
        "machine": {"system": platform.platform(), "processor": _processor(), "cpus": os.cpu_count()},
    }
    write_json(path, {"starts": [*starts, start]})  # a sweep that is killed here knows the run by it
    write_atomically(config, text.encode())


def _versions() -> dict[str, str]:
    """The versions of the packages that a run depends on, if they are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    """The name of the CPU, which only Linux's /proc/cpuinfo holds in full."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _named(device: Any) -> str:
    """The device with the name of its GPU, such as cuda:0 (NVIDIA H200)."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _git_state() -> dict[str, Any] | None:
    """The commit, and whether the working tree differs from it. None outside a repository."""
    command = ["git", "status", "--porcelain=v2", "--branch"]  # it prints "# branch.oid COMMIT", then the changed files
    try:
        status = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = status.stdout.splitlines()
    return {"commit": lines[0].split()[-1], "modified": not all(line.startswith("#") for line in lines)}


def hyperparameters(folder: Path, cfg: DictConfig, module: "VAEModule", data: Any) -> dict[str, Any]:
    """The settings of a run in a table of runs: its true data and sizes, and what was typed at one of its starts."""
    sizes = {
        "data.used": cfg.data.used,
        "model.latent_dim": module.model.latent_dim,
        "data.batch_size": cfg.data.batch_size,
        "trainer.max_epochs": cfg.trainer.max_epochs,
        "train_images": len(data.splits["train"][0]),
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
    }
    typed = [override for start in read_json(folder / "run.json").get("starts", []) for override in start["overrides"]]
    values, chosen = dict(settings(cfg)), {}
    for override in typed:
        key, equals, text = override.lstrip("+~").partition("=")
        if equals and key not in ELSEWHERE and key.split(".")[0] not in ("hydra", "logger", "name"):
            value = values.get(key)
            chosen[key] = value if isinstance(value, bool | int | float) else text
    return chosen | sizes


def finish(
    folder: Path,
    module: "VAEModule",
    protocol: dict[str, Any],
    trainer: Any,
    seconds: float,  # the duration of the fit
    kept: tuple[str, int],  # which weights the module holds, "best", "average" or "last", and their step
) -> None:
    """Write weights.pt, the state dict of the model, and metrics.json."""
    if rank() > 0:
        return
    weights, step = kept
    if weights == "last" and module.monitor and trainer.global_step:
        log.info("weights  the last weights are kept: no epoch was validated, or nothing saves the best")
    write_plain(folder / "weights.pt", module.model.state_dict())
    metrics: dict[str, dict[str, float]] = {}
    for name, value in module.metrics.latest.items():
        split, metric = name.split("/")
        metrics.setdefault(split, {})[metric] = value
    content = {
        "protocol": protocol,
        "unit": "nats per image: sums over pixels and latent dimensions, means over images; squared_error in squared "
        "pixel values, perplexity in codes, principal_angle in degrees, accuracy a share of the images",
        "weights": {"train": "changing, over the last epoch", "val": weights, "test": weights, "step": step}
        if "train" in metrics
        else {"val": weights, "test": weights, "step": step},
        **metrics,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "fit_seconds": seconds,
        "device": _named(trainer.strategy.root_device),
        "best_checkpoint": "checkpoints/best.ckpt" if weights != "last" else None,
        "monitored": module.metrics.name(module.monitor),
    }
    write_json(folder / "metrics.json", content)
