"""Except for noise, several processes train like one process with a batch as large as all of theirs together.

No cluster is needed: SLURM's variables or torchrun make two nodes of one process each on one machine.
"""

import json
import os
import re
import socket
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NARROW, ROOT, Compose, write_idx
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import runs

PAGE = (ROOT / "docs" / "how-to" / "devices.md").read_text()
LAUNCHERS = {"python": [], "srun": [], "torchrun": ["-m", "torch.distributed.run"]}


def promised(start: str, **replaced: str) -> list[str]:
    """The command of the documentation that starts with this text, changed to use this Python and the CPU."""
    line = re.search(rf"^{start}[^#\n]*", PAGE, re.M)[0]  # type: ignore[index]
    for old, new in {"HOST": "127.0.0.1", "node=4": "node=1", "devices=4": "devices=1", **replaced}.items():
        line = line.replace(old, new)
    words = [part for word in line.split() for part in LAUNCHERS.get(word, [word])]
    return [sys.executable, *(str(ROOT / word) if word == "train.py" else word for word in words)]


def together(commands: list[list[str]], folder: Path, variables: list[dict[str, str]] | None = None) -> list[str]:
    """Run commands at the same time, each with its own variables; all must succeed. Return what each printed."""
    path = os.pathsep.join(str(part) for part in (ROOT / "src", ROOT / "tests", Path(__file__).parent))
    started = [
        subprocess.Popen(
            [*command, "trainer.accelerator=cpu", "data.md5=null", "callbacks.pictures.count=1"],
            cwd=folder, env=os.environ | {"PYTHONPATH": path} | extra,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for command, extra in zip(commands, variables or [{}] * len(commands), strict=True)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=100)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(printed)
    return printed


def test_two_processes_are_one_with_twice_the_batch(config: Compose, data_root: Path, tmp_path: Path) -> None:
    """Without noise, weights and metrics agree, even if the batches have different sizes.

    The last of the training batches has 36 images, and one process validates 51 images and the other 50.
    """
    sizes = ["data.train_size=486", "data.val_size=101", "data.eval_batch_size=25", "steps=15"]
    settings = [*sizes, *NARROW, "experiment=autoencoder", f"data.root={data_root}"]
    whole = ["trainer.max_epochs=null", *(f"trainer.limit_{split}_batches=null" for split in ("train", "val", "test"))]
    (tmp_path / "one").mkdir()
    train(config(*settings, *whole, "data.batch_size=50"), tmp_path / "one")
    two = [*settings, "data.batch_size=25", f"hydra.run.dir={tmp_path / 'two'}"]
    (printed,) = together([[*promised("python train.py trainer=ddp"), *two]], tmp_path)
    assert "length   2 epochs of 10 batches" in printed
    assert "sync_dist" not in printed

    one, two = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two"))
    assert one["steps"] == two["steps"] == 20
    assert one["protocol"] == two["protocol"]
    for split, metric in (("train", "loss"), ("train", "squared_error"), ("val", "loss"), ("test", "squared_error")):
        assert two[split][metric] == pytest.approx(one[split][metric], rel=1e-6)
    states = [torch.load(tmp_path / run / "checkpoints" / "last.ckpt")["state_dict"] for run in ("one", "two")]
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=0, atol=1e-5)


class Spy(Callback):
    """Saves, for each rank, the noise of each code, the images of each batch and the final weights."""

    def __init__(self) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {"images": [], "train": [], "val": []}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def keep(_module: object, _images: object, trace: Any) -> None:
            (latent,) = trace.latents
            noise = (latent.z - latent.q.mean) / latent.q.stddev
            self.seen["train" if trainer.training else "val"].append(noise.detach())

        self.hook = pl_module.model.register_forward_hook(keep)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen["images"].append(batch[0][..., 1:, :])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.hook.remove()
        started_by = type(trainer.strategy.cluster_environment).__name__
        folders = len(list(Path("logs").iterdir()))
        result = {**self.seen, "weights": pl_module.state_dict(), "started_by": started_by, "folders": folders}
        torch.save(result, f"{trainer.global_rank}.pt")


def srun(port: str) -> tuple[list[list[str]], list[dict[str, str]]]:
    job = {"JOB_ID": "7", "JOB_NAME": "vae", "NODELIST": "127.0.0.1", "NNODES": "2", "NTASKS_PER_NODE": "1"}
    tasks = [{**job, "NTASKS": "2", "PROCID": rank, "NODEID": rank, "LOCALID": "0"} for rank in "01"]
    variables = [{f"SLURM_{name}": value for name, value in task.items()} for task in tasks]
    return [promised("srun python train.py")] * 2, [{**task, "MASTER_PORT": port} for task in variables]


def torchrun(port: str) -> tuple[list[list[str]], list[dict[str, str]]]:
    here = f"127.0.0.1 --master-port={port}"
    return [promised("torchrun", RANK=rank, HOST=here) for rank in "01"], [{}, {}]


def test_noise_differs_by_process_and_they_resume_bit_for_bit(tmp_path: Path) -> None:
    """A run of torchrun that is never stopped equals one that SLURM starts and `python train.py` resumes.

    The noise of codes and pixels differs, weights agree bit for bit, and each start writes one folder. All images are
    equal but for their first row, so the other rows of batches differ only by their noise. The second run stops in the
    second of three epochs of two steps, within a window.
    """
    images = np.full((80, 8, 8), 128)
    images[:, 0] = 255 * (np.arange(80)[:, None] >> np.arange(8) & 1)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(80) % 10)
    settings = [f"data.root={tmp_path}", "data.image_shape=[1,8,8]", "data.val_size=40", "trainer.max_epochs=3"]
    settings += ["data.batch_size=10", "data.eval_batch_size=10", "trainer.log_every_n_steps=4"]
    settings += ["+callbacks.spy._target_=test_processes.Spy"]
    cases = ((torchrun, "TorchElasticEnvironment", 6, []), (srun, "SLURMEnvironment", 3, ["trainer.max_steps=3"]))
    for launch, environment, steps, stop in cases:
        folder = tmp_path / launch.__name__
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        commands, variables = launch(port)
        together([[*command, *settings, *stop] for command in commands], folder, variables)

        first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
        assert first["started_by"] == second["started_by"] == environment
        assert first["folders"] == second["folders"] == 1
        assert len(first["val"]) == len(second["val"]) == 2 * (steps // 2)  # of whole epochs
        for name in ("images", "train"):
            assert len(first[name]) == len(second[name]) == steps
            assert not any(torch.allclose(a, b, atol=0.01) for a, b in combinations(first[name] + second[name], 2))
        assert not any(
            torch.allclose(a, b, atol=0.01) for a, b in combinations(first["val"][:2] + second["val"][:2], 2)
        )
        assert all(torch.equal(second["weights"][name], weight) for name, weight in first["weights"].items())

    whole, resumed = (next((tmp_path / name / "logs").iterdir()) for name in ("torchrun", "srun"))
    assert (whole / "metrics.json").is_file()
    assert json.loads((resumed / "metrics.json").read_text())["steps"] == 3
    command = [word for word in promised("python train.py") if word != "trainer=ddp"]
    command += [f"resume=logs/{resumed.name}", "trust=[test_processes]", "trainer.max_steps=-1"]
    together([[*command, "trainer.devices=2", "trainer.num_nodes=1"]], tmp_path / "srun")
    for rank in (0, 1):
        ours, theirs = (torch.load(tmp_path / name / f"{rank}.pt") for name in ("srun", "torchrun"))
        for name in ("images", "train"):
            assert all(torch.equal(a, b) for a, b in zip(ours[name], theirs[name][3:], strict=True))
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    curves = [EventAccumulator(str(folder), {"scalars": 0}).Reload() for folder in (whole, resumed)]
    for tag in ("train/loss", "train/rate", "val/loss"):
        points = [[(event.step, event.value) for event in each.Scalars(tag)] for each in curves]
        assert points[0] == points[1], tag
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (whole, resumed)]
    for split in ("val", "test"):
        assert metrics[0][split] == metrics[1][split]
    assert metrics[0]["train"]["loss"] == metrics[1]["train"]["loss"]


def test_processes_that_would_train_alone_are_refused(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaelab.runs.preflight.rank", lambda: 1)
    with pytest.raises(ValueError, match=r"process 1 of several, but .*=1 trains in one: use trainer=ddp"):
        train(config(), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "number"),
    [([], 2), (["trainer.devices=[0,3,5]"], 3), (["trainer.devices=4", "trainer.num_nodes=3"], 12)],
)
def test_steps_are_those_of_all_processes_together(config: Compose, overrides: list[str], number: int) -> None:
    assert runs.processes(config("trainer=ddp", *overrides)) == number
