"""The number of units that a linear VAE with a fixed variance keeps at its optimum, on the training images of MNIST.

    python benchmarks/spectrum.py [--noise 5 2 1 0.5 0.25 0.1 0.05] [--root data] [--out FOLDER]

The units are the eigenvalues of the covariance of the grey levels above noise = beta sigma^2; all other units collapse,
whatever the latent dimension is: Lucas et al. 2019, https://arxiv.org/abs/1911.02469. --out writes run.json, as
train.py does, and measured.json, for reproduce.py.
"""

import argparse
import time
from pathlib import Path

from omegaconf import OmegaConf

from vaelab import linear, runs
from vaelab.data import MNISTDataModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, nargs="+", default=[5, 2, 1, 0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--root", default="data", help="the folder that holds MNIST/raw")
    parser.add_argument("--seed", type=int, default=0, help="not used, because nothing is random")
    parser.add_argument("--out", type=Path, default=None, help="a folder for run.json and measured.json")
    o = parser.parse_args()
    started = time.perf_counter()
    data = MNISTDataModule(root=o.root, binarization="none", val_size=0, allow_subset=False)
    data.setup()
    eigenvalues = linear.spectrum(data.splits["train"][0].float() / 255)
    units = {f"{noise:g}": linear.units_kept(eigenvalues, noise) for noise in o.noise}
    print("largest eigenvalues: " + ", ".join(f"{value:.4f}" for value in eigenvalues[:5]))
    print(*(f"beta sigma^2 = {noise}: {count} units" for noise, count in units.items()), sep="\n")
    if o.out:
        o.out.mkdir(parents=True, exist_ok=True)
        runs.record_start(o.out, OmegaConf.create({"noise": o.noise, "root": o.root}))
        facts = {"epochs": 0, "steps": 0, "fit_seconds": time.perf_counter() - started, "device": "cpu"}
        test = {f"units at {noise}": count for noise, count in units.items()}
        runs.write_json(o.out / "measured.json", {"test": test, "protocol": data.protocol, **facts})


if __name__ == "__main__":
    main()
