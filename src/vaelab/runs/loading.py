"""Load finished runs: the model, the data and the checkpoint of a run to resume."""

import hashlib
import operator
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra.utils
from omegaconf import DictConfig

from vaelab import checks
from vaelab.errors import UserError
from vaelab.files import check_size, read_plain, write_plain
from vaelab.runs.config import check_root, read_config
from vaelab.runs.folder import read_json
from vaelab.runs.log import shown
from vaelab.runs.preflight import check_data

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vaelab.data import ImageDataModule
    from vaelab.interfaces import GenerativeModel
    from vaelab.training import VAEModule


PRIOR, PRIOR_SIZES = "prior.pt", ("channels", "kernel_size", "num_blocks")  # the file of a prior over codes; its sizes
MOST_PRIOR = 2 * 10**8  # bytes
MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}  # in the states of Adam, AdamW and SGD


class Run(NamedTuple):
    """A finished run: its folder and config, the model with the tested weights, and the data of its training."""

    folder: Path
    cfg: DictConfig
    model: Any  # a GenerativeModel in evaluation mode
    data: "ImageDataModule"  # after setup()


def open_run(
    folder: Any,
    root: str | None = None,
    device: str = "auto",
    like: Run | None = None,
    trust: Sequence[str] = (),
    with_prior: bool = True,
) -> Run:
    """Load a finished run and its data.

    `root` replaces the run's own data.root. `device` is auto, cpu or cuda. If the run `like` has the same data
    settings, its data are shared. `with_prior=False` leaves out a prior over codes. Raises UserError as `load_run`
    does, for a device that this machine does not have, and for data that the run was not trained on.
    """
    if not isinstance(folder, str) or not folder:
        raise UserError(f"run={folder}: the folder of a finished run is needed, such as run=logs/RUN")
    where = find_device(device)
    model = load_run(folder, trust, with_prior).to(where)
    path = Path(folder).expanduser()
    cfg = read_config(path, trust=trust)
    if root is None:
        check_root(cfg.data)
    elif "root" not in cfg.data:
        raise UserError(f"data.root={root} changes nothing: the images of {cfg.data.dataset} are in no folder")
    else:
        cfg.data.root = root
    used = cfg.data.get("used") or cfg.data.dataset
    if like and {**like.cfg.data, "seed": 0} == {**cfg.data, "used": used, "seed": 0}:  # the seed affects only training
        data = like.data
    else:
        # The run may have used MNIST-5k, although MNIST is available now
        data = _built(DictConfig({**cfg.data, "dataset": used, "used": used}), path)
        data.setup()
    cfg.data.used = used
    check_data(model, data)
    return Run(path, cfg, model, data)


def find_device(name: str) -> "torch.device":
    """The device auto, cpu or cuda, with the settings that make a CPU faster. Raises UserError if there is none."""
    import torch

    from vaelab.training.threads import tune

    gpu = torch.cuda.is_available()
    checks.one_of(("auto", "cpu", "cuda"), device=name)
    if name == "cuda" and not gpu:
        raise UserError(f"device=cuda, but torch {torch.__version__} finds no GPU on this machine: use device=cpu")
    device = torch.device("cuda" if gpu and name != "cpu" else "cpu")
    tune(device)
    return device


def load_run(folder: str | Path, trust: Sequence[str] = (), with_prior: bool = True) -> Any:
    """The model of a run's folder, or of an export, with the weights that were tested, in evaluation mode on the CPU.

    A model with quantised codes gets the prior over codes that train_prior.py has written, unless `with_prior` is
    False. Nothing in the folder is executed. Raises UserError if it is not a finished run, if its config names a class
    outside this package, or if its weights or its prior are damaged or belong to another model.
    """
    from vaelab.interfaces import quantises

    folder = Path(folder).expanduser()
    model = _built(read_config(folder, trust=trust).model, folder)
    path, state = _read_weights(folder, 1_000_000 + 3 * bytes_of(model))  # weights of 64 bits have twice the bytes
    if wrong := differences(state, model):
        raise UserError(
            f"{path} does not fit the model of {folder}'s config in vaelab {metadata.version('vaelab')} ({wrong}): the "
            "config was changed, or another version wrote the run: see run.json"
        )
    if broken := [name for name, weight in state.items() if not weight.isfinite().all()]:
        raise UserError(f"{path} has numbers that are not finite, in {', '.join(broken[:3])}: this model is of no use")
    model.load_state_dict(state)
    if with_prior and quantises(model) and (folder / PRIOR).is_file():
        model.code_prior = _read_prior(folder, model)
    return model.eval()


def write_prior(folder: Path, model: Any, prior: "nn.Module", sizes: dict[str, int]) -> Path:
    """Write a prior over codes, its sizes and the digest of the model whose codes it was fitted to. Return its path."""
    state = {name: weight.cpu() for name, weight in prior.state_dict().items()}
    write_plain(folder / PRIOR, {"weights": digest(model), "sizes": sizes, "state": state})
    return folder / PRIOR


def _read_prior(folder: Path, model: Any) -> Any:
    """The prior over codes in a folder. Raises UserError if it is damaged, or if it was fitted to other weights."""
    path = folder / PRIOR
    again = f"python train_prior.py run={folder} trains a new one, or remove this file"
    check_size(path, MOST_PRIOR)
    content = read_plain(path)
    plain = isinstance(content, dict) and {*content} == {"weights", "sizes", "state"}
    sizes, state = (content["sizes"], content["state"]) if plain else ({}, {})
    whole = isinstance(sizes, dict) and [*sizes] == [*PRIOR_SIZES] and all(type(size) is int for size in sizes.values())
    if not whole or not _is_state(state):
        raise UserError(f"{path} is not a prior that train_prior.py has written: {again}")
    if content["weights"] != digest(model):
        raise UserError(f"{path} was fitted to the codes of other weights than those of {folder}: {again}")
    network = {"_target_": "vaelab.networks.PixelCNN", "num_categories": len(model.codebook), **sizes}
    prior = _built(DictConfig(network), folder)
    if wrong := differences(state, prior):
        raise UserError(f"{path} does not fit its own sizes ({wrong}): {again}")
    if not all(weight.isfinite().all() for weight in state.values()):
        raise UserError(f"{path} has numbers that are not finite: {again}")
    prior.load_state_dict(state)
    return prior


def _is_state(content: Any) -> bool:
    """Whether a content is tensors by name."""
    import torch

    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    return named and all(isinstance(weight, torch.Tensor) for weight in content.values())


def bytes_of(module: "nn.Module") -> int:
    """The bytes of a module's weights and buffers."""
    return sum(weight.nbytes for weight in module.state_dict().values())


def differences(state: dict[str, Any], module: "nn.Module") -> str:
    """The first three weights of a state dict that a module does not take, in words. Empty if all of them fit."""
    found, needed = ({name: _form(weight) for name, weight in part.items()} for part in (state, module.state_dict()))
    names = sorted(name for name in found | needed if found.get(name) != needed.get(name))
    return ", ".join(f"{name} {found.get(name, 'missing')} for {needed.get(name, 'none')}" for name in names[:3])


def _form(weight: "Tensor") -> str:
    """The shape and the kind of numbers of a weight. A run with trainer.precision=64-true has weights of 64 bits."""
    kind = str(weight.dtype).removeprefix("torch.").replace("float64", "float32")
    return f"{tuple(weight.shape)}{'' if kind == 'float32' else f' of {kind}'}"


def _built(part: DictConfig, folder: Path) -> Any:
    """The model or the data module of a run. Raises UserError for settings that it does not take."""
    from vaelab.runs.memory import Fits

    try:
        with Fits():
            return hydra.utils.instantiate(part, _convert_="all", _partial_=False)
    except Exception as error:  # Hydra's own message hides the cause
        why = error.__cause__ or error
        raise UserError(f"the config of {folder} cannot build {part._target_}: {why}") from error


def _read_weights(folder: Path, most: int) -> "tuple[Path, dict[str, Tensor]]":
    """The file of the weights, and the state dict in it. Nothing in the file is executed.

    Raises UserError for a file of more than `most` bytes.
    """
    path = folder / "model.safetensors"
    if path.is_file():
        check_size(path, most)
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return path, load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from error
    path = folder / "weights.pt"
    if not path.is_file():
        raise UserError(f"{folder} is not finished, it has no weights.pt: python train.py resume={folder} continues it")
    check_size(path, most)
    state = read_plain(path)
    if not _is_state(state):
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
            "epoch, and those that were stopped before their first checkpoint, have none): start a new one"
        )
    for kept in (path, path.with_name("best.ckpt")):
        if kept.is_file():
            check_size(kept, 10_000_000 + 100 * bytes_of(module))  # some optimisers keep many gradients
    checkpoint = read_plain(path)
    try:
        epoch = operator.index(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        step, wrong = operator.index(checkpoint["global_step"]), differences(checkpoint["state_dict"], module)
        callbacks, _ = dict(checkpoint["callbacks"]), checkpoint["vaelab"]["ranks"]
        optimizers = checkpoint.get("optimizer_states")
        wrong = wrong or _moments(optimizers or [], module)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        kind = "of this version of vaelab" if isinstance(checkpoint, dict) and "vaelab" in checkpoint else "of vaelab"
        raise UserError(f"{path} is not a checkpoint {kind}: {error}") from error
    if wrong:
        raise UserError(f"{path} holds the weights of another model than {folder}/config.yaml describes: {wrong}")
    stateless = cfg.optimizer._target_.endswith(".SGD") and not cfg.optimizer.get("momentum")
    if not optimizers or not (stateless or step == 0 or all(each.get("state") for each in optimizers)):
        raise UserError(f"{path} does not hold the state of the optimiser, without which the run would change")
    measured = read_json(folder / "metrics.json").get("steps") == step  # otherwise it was stopped before its test
    for name, state in callbacks.items():
        if "EarlyStopping" in name and state.get("stopped_epoch") and measured:
            why = f"early stopping ended it in epoch {state['stopped_epoch'] + 1}"
            raise UserError(f"{shown(folder)} is complete, {why}: start a new run with a larger patience")
    epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
    ends = {"max_epochs": (epoch, epochs), "max_steps": (step, steps)}
    for name, (done, most) in ends.items():
        if 0 < most < done and not measured:
            what = f"has done {done:,} {name.removeprefix('max_')} already, more than trainer.{name}={most}"
            raise UserError(f"{shown(folder)} {what}: set it to {done} or more, or leave it out")
        if 0 < most <= done and measured:
            what = f"all of its {done:,} {name.removeprefix('max_')}"
            raise UserError(f"{shown(folder)} is complete, {what}: set trainer.{name} above {done} to continue")
    return path, step + 1


def _moments(optimizers: list[Any], module: "VAEModule") -> str:
    """The first running mean of an optimiser's state that does not have the shape of its weight. Empty if all fit."""
    weights = [weight for group in module.objective.parameter_groups(module.model) for weight in group["params"]]
    for each in optimizers:
        for index, state in each["state"].items():
            for name in MOMENTS & state.keys():
                if state[name] is not None and state[name].shape != weights[index].shape:
                    return f"{name} {tuple(state[name].shape)} for {tuple(weights[index].shape)}"
    return ""
