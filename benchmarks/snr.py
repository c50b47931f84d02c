"""The signal-to-noise ratio of the gradients of importance-weighted bounds, against the number K of samples.

    python benchmarks/snr.py [--samples 4 16 64 256] [--draws 10000] [--seed 0] [--out FOLDER]

The model is that of Rainforth et al. 2018, https://arxiv.org/abs/1802.04537, with D = 20 and the prior moved to 0:

    p(z) = N(0, I),   p(x | z) = N(z + mu, I),   q(z | x) = N(A x + b, 2/3 I)

A is I/2, and mu and b are near the optimum b = -mu/2: each entry is `--offset` times a standard normal number away.
Each draw is a gradient for one image x ~ N(0, 2 I), taken with the objectives iwae and dreg. For the mean g and the
covariance C of n draws, with the noise of the mean removed,

    SNR^2 = (|g|^2 - tr C / n) / tr C

Theory gives slopes in log K of 1/2 for the decoder's mu, -1/2 for the encoder's b under iwae, and 1/2 for b under dreg:
Tucker et al. 2019, https://arxiv.org/abs/1810.04152. The slopes hold for large K, but iwae's encoder then needs many
draws: n draws hide ratios below (2 / (n^2 D))^(1/4), 0.006 for 10,000. --out writes run.json, as train.py does, and
measured.json, for reproduce.py.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from vaelab import runs
from vaelab.training import VAEModule

ROOT = Path(__file__).parent.parent
DIM = 20
PARTS = (("iwae", "decoder"), ("iwae", "encoder"), ("dreg", "encoder"))
CHUNK = 2_000_000  # samples of the code in one pass


def build(objective: str, samples: int, offset: float) -> VAEModule:
    """The module of train.py with linear parts, at the model's parameters."""
    settings = ["model/network=linear", "model/likelihood=gaussian", "model.likelihood.mean=identity"]
    settings += [f"model.latent_dim={DIM}", "data.image_shape=[1,4,5]", "model.likelihood.scale=1.0"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [*settings, f"objective={objective}", f"objective.num_samples={samples}"])
    module = runs.build(cfg)
    noise = torch.Generator().manual_seed(0)
    mu = offset * torch.randn(DIM, generator=noise)
    b = -mu / 2 + offset * torch.randn(DIM, generator=noise)
    model: Any = module.model
    head, out = model.posterior.linear, model.decoder.layers[0]
    with torch.no_grad():
        head.weight.copy_(torch.cat([torch.eye(DIM) / 2, torch.zeros(DIM, DIM)]))
        head.bias.copy_(torch.cat([b, torch.full((DIM,), math.log(2 / 3))]))
        out.weight.copy_(torch.eye(DIM))
        out.bias.copy_(mu)
    return module


def gradients(module: VAEModule, x: Tensor) -> dict[str, Tensor]:
    """Gradients of the objective for each image of x (B, 1, 4, 5): of b as "encoder", of mu as "decoder", (B, D) each.

    A bias is added to the output of its layer, so the gradient of an image is that of the layer's output.
    """
    outputs: dict[str, Tensor] = {}
    model: Any = module.model
    layers = {"encoder": model.posterior.linear, "decoder": model.decoder.layers[0]}
    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, layer in layers.items()
    ]
    loss = module.objective(module.model, x, None, None)["loss"]
    found = torch.autograd.grad(loss.sum(), list(outputs.values()))
    for handle in handles:
        handle.remove()
    result = dict(zip(outputs, found, strict=True))
    return {
        "encoder": result["encoder"][:, :DIM],
        "decoder": result["decoder"].reshape(-1, len(x), DIM).sum(0),
    }


def ratio(draws: Tensor) -> float:
    """The signal-to-noise ratio of draws (n, D), as defined above. It is 0 where the noise hides the signal."""
    mean, noise = draws.mean(0), draws.var(0).sum()
    return float(((mean.square().sum() - noise / len(draws)) / noise).clamp(min=0).sqrt())


def slope(samples: list[int], ratios: list[float]) -> float:
    """The slope of log ratio against log K, by least squares. It is NaN if fewer than two ratios are above 0."""
    points = torch.tensor([[math.log(k), math.log(r)] for k, r in zip(samples, ratios, strict=True) if r > 0])
    if len(points) < 2:
        return math.nan
    centred = points - points.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())


def measure(samples: list[int], draws: int, offset: float, seed: int) -> dict[str, list[float]]:
    """{"iwae decoder": the ratio for each K, ...}"""
    result: dict[str, list[float]] = {f"{objective} {part}": [] for objective, part in PARTS}
    x = math.sqrt(2) * torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    for k in samples:
        for objective in ("iwae", "dreg"):
            torch.manual_seed(seed)
            module, size = build(objective, k, offset), max(1, min(draws, CHUNK // (k * DIM)))
            each = [gradients(module, x.expand(min(size, draws - i), 1, 4, 5)) for i in range(0, draws, size)]
            for name, part in PARTS:
                if name == objective:
                    result[f"{name} {part}"].append(ratio(torch.cat([one[part] for one in each]).double()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 16, 64, 256], help="K")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--offset", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="a folder for run.json and measured.json")
    o = parser.parse_args()
    started = time.perf_counter()
    ratios = measure(o.samples, o.draws, o.offset, o.seed)
    slopes = {name: slope(o.samples, values) for name, values in ratios.items()}
    print("| gradient | " + " | ".join(f"K = {k:,}" for k in o.samples) + " | slope |")
    print("|---" * (len(o.samples) + 2) + "|")
    for name, values in ratios.items():
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in values) + f" | {slopes[name]:+.2f} |")
    if o.out:
        settings = {name: value for name, value in vars(o).items() if name != "out"}
        o.out.mkdir(parents=True, exist_ok=True)
        runs.record_start(o.out, OmegaConf.create(settings))
        facts = {"epochs": 0, "steps": 0, "fit_seconds": time.perf_counter() - started, "device": "cpu"}
        known = {name: value for name, value in slopes.items() if math.isfinite(value)}
        runs.write_json(o.out / "measured.json", {"test": known, "ratios": ratios, **facts})


if __name__ == "__main__":
    main()
