"""Load finished runs: the model, the data and the checkpoint of a run to resume."""

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra.utils
from omegaconf import DictConfig

from vaelab import checks
from vaelab.errors import UserError
from vaelab.files import read_plain
from vaelab.runs.config import read_config
from vaelab.runs.log import shown
from vaelab.runs.preflight import check_data

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.data import ImageDataModule
    from vaelab.interfaces import GenerativeModel
    from vaelab.training import VAEModule


class Run(NamedTuple):
    """A finished run: its folder and config, the model with the tested weights, and the data of its training."""

    folder: Path
    cfg: DictConfig
    model: Any  # a GenerativeModel in evaluation mode
    data: "ImageDataModule"  # after setup()


def open_run(
    folder: Any, root: str | None = None, device: str = "auto", like: Run | None = None, trust: Sequence[str] = ()
) -> Run:
    """Load a finished run and its data.

    `root` replaces the run's own data.root. `device` is auto, cpu or cuda. If the run `like` has the same
    data settings, its data are shared. Raises UserError as `load_run` does, for a device that this machine does not
    have, and for data that the run was not trained on.
    """
    import torch

    from vaelab.training.threads import tune

    if not isinstance(folder, str) or not folder:
        raise UserError(f"run={folder}: the folder of a finished run is needed, such as run=logs/RUN")
    gpu = torch.cuda.is_available()
    checks.one_of(("auto", "cpu", "cuda"), device=device)
    if device == "cuda" and not gpu:
        raise UserError(f"device=cuda, but torch {torch.__version__} finds no GPU on this machine: use device=cpu")
    where = torch.device("cuda" if gpu and device != "cpu" else "cpu")
    tune(where)
    model = load_run(folder, trust).to(where)
    path = Path(folder).expanduser()
    cfg = read_config(path, trust=trust)
    if root is not None:
        cfg.data.root = root
    used = cfg.data.get("used") or cfg.data.dataset
    if like and {**like.cfg.data, "seed": 0} == {**cfg.data, "used": used, "seed": 0}:  # the seed affects only training
        data = like.data
    else:
        # The run may have used MNIST-5k, although MNIST is available now
        data = _built(DictConfig({**cfg.data, "dataset": used}), path)
        data.setup()
    cfg.data.used = used
    check_data(model, data)
    return Run(path, cfg, model, data)


def load_run(folder: str | Path, trust: Sequence[str] = ()) -> Any:
    """The model of a run's folder, or of an export, with the weights that were tested, in evaluation mode on the CPU.

    Nothing in the folder is executed. Raises UserError if it is not a finished run, if its config names a class outside
    this package, or if its weights are damaged or belong to another model.
    """
    folder = Path(folder).expanduser()
    model = _built(read_config(folder, trust=trust).model, folder)
    path, state = _read_weights(folder)
    shapes, needed = ({name: tuple(w.shape) for name, w in weights.items()} for weights in (state, model.state_dict()))
    if shapes != needed:
        differing = sorted(name for name in shapes | needed if shapes.get(name) != needed.get(name))
        wrong = ", ".join(
            f"{name} {shapes.get(name, 'missing')} for {needed.get(name, 'none')}" for name in differing[:3]
        )
        raise UserError(
            f"{path} does not fit the model of {folder}'s config in vaelab {metadata.version('vaelab')} ({wrong}): the "
            "config was changed, or another version wrote the run: see run.json"
        )
    model.load_state_dict(state)
    return model.eval()


def _built(part: DictConfig, folder: Path) -> Any:
    """The model or the data module of a run. Raises UserError for settings that it does not take."""
    try:
        return hydra.utils.instantiate(part, _convert_="all", _partial_=False)
    except Exception as error:  # Hydra's own message hides the cause
        why = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"the config of {folder} cannot build {part._target_}: {why}") from error


def _read_weights(folder: Path) -> "tuple[Path, dict[str, Tensor]]":
    """The file of the weights, and the state dict in it. Nothing in the file is executed."""
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
        raise UserError(f"{folder} is not finished, it has no weights.pt: python train.py resume={folder} continues it")
    state = read_plain(path)
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
        raise UserError(f"{path} does not hold tensors by name")
    return path, state


def digest(model: "GenerativeModel") -> str:
    """The SHA-256 of a model's weights. It does not depend on the file format."""
    weights = sorted(model.state_dict().items())
    return hashlib.sha256(b"".join(weight.cpu().numpy().tobytes() for _, weight in weights)).hexdigest()


def last_checkpoint(folder: Path, module: "VAEModule", cfg: DictConfig) -> tuple[Path, int]:
    """The last checkpoint of a run to resume, and the number of its next step.

    Raises UserError if there is no checkpoint, if it cannot be read, if it holds another model, or if the run is
    complete.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(
            f"{folder} cannot be resumed: it has no checkpoints/last.ckpt (runs that are trained together, or for no "
            "epoch, have none)"
        )
    checkpoint = read_plain(path)
    try:
        epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        step, state = checkpoint["global_step"], checkpoint["state_dict"]
        saved = {name: tuple(weight.shape) for name, weight in state.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a checkpoint of vaelab: {error}") from error
    if saved != {name: tuple(weight.shape) for name, weight in module.state_dict().items()}:
        raise UserError(f"{path} holds the weights of another model than {folder}/config.yaml describes")
    optimizers = checkpoint.get("optimizer_states")
    stateless = cfg.optimizer._target_.endswith(".SGD") and not cfg.optimizer.get("momentum")
    if not optimizers or not (stateless or step == 0 or all(each.get("state") for each in optimizers)):
        raise UserError(f"{path} does not hold the state of the optimiser, without which the run would change")
    for name, state in checkpoint["callbacks"].items():
        if "EarlyStopping" in name and state.get("stopped_epoch") and (folder / "metrics.json").exists():
            done = f"early stopping ended it in epoch {state['stopped_epoch'] + 1}"
            raise UserError(f"{shown(folder)} is complete, {done}: start a new run with a larger patience")
    epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
    ends = {"max_epochs": (epoch, epochs), "max_steps": (step, steps)}
    for name, (done, most) in ends.items():
        if 0 < most <= done and (folder / "metrics.json").exists():
            what = f"all of its {done:,} {name.removeprefix('max_')}"
            raise UserError(f"{shown(folder)} is complete, {what}: set trainer.{name} above {done} to continue")
    return path, step + 1
