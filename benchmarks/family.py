"""A Markdown table that compares experiments on 5,000 digits with the same small budget.

    python benchmarks/family.py                                           # docs/concepts/rate.md, 8 minutes, 2 cores
    python benchmarks/family.py beta_vae "iwae objective.num_samples=5"   # experiments with overrides
    python benchmarks/family.py default vae_iwae_protocol --steps 100     # default: python train.py, no experiment

Each run is a process, `python train.py experiment=NAME data=mnist_5k ...`, with batches of 100 images and without a
schedule. Metrics are nats per test image for one seed. Rate is the KL term, distortion the reconstruction term.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXPERIMENTS = (
    "default",
    "vae_iwae_protocol",
    "iwae objective.num_samples=10",
    "dreg objective.num_samples=10",
    "conv_vae",
    "beta_vae",
    "beta_tc_vae",
    "info_vae",
    "capacity_vae objective.capacity.0.steps=1000",
    "joint_vae objective.capacity.0.steps=1000 objective.capacity.1.steps=1000",
    "categorical_vae",
    "hyperspherical_vae",
    "full_covariance",
    "iaf_posterior",
    "ladder_vae objective.beta.steps=1000",
    "vampprior model.prior.num_components=100 objective.beta.steps=1000",
    "flow_prior",
    "discretized_logistic",
    "ppca trainer.max_epochs=0",
    "autoencoder",
    "vq_vae",
)
COLLAPSED = 0.1  # nats: a code, or a layer of it, with a lower rate has collapsed


def run(entry: str, steps: int, folder: Path) -> dict[str, Any]:
    """Run one experiment. Return its metrics.json, or {"error": its message}."""
    name, *overrides = entry.split()
    budget = [f"steps={steps}", "trainer.max_epochs=null", "scheduler=none", "callbacks.pictures.count=0"]
    data = ["data=mnist_5k", "data.batch_size=100", f"data.root={ROOT / 'data'}"]
    experiment = [] if name == "default" else [f"experiment={name}"]
    command = [sys.executable, str(ROOT / "train.py"), *experiment, *data, *budget, *overrides]
    done = subprocess.run([*command, f"hydra.run.dir={folder}"], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}
    return json.loads((folder / "metrics.json").read_text())


def row(entry: str, metrics: dict[str, Any]) -> str:
    """One line of the table. The last column says whether a code has collapsed."""
    name, *remarks = entry.split()
    if "error" in metrics:
        return f"| `{name}` | | | | | FAILED: {metrics['error']} |"
    test = metrics["test"]

    def shown(*names: str) -> str:
        return next((f"{test[name]:.1f}" for name in names if name in test), "–")

    rates = {name: value for name, value in test.items() if name.startswith("rate")}
    remarks += [f"{rate} {value:.2f}" for rate, value in rates.items() if rate != "rate"]
    remarks += [f"COLLAPSED: {rate} is below {COLLAPSED}" for rate, value in rates.items() if value < COLLAPSED]
    remarks += [f"{term} {test[term]:.1f}" for term in ("squared_error", "perplexity") if term in test]
    if metrics["protocol"]["binarization"]["test"] == "none":
        remarks.append("grey levels")
    seconds = metrics["fit_seconds"] / max(metrics["epochs"], 1)
    values = f"{shown('bound', 'elbo')} | {shown('rate')} | {shown('distortion')} | {seconds:.2f}"
    return f"| `{name}` | {values} | {', '.join(remarks)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS, help="names, or a name with overrides in quotes")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each run")
    arguments = parser.parse_args()
    print(f"{arguments.steps} steps of 100 images, {os.cpu_count()} CPU cores, torch {version('torch')}\n")
    print("| experiment | bound | rate | distortion | s / epoch | |\n|---|---|---|---|---|---|")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, entry in enumerate(arguments.experiments):
            metrics = run(entry, arguments.steps, Path(folder) / str(i))
            failures += "error" in metrics
            print(row(entry, metrics), flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
