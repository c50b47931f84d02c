"""A run's config: reading it, resuming with it, and what it may build.

A config can come from a stranger. A `_target_` is built only if it is a class of this package, one of torch's
optimisers and schedulers, or one of Lightning's callbacks and loggers or its Trainer. Nothing is interpolated, and
nothing is composed from other files.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError

ALLOWED = ("vaelab.", "torch.optim.", *(f"lightning.pytorch.{part}." for part in ("trainer", "callbacks", "loggers")))
MODULES = {  # the modules that the class of a key must be of
    "model._target_": ("vaelab.models.",),
    "data._target_": ("vaelab.data.",),
    "module._target_": ("vaelab.training.", "vaelab.extensions."),
}
RENAMED = {  # classes of version 0.1
    "vaelab.posteriors.Flow": "vaelab.posteriors.FlowPosterior",
    "vaelab.posteriors.PowerSpherical": "vaelab.posteriors.Hyperspherical",
    "vaelab.priors.Flow": "vaelab.priors.FlowPrior",
    "vaelab.training.Figures": "vaelab.training.Pictures",
}


def read_config(folder: Path, resuming: bool = False) -> DictConfig:
    """The config of a run or of an exported model. Only its model, data and objective are built, unless it is resumed.

    Raises UserError if the folder is no run, if its config is not plain, or if a part that is built has a `_target_`
    that is not allowed.
    """
    path = folder / "config.yaml"
    if not path.is_file() and (folder / "config.json").is_file():
        path = folder / "config.json"  # JSON is YAML
    if not path.is_file():
        why = "it has no config.yaml" if folder.is_dir() else "it is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder} is no run: {why}; the folder of a run is needed, such as logs/RUN")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:  # of YAML, of OmegaConf, of the file
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    plain: Any = OmegaConf.to_container(cfg)
    wholes = [plain.get(part) for part in ("model", "data")] if isinstance(cfg, DictConfig) else [None]
    if not isinstance(cfg, DictConfig) or not all(isinstance(part, dict) and "_target_" in part for part in wholes):
        raise UserError(f"{path} is not the config of a run: it has no model and data")
    for key, value in settings(plain):
        if key in ("defaults", "hydra") or (isinstance(value, str) and "${" in value):  # could bring in a `_target_`
            raise UserError(f"{path} is not the config of a run: its {key} is {value}, and a run writes plain values")
        if not key.endswith("_target_"):
            continue
        if isinstance(value, str) and value in RENAMED:
            OmegaConf.update(cfg, key, RENAMED[value])
            value = RENAMED[value]
        built = key.startswith(("model.", "data.", "objective."))
        if built or resuming:
            if value == "vaelab.training.FastTrainer":
                raise UserError(f"{path} is of vaelab 0.1, whose Trainer is gone: this run cannot be resumed here")
            _check_target(value, path, MODULES.get(key, ALLOWED[:1] if built else ALLOWED))
    return cfg


def saved_config(folder: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a run to resume, with overrides of single values.

    Raises UserError as `read_config` does, for an override of a whole group, and for an override that cannot change in
    the middle of a run.
    """
    saved = read_config(folder, resuming=True)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is an exported model, which has no checkpoints to go on from")
    with initialize_config_dir(str(folder.absolute()), version_base="1.3"):
        cfg = compose("config", list(overrides))
    for key, value in settings(saved):
        if key.endswith("_target_") and OmegaConf.select(cfg, key) in RENAMED:
            OmegaConf.update(cfg, key, value)
    before, after = dict(settings(saved)), dict(settings(cfg))
    for key in before | after:
        old, new, group = before.get(key), after.get(key), key.split(".")[0]
        if old == new or (isinstance(old, dict) and isinstance(new, dict)):
            continue
        if key.endswith("_target_"):
            raise UserError(f"{key}={new}: a resumed run keeps its parts: start a new run")
        if isinstance(old, dict) and key == group:
            raise UserError(
                f"{key}={new} would replace a whole group of {folder}: a resumed run takes overrides of single "
                f"values, such as trainer.max_epochs=200; start a new run to change {key}"
            )
        scheduled = bool(cfg.get("scheduler")) and key == "optimizer.lr"
        if scheduled or (group in ("seed", "steps", "name", "model", "objective", "data") and key != "data.root"):
            because = ", since a scheduler sets it" if scheduled else ""
            raise UserError(
                f"{key} was {old} in {folder} and cannot become {new}: a resumed run keeps it{because}. "
                "Start a new run to change it"
            )
    return cfg


def settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below a node of a config: groups, lists and single values, as written."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node)
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield f"{prefix}{name}", child
        yield from settings(child, f"{prefix}{name}.")


def _check_target(target: Any, path: Path, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless a `_target_` names a class of an allowed package. Nothing else is imported."""
    found = None
    if isinstance(target, str) and target.startswith(("vaelab.", "torch.optim.", "lightning.pytorch.")):
        module, _, name = target.rpartition(".")
        with contextlib.suppress(Exception):  # a module that cannot be imported has nothing of that name
            found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(allowed):
        raise UserError(f"{path} names {target}, which is none of {', '.join(allowed)}: it is not run")
