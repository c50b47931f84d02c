"""Read the config of a run, resume with it, and check which classes it names.

A config can come from a stranger. A `_target_` is built only if it is a class of this package, an optimiser or a
scheduler of torch, or a callback, a logger or the Trainer of Lightning. A config with interpolations, or with
references to other files, raises UserError.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError

ALLOWED = ("vaelab.", "torch.optim.", *(f"lightning.pytorch.{part}." for part in ("trainer", "callbacks", "loggers")))
PACKAGES = ("vaelab.", "torch.optim.", "lightning.pytorch.")  # the only ones that are imported without trust
MODULES = {  # the modules that may define the class of a key
    "model._target_": ("vaelab.models.",),
    "data._target_": ("vaelab.data.",),
    "module._target_": ("vaelab.training.", "vaelab.extensions."),
}
RENAMED = {  # classes of version 0.1
    "vaelab.posteriors.Flow": "vaelab.posteriors.FlowPosterior",
    "vaelab.posteriors.PowerSpherical": "vaelab.posteriors.Hyperspherical",
    "vaelab.priors.Flow": "vaelab.priors.FlowPrior",
}


def read_config(folder: Path, resuming: bool = False, trust: Sequence[str] = ()) -> DictConfig:
    """Read the config of a run or of an exported model. Only a resumed run builds more than model, data and objective.

    Raises UserError if the folder is not a run, if its config is not plain, or if a part that is built has a `_target_`
    that is not allowed.
    """
    path = folder / "config.yaml"
    if not path.is_file() and (folder / "config.json").is_file():
        path = folder / "config.json"  # JSON is YAML
    if not path.is_file():
        why = "it has no config.yaml" if folder.is_dir() else "it is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder} is not a run: {why}; the folder of a run is needed, such as logs/RUN")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:  # from YAML, OmegaConf or the file system
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    plain: Any = OmegaConf.to_container(cfg)
    wholes = [plain.get(part) for part in ("model", "data")] if isinstance(cfg, DictConfig) else [None]
    if not isinstance(cfg, DictConfig) or not all(isinstance(part, dict) and "_target_" in part for part in wholes):
        raise UserError(f"{path} is not the config of a run: it has no model and data")
    if resuming and "module" not in plain:
        raise UserError(f"{path} is from vaelab 0.1, which trained in another way: start a new run")
    for key, value in settings(plain):
        if key in ("defaults", "hydra") or (isinstance(value, str) and "${" in value):  # it could add a `_target_`
            raise UserError(f"{path} is not the config of a run: its {key} is {value}, but all values must be plain")
        if not key.endswith("_target_"):
            continue
        if isinstance(value, str) and value in RENAMED:
            OmegaConf.update(cfg, key, RENAMED[value])
            value = RENAMED[value]
        built = key.startswith(("model.", "data.", "objective."))
        if built or resuming:
            _check_target(value, path, MODULES.get(key, ALLOWED[:1] if built else ALLOWED), trust)
    return cfg


def saved_config(folder: Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> DictConfig:
    """The config of a run to resume, with overrides of single values.

    Raises UserError as `read_config` does, for an override of a whole group, and for a setting that must stay the same
    during a run.
    """
    saved = read_config(folder, resuming=True, trust=trust)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is an exported model, which has no checkpoints: resume the run itself")
    with initialize_config_dir(str(folder.absolute()), version_base="1.3"):
        cfg = compose("config", list(overrides))
    before, after = dict(settings(saved)), dict(settings(cfg))
    for key in before | after:
        old, new, group = before.get(key), after.get(key), key.split(".")[0]
        if old == new or (isinstance(old, dict) and isinstance(new, dict)):
            continue
        if key.endswith("_target_"):
            raise UserError(f"{key}={new}: a resumed run keeps its parts, so start a new run")
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
    if cfg.data.get("used") == "MNIST-5k":  # it took the place of MNIST, which may be there now
        cfg.data.dataset = cfg.data.used
    return cfg


def settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all groups, lists and single values below a node of a config, not resolved."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node)
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield f"{prefix}{name}", child
        yield from settings(child, f"{prefix}{name}.")


def foreign(cfg: Any, parts: Sequence[str] = ("model", "data", "objective")) -> list[str]:
    """The modules outside vaelab, torch and Lightning whose classes some parts of a config name."""
    targets = [str(value) for key, value in settings(cfg) if key.endswith("_target_") and key.split(".")[0] in parts]
    return sorted({target.rpartition(".")[0] for target in targets if not target.startswith(PACKAGES)})


def _check_target(target: Any, path: Path, allowed: tuple[str, ...], trust: Sequence[str]) -> None:
    """Raise UserError unless a `_target_` names a class of an allowed package, or of a module that the user trusts.

    No other module is imported.
    """
    found = None
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if module in trust:
        return
    if isinstance(target, str) and target.startswith(PACKAGES):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # a bug in a module that exists
                raise
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(allowed):
        packages = ", ".join(name.rstrip(".") for name in allowed)
        mend = f"; trust=[{module}] allows it, if you trust its author" if module else ""
        raise UserError(f"{path} names {target}, which is not a class of {packages}: it is not run{mend}")
