"""Read the config of a run, resume with it, and check which classes it names.

A config can come from a stranger. The parts of model, data and objective are classes of this package. Resuming also
builds optimisers and schedulers of torch, and the classes of Lightning in `LIGHTNING`, which touch no files or only
those of the run's folder. Any other class needs trust in the module that defines it. A config with interpolations, with
references to other files, or with a path that leads out of the run's folder raises UserError.
"""

import importlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from vaelab.errors import UserError
from vaelab.files import MOST_LEVELS, check_links, check_values, read_text

READ = ("model", "data", "objective")  # the sections that evaluate.py, generate.py, export.py and load_run build
RESUMED = ("module", "optimizer", "scheduler", "trainer", "callbacks", "logger")  # those that only resuming builds
OWN = {  # the modules that may define the class of a key; for all other keys it is ("vaelab",), and resuming adds TORCH
    "model._target_": ("vaelab.models",),
    "data._target_": ("vaelab.data",),
    "module._target_": ("vaelab.training", "vaelab.extensions"),
}
TORCH = ("torch.optim",)
LIGHTNING = (
    *("Trainer", "CSVLogger", "TensorBoardLogger"),
    *("DeviceStatsMonitor", "EarlyStopping", "EMAWeightAveraging"),
    *("GradientAccumulationScheduler", "LearningRateFinder", "LearningRateMonitor", "ModelSummary", "RichModelSummary"),
    *("RichProgressBar", "StochasticWeightAveraging", "Timer", "TQDMProgressBar", "WeightAveraging"),
)
RENAMED = {  # classes of version 0.1
    "vaelab.posteriors.Flow": "vaelab.posteriors.FlowPosterior",
    "vaelab.posteriors.PowerSpherical": "vaelab.posteriors.Hyperspherical",
    "vaelab.priors.Flow": "vaelab.priors.FlowPrior",
}
PLACES = {  # what the files of a data set that can be downloaded are, below data.root
    **dict.fromkeys(("MNISTDataModule", "EMNISTDataModule", "QMNISTDataModule"), "{}"),  # a folder with its name
    "CIFAR10DataModule": "cifar-10-batches-py",
    "SVHNDataModule": "test_32x32.mat",
    "OmniglotDataModule": "omniglot-py",
}
MOST_BYTES = 50_000  # of a config; a usual one has 3,000


def read_config(folder: Path, resuming: bool = False, trust: Sequence[str] = ()) -> DictConfig:
    """Read the config of a run or of an exported model. Only a resumed run builds more than model, data and objective.

    Raises UserError if the folder is not a run, if a link in it leads elsewhere, if its config is not plain, or if a
    part that is built has a `_target_` that is not allowed.
    """
    path = folder / "config.yaml"
    if not path.is_file() and (folder / "config.json").is_file():
        path = folder / "config.json"  # JSON is YAML
    if not path.is_file():
        why = "it has no config.yaml" if folder.is_dir() else "it is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder} is not a run: {why}; the folder of a run is needed, such as logs/RUN")
    check_links(folder)
    trust = [module for module in ([trust] if isinstance(trust, str) else trust) if module]
    cfg = parse(read_text(path, MOST_BYTES), path)
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
        if (resuming or key.split(".")[0] in READ) and (why := _refusal(key, value, trust)):
            raise UserError(f"{path} names {value}, {why}")
    data, sections = plain["data"], (*READ, *(RESUMED if resuming else ()))
    odd = [part for part in sections if not isinstance(plain.get(part, {}), dict)]
    texts = ("dataset", "binarization", *(["root"] if "root" in data else []))  # generated images are in no folder
    odd += [f"data.{name}" for name in texts if type(data.get(name)) is not str]
    odd += [f"data.{name}" for name in ("dataset", "used") if not re.fullmatch(r"[\w-]+", str(data.get(name)))]
    if odd:
        raise UserError(f"{path} is not the config of a run: its {odd[0]} is missing or has no meaning")
    return cfg


def parse(text: str, path: Path) -> DictConfig:
    """The config in the text of a file. Raises UserError before a small text takes much time or memory."""
    if len(text) > MOST_BYTES:
        raise UserError(f"{path} has {len(text):,} characters, but a config has at most {MOST_BYTES:,}")
    level = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or level > MOST_LEVELS:  # aliases could repeat a part a billion times
                raise ValueError(f"it has an alias, or more than {MOST_LEVELS} levels")
        cfg: Any = OmegaConf.load(io.StringIO(text))
    except Exception as error:  # from YAML or OmegaConf
        raise UserError(f"{path} cannot be read: {error}") from error
    check_values(OmegaConf.to_container(cfg), path)
    return cfg


def saved_config(folder: Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> DictConfig:
    """The config of a run to resume, with overrides of single values.

    Raises UserError as `read_config` does, for a path that leads out of the folder, for an override of a whole group,
    and for a setting that must stay the same during a run.
    """
    saved = read_config(folder, resuming=True, trust=trust)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is an exported model, which has no checkpoints: resume the run itself")
    if not any(override.startswith("data.root=") for override in overrides):
        check_root(saved.data)
    ConfigStore.instance().store("resumed", saved)
    sweep = GlobalHydra.instance().hydra  # of the command, if it is a sweep
    GlobalHydra.instance().clear()
    try:
        with initialize(config_path=None, version_base="1.3"):
            cfg = compose("resumed", list(overrides))
    finally:
        GlobalHydra.instance().hydra = sweep
    before, after = dict(settings(saved)), dict(settings(cfg))
    typed = [override.split("=")[0].lstrip("+~") for override in overrides]
    for key in before | after:
        old, new, group = before.get(key), after.get(key), key.split(".")[0]
        if group in RESUMED and key not in typed and _leads_out(folder, key, new):
            raise UserError(f"{key} of {folder} is {new}, outside of the run's folder: {key}=... sets another path")
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
        if scheduled or (group in ("seed", "steps", "name", *READ) and key != "data.root"):
            because = ", since a scheduler sets it" if scheduled else ""
            remedy = "Set trainer.max_epochs to change its length" if key == "steps" else "Start a new run to change it"
            raise UserError(
                f"{key} was {old} in {folder} and cannot become {new}: a resumed run keeps it{because}. {remedy}"
            )
    if cfg.data.get("used") == "MNIST-5k":  # it took the place of MNIST, which may be there now
        cfg.data.dataset = cfg.data.used
    return cfg


def check_root(data: DictConfig) -> None:
    """Raise UserError if the files of a data set are missing at a place that only the config of a run names.

    The data module would download them to this place. Places in the working directory are fine.
    """
    name = str(data.get("used") or data.dataset)
    place = PLACES.get(str(data._target_).rpartition(".")[2])
    if place is None or name == "MNIST-5k":
        return
    folder = Path(data.root).expanduser() / place.format(name.partition("-")[0])  # EMNIST's splits share a folder
    if not folder.exists() and not folder.resolve().is_relative_to(Path.cwd()):
        raise UserError(f"{folder}, where the run found its data, does not exist: data.root=... names their folder")


def settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all groups, lists and single values below a node of a config, not resolved."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node)
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield f"{prefix}{name}", child
        yield from settings(child, f"{prefix}{name}.")


def foreign(cfg: Any, resuming: bool = False) -> list[str]:
    """The modules that have to be trusted, because parts of a config are classes of theirs."""
    targets = {key: value for key, value in settings(cfg) if key.endswith("_target_")}
    names = [value for key, value in targets.items() if resuming or key.split(".")[0] in READ if _refusal(key, value)]
    return sorted({str(name).rpartition(".")[0] for name in names})


def _refusal(key: str, target: Any, trust: Sequence[str] = ()) -> str:
    """Why a `_target_` is not built, or an empty text for a class of an allowed package or of a trusted module.

    Only modules of these packages are imported. A name that a trusted module has only imported is refused.
    """
    found, missing, read = None, "", key.split(".")[0] in READ
    own = OWN.get(key, ("vaelab",) if read else ("vaelab", *TORCH))
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    if _within(module, ("vaelab", *TORCH, "lightning.pytorch", *trust)):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # a bug in a module that exists
                raise
            if any(f"{trusted}.".startswith(f"{error.name}.") for trusted in trust):
                missing = str(error)
    home = str(getattr(found, "__module__", ""))
    listed = not read and _within(home, ("lightning.pytorch",)) and getattr(found, "__name__", "") in LIGHTNING
    if (isinstance(found, type) and (_within(home, own) or listed)) or _within(home, trust):
        return ""
    if _within(module, trust):
        if missing:
            return f"which cannot be imported: {missing}"
        return f"which {module} does not define: it is not run"
    mend = f"; trust=[{module}] allows it, if you trust its author" if module else ""
    return f"which is not a class of {', '.join(own)}: it is not run{mend}"


def _within(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of these packages, or lies in one of them."""
    return f"{module}.".startswith(tuple(f"{package}." for package in packages))


def _leads_out(folder: Path, key: str, value: Any) -> bool:
    """Whether a text, taken as a path in a run's folder, leads to another place or an address.

    {folder} in it is the folder. A key such as `dirpath` or `save_dir` is relative to the working directory.
    """
    if not isinstance(value, str | bytes | Path):
        return False
    path, root = os.fsdecode(value), os.path.realpath(folder)
    if "{folder}" in path:
        path = path.removeprefix("sqlite:///").replace("{folder}", root)
    base = Path.cwd() if key.endswith(("path", "save_dir")) else Path(root)
    inside = Path(os.path.realpath(base / path)).is_relative_to(root)
    return not inside or path.startswith("~") or "$" in path or "://" in path
