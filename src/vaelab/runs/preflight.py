"""Checks at the start of a run: settings that no part checks, and settings that this machine does not support."""

import inspect
from typing import TYPE_CHECKING, Any

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vaelab import checks
from vaelab.errors import UserError
from vaelab.runs.building import processes
from vaelab.runs.config import settings
from vaelab.runs.log import rank

if TYPE_CHECKING:
    from vaelab.data import ImageDataModule
    from vaelab.interfaces import GenerativeModel

PARTS = ("posterior", "prior", "likelihood")  # the parts of a model that are chosen with a slash
# Weights in 16 bits are not offered, because they round away most of an optimiser's updates
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
OWN = {  # arguments of the Trainer that train.py sets
    "logger": "logger=...",
    "callbacks": "callbacks.NAME._target_=...",
    "plugins": "train.py has its own plugin, which writes checkpoints",
    "default_root_dir": "hydra.run.dir=FOLDER",
}


def check_config(cfg: DictConfig) -> None:
    """Raise UserError for settings that no part checks, that exclude each other, or that this machine cannot run."""
    import joblib
    import torch

    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: the seed is a whole number from 0 to 2^32 - 1")
    checks.whole(steps=cfg.steps)
    if cfg.data.get("used") is not None and not cfg.resume:
        raise UserError(
            f"data.used={cfg.data.used}: the run itself writes the data set that it used here: leave it out"
        )
    for name, place in OWN.items():
        if name in cfg.trainer:
            raise UserError(f"trainer.{name} is set elsewhere: {place}")
    for name in ("max_epochs", "log_every_n_steps", "accumulate_grad_batches", "limit_train_batches"):
        value = cfg.trainer.get(name)
        if name == "limit_train_batches" and type(value) is float and value:
            checks.share(**{f"trainer.{name}": value})
        elif value is not None and not (name == "max_epochs" and value == -1 and cfg.trainer.max_steps > 0):
            checks.whole(0 if name == "max_epochs" else 1, **{f"trainer.{name}": value})
    if cfg.trainer.get("limit_test_batches") == 0:
        raise UserError("trainer.limit_test_batches=0: a run ends with its test, so leave some test images")
    if cfg.trainer.get("gradient_clip_val") is not None:
        checks.positive(**{"trainer.gradient_clip_val": cfg.trainer.gradient_clip_val})
    if "lr" in cfg.optimizer:
        checks.positive(**{"optimizer.lr": cfg.optimizer.lr})
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
    each, cpus = processes(cfg) // cfg.trainer.get("num_nodes", 1), joblib.cpu_count()
    if each > cpus and (accelerator == "cpu" or not gpu):
        raise UserError(f"trainer.devices={cfg.trainer.devices} needs a CPU for each process: set at most {cpus}")
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and cfg.trainer.get("strategy") == "ddp":
        raise UserError(
            "trainer.strategy=ddp starts its processes with the command line of the whole sweep: "
            "start each run with its own command"
        )
    if rank() > 0 and processes(cfg) == 1:
        raise UserError(
            f"this is process {rank()} of several, but trainer.devices={cfg.trainer.devices} trains in one: use "
            "trainer=ddp with trainer.devices=PROCESSES of each node and trainer.num_nodes=NODES"
        )
    zeros = [key for key in ("data.val_size", "trainer.limit_val_batches") if OmegaConf.select(cfg, key) == 0]
    for name, callback in cfg.callbacks.items():
        if isinstance(callback, str):
            raise UserError(f"callbacks.{name}={callback}: name a class with callbacks.{name}._target_={callback}")
        monitor = str((callback or {}).get("monitor"))
        if "patience" in (callback or {}):
            checks.whole(0, **{f"callbacks.{name}.patience": callback.patience})
        if zeros and (monitor == "auto" or monitor.startswith("val/")):
            raise UserError(
                f"callbacks.{name} has monitor={monitor}, but {zeros[0]}=0 leaves no validation images: "
                f"leave it out, or set {zeros[0]} above zero"
            )


def check_arguments(cfg: DictConfig) -> None:
    """Raise UserError for a setting that its class does not take."""
    for key, node in settings(cfg):
        target = node.get("_target_") if isinstance(node, dict) else None
        try:
            taken = arguments(hydra.utils.get_object(target)) if target else None
        except Exception:  # building the class raises a clearer error
            continue
        if taken is None:
            continue
        unknown = [name for name in node if not name.startswith("_") and name not in taken]
        if unknown:
            raise UserError(f"{key}.{unknown[0]}: {target} takes no such argument; it takes {', '.join(taken)}")


def arguments(target: Any) -> list[str] | None:
    """The names of the arguments that a class or a function takes. None: it takes any.

    A class that passes **settings to its base class takes the arguments of the base class, too.
    """
    names: list[str] = []
    bases = inspect.getmro(target)[:-1] if isinstance(target, type) else ()
    for each in [base for base in bases if "__init__" in vars(base)] or [target]:
        parameters = inspect.signature(each).parameters.values()
        names += [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return list(dict.fromkeys(names))
    return None


def check_data(model: "GenerativeModel", data: "ImageDataModule") -> None:
    """Raise UserError for a model that was built for images of another shape, or for fewer classes."""
    if tuple(model.image_shape) != data.image_shape:
        raise UserError(
            f"model.image_shape={list(model.image_shape)} does not fit the images of {data.name}, "
            f"{list(data.image_shape)}: leave it out, and it follows data.image_shape"
        )
    labels = 1 + max(int(y.max()) for _, y in data.splits.values() if len(y))
    if 0 < model.num_classes < labels:
        raise UserError(f"model.num_classes={model.num_classes}, but {data.name} has {labels} classes")
