"""Checks at the start of a run: settings that no part checks, and settings that this machine does not support."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vaelab import checks
from vaelab.errors import UserError
from vaelab.runs.arguments import check_arguments, check_groups
from vaelab.runs.building import processes
from vaelab.runs.log import rank

if TYPE_CHECKING:
    from vaelab.data import ImageDataModule
    from vaelab.interfaces import GenerativeModel

NAMES = {"train": "training", "val": "validation", "test": "test"}  # of the splits
PARTS = ("posterior", "prior", "likelihood")  # the parts of a model that are chosen with a slash
# Weights in 16 bits are not offered, because they round away most of an optimiser's updates
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
WHOLE = {  # arguments of the Trainer that are whole numbers, and the least number that has a meaning
    "max_epochs": 0,
    "log_every_n_steps": 1,
    "accumulate_grad_batches": 1,
    "limit_train_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "num_nodes": 1,
    "min_epochs": 0,
    "min_steps": 0,
}
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
    for part, value in cfg.model.items():
        if isinstance(value, str) and part in PARTS:
            raise UserError(f"model.{part}={value}: a part is chosen with a slash, model/{part}={value}")
    check_groups(cfg)
    if "num_classes" in cfg.model and cfg.model.num_classes is None:
        raise UserError("model.num_classes is that of the data, and it is not known: set data.num_classes=CLASSES")
    if cfg.data.get("used") is not None and not cfg.resume:
        raise UserError(
            f"data.used={cfg.data.used}: the run itself writes the data set that it used here: leave it out"
        )
    for name, place in OWN.items():
        if name in cfg.trainer:
            raise UserError(f"trainer.{name} is set elsewhere: {place}")
    for name, least in WHOLE.items():
        value = cfg.trainer.get(name)
        endless = name == "max_epochs" and value == -1 and cfg.trainer.max_steps > 0
        if value is not None and not endless and not (name == "limit_train_batches" and type(value) is float and value):
            checks.whole(least, **{f"trainer.{name}": value})
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if type(cfg.trainer.get(name)) is float:
            checks.share(**{f"trainer.{name}": cfg.trainer[name]})
    if cfg.trainer.get("limit_test_batches") == 0:
        raise UserError("trainer.limit_test_batches=0: a run ends with its test, so leave some test images")
    if cfg.trainer.get("gradient_clip_val") is not None:
        checks.positive(**{"trainer.gradient_clip_val": cfg.trainer.gradient_clip_val})
    if "lr" in cfg.optimizer:
        checks.positive(**{"optimizer.lr": cfg.optimizer.lr})
    if "momentum" in cfg.optimizer:
        checks.share(**{"optimizer.momentum": cfg.optimizer.momentum})
    if str(cfg.trainer.precision) not in ("32", "16", "64", "bf16"):  # Lightning's short forms
        checks.one_of(PRECISIONS, **{"trainer.precision": cfg.trainer.precision})
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if str(cfg.trainer.precision).startswith("16") and (not gpu or cfg.trainer.accelerator == "cpu"):
        raise UserError(f"trainer.precision={cfg.trainer.precision} needs a GPU: use bf16-mixed on a CPU")
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
        monitor = str((callback or {}).get("monitor"))
        if "patience" in (callback or {}):
            checks.whole(0, **{f"callbacks.{name}.patience": callback.patience})
        if zeros and (monitor == "auto" or monitor.startswith("val/")):
            raise UserError(
                f"callbacks.{name} has monitor={monitor}, but {zeros[0]}=0 leaves no validation images: "
                f"leave it out, or set {zeros[0]} above zero"
            )
    check_arguments(cfg)


def check_data(model: "GenerativeModel", data: "ImageDataModule", objective: Any = None) -> None:
    """Raise UserError for a model of images of another shape, of fewer classes or grey levels, or of absent labels.

    In training also for an objective that does not use the labels as the data give them.
    """
    from vaelab.interfaces import classes_of_codes, levels

    if tuple(model.image_shape) != data.image_shape:
        raise UserError(
            f"model.image_shape={list(model.image_shape)} does not fit the images of {data.name}, "
            f"{list(data.image_shape)}: leave it out, and it follows data.image_shape"
        )
    known, grey = levels(model.likelihood), data.binarization == "none"
    if grey and known not in (None, 256):
        raise UserError(
            f"model/likelihood=autoregressive has {known} grey levels, and data.binarization=none keeps 256 of them: "
            "set model.likelihood.levels=256, or data.binarization=dynamic with model.likelihood.levels=2"
        )
    if min(data.batch_size, len(data.splits["train"][0])) == 1 and _normalises_batches(model, ("BatchNorm1d",)):
        raise UserError("data.batch_size=1: batch normalisation needs at least two images in a batch")
    bare = [NAMES[split] for split, (images, y) in data.splits.items() if y is None and len(images)]
    if model.num_classes and bare:
        which = f"{' and '.join(bare)} images" if len(bare) < len(data.splits) else "images"
        raise UserError(
            f"model.num_classes={model.num_classes}, but the {which} of {data.name} have no labels: set it to 0"
        )
    labels = 1 + max((int(y.max()) for _, y in data.splits.values() if y is not None and len(y)), default=0)
    if 0 < model.num_classes < labels:
        raise UserError(f"model.num_classes={model.num_classes}, but {data.name} has {labels} classes")
    if objective is None:
        return
    if data.num_labels is not None and not objective.takes_labels:
        what = f"data.num_labels={data.num_labels} is for objective=m2"
        raise UserError(f"{what}, and {type(objective).__name__} has no use for images without labels: leave it out")
    if (own := getattr(objective, "num_labels", data.num_labels)) != data.num_labels:
        follows = f"data.num_labels={data.num_labels}: leave it out, and it follows data.num_labels"
        raise UserError(f"objective.num_labels={own}, but {follows}".replace("=None", "=null"))
    if objective.takes_labels and data.num_labels != 0 and classes_of_codes(model) < labels:
        raise UserError(
            f"model.posterior.num_classes={classes_of_codes(model)}, but {data.name} has {labels} classes: raise it, "
            "or set data.num_labels=0 to train without labels"
        )


def check_callbacks(cfg: DictConfig, callbacks: Sequence[Any], model: "GenerativeModel") -> None:
    """Raise UserError for callbacks that do not go with each other, with the model or with the data."""
    from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

    from vaelab.training import EvaluationMetrics

    if cfg.trainer.get("limit_val_batches") == 0 and any(isinstance(each, EvaluationMetrics) for each in callbacks):
        raise UserError("callbacks=metrics measures validation images, but this run has none: leave it out")
    if not any(isinstance(each, StochasticWeightAveraging) for each in callbacks):
        return
    if any(isinstance(each, WeightAveraging) for each in callbacks):
        raise UserError("two callbacks average the weights, such as callbacks=[ema,swa]: choose one of them")
    if _normalises_batches(model):
        why = "Lightning then takes an epoch more than trainer.max_epochs, for which this project has no checkpoints"
        raise UserError(f"callbacks=swa does not go with batch normalisation: {why}; choose callbacks=ema")


def _normalises_batches(model: Any, kinds: tuple[str, ...] = ("BatchNorm1d", "BatchNorm2d")) -> bool:
    return any(type(part).__name__ in kinds for part in model.modules())
