"""What the parts do, side by side: experiments on 5,000 digits with the same small budget, as a Markdown table.

    python benchmarks/family.py                                     # the README's table, about ten minutes on 2 cores
    python benchmarks/family.py vae "iwae objective.num_samples=5"  # any experiments, each with overrides of its own
    python benchmarks/family.py vae --steps 100

Each run is a process of its own, `python train.py experiment=NAME data=mnist_5k ...`: batches of 100 images at the
experiment's own learning rate, without its schedule. Figures are nats per test image, of one seed.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXPERIMENTS = (
    "vae",
    "iwae objective.num_samples=10",
    "dreg objective.num_samples=10",
    "conv_vae",
    "beta_vae",
    "beta_tc_vae",
    "capacity_vae objective.capacity.0.steps=500",
    "joint_vae objective.capacity.0.steps=500 objective.capacity.1.steps=500",
    "ladder_vae objective.beta.steps=500",
    "vampprior model.prior.num_components=100 objective.beta.steps=500",
    "flow_prior",
    "iaf_posterior",
    "full_covariance",
    "hyperspherical_vae",
    "categorical_vae",
    "info_vae",
    "discretized_logistic",
    "ppca",
    "autoencoder",
    "vq_vae",
)
COLLAPSED = 0.1  # nats: a code, or a layer of it, that says less has forgotten the image


def run(entry: str, steps: int, folder: Path) -> dict[str, Any]:
    """metrics.json of one run, or {"error": its sentence}."""
    name, *overrides = entry.split()
    budget = [f"steps={steps}", "trainer.max_epochs=null", "scheduler=none", "callbacks.figures.count=0"]
    data = ["data=mnist_5k", "data.batch_size=100", f"data.root={ROOT / 'data'}"]
    command = [sys.executable, str(ROOT / "train.py"), f"experiment={name}", *data, *budget, *overrides]
    done = subprocess.run([*command, f"hydra.run.dir={folder}"], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}
    return json.loads((folder / "metrics.json").read_text())


def row(entry: str, metrics: dict[str, Any]) -> str:
    """One line of the table; a collapsed code is named as such."""
    if "error" in metrics:
        return f"| `{entry}` | | | | | {metrics['error']} |"
    test = metrics["test"]

    def shown(*names: str) -> str:
        return next((f"{test[name]:.1f}" for name in names if name in test), "–")

    rates = {name: value for name, value in test.items() if name.startswith("rate")}
    remarks = [f"{name} {value:.1f}" for name, value in rates.items() if name != "rate"]
    remarks += [f"COLLAPSED: {name} {value:.2f}" for name, value in rates.items() if value < COLLAPSED]
    remarks += [f"{name} {test[name]:.1f}" for name in ("squared_error", "perplexity", "mmd") if name in test]
    if metrics["protocol"]["binarization"]["test"] == "none":
        remarks.append("grey levels")
    seconds = metrics["fit_seconds"] / metrics["epochs"]
    figures = f"{shown('bound', 'elbo')} | {shown('rate')} | {shown('distortion')} | {seconds:.2f}"
    return f"| `{entry}` | {figures} | {', '.join(remarks)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS, help="names, each with overrides in its quotes")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each run")
    arguments = parser.parse_args()
    print(f"{arguments.steps} steps of 100 images, {platform.machine()}, {torch_version()}\n")
    print("| experiment | bound | rate | distortion | s / epoch | |\n|---|---|---|---|---|---|")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, entry in enumerate(arguments.experiments):
            metrics = run(entry, arguments.steps, Path(folder) / str(i))
            failures += "error" in metrics
            print(row(entry, metrics), flush=True)
    return failures


def torch_version() -> str:
    from importlib.metadata import version

    return f"torch {version('torch')}"


if __name__ == "__main__":
    sys.exit(main())
