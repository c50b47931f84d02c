"""The cost of the importance-weighted log-likelihood: seconds, the ratio to the matrix products alone, and memory.

    python benchmarks/evaluation.py                     # 10,000 images, 5,000 samples, 784-400-20
    python benchmarks/evaluation.py --images 500        # a rough result in a minute
    python benchmarks/evaluation.py --scaling           # different K, images and latent dimensions

Each of the `--rounds` rounds measures first the evaluator on a share of the images, and then the matrix products of the
same layers for the same number of rows. Process, threads and chunk size are the same. The ratio is that of the total
times. Memory is the peak of the process, minus its memory after libraries and images are loaded.
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vaelab.evaluation import likelihood
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal
from vaelab.training import threads

STATUS = Path("/proc/self/status")  # exists on Linux only


def build(latent_dim: int) -> Any:
    """The default model of train.py, 784-400-D, untrained, because the time does not depend on the weights."""
    decoder = partial(MLPDecoder, hidden=[400])
    return VAE(latent_dim, (1, 28, 28), MLPEncoder, DiagonalGaussian, StandardNormal, decoder, Bernoulli()).eval()


@torch.inference_mode()
def products(model: Any, images: int, num_samples: int, rows: int) -> None:
    """Run the decoder's matrix products for each sample of each image, and the encoder's for each chunk of samples."""
    weights = [w for w in model.decoder.parameters() if w.dim() == 2]
    inputs = [torch.randn(rows, w.shape[1]) for w in weights]
    encoder = [w for part in (model.encoder, model.posterior) for w in part.parameters() if w.dim() == 2]
    seen = max(1, rows // 100)  # images of a chunk
    features = [torch.randn(seen, w.shape[1]) for w in encoder]
    for done in range(0, images * num_samples, rows):
        left = images * num_samples - done  # the last chunk is smaller
        for x, w in zip(inputs + features, weights + encoder, strict=True):
            x[:left] @ w.T


def seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def memory(name: str) -> float:
    """The memory of this process, VmRSS, or its peak, VmHWM, in GB."""
    if not STATUS.exists():
        return float("nan")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def compare(images: int, num_samples: int, latent_dim: int, rounds: int) -> str:
    """Measure one row of the table."""
    model = build(latent_dim)
    x = (torch.rand(images, 1, 28, 28) < 0.13).float()
    rows = likelihood.rows_at_once(model, x[:1], None)
    held = memory("VmRSS")
    ours, bare = [], []
    for share in x.chunk(rounds):
        ours.append(seconds(partial(likelihood.importance_weighted, model, share, None, num_samples)))
        bare.append(seconds(partial(products, model, len(share), num_samples, rows)))
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    gigabytes = memory("VmHWM") - held
    per_row = sum(ours) / (images * num_samples) * 1e6
    return (
        f"| {images:,} | {num_samples:,} | {latent_dim} | {sum(ours):.1f} | {sum(bare):.1f} "
        f"| {sum(ours) / sum(bare):.2f} | {spread} | {per_row:.2f} | {gigabytes:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--latent-dim", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--scaling", action="store_true")
    options = parser.parse_args()
    torch.distributions.Distribution.set_default_validate_args(False)
    threads.tune(torch.device("cpu"))  # as evaluate.py does
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| images | K | latent dim | evaluator, s | products, s | ratio | range | µs / sample | peak memory, GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    sizes = [(options.images, options.samples, options.latent_dim)]
    if options.scaling:
        sizes = [(100, 50, 20), (100, 500, 20), (100, 5000, 20), (1000, 500, 20), (100, 500, 2), (100, 500, 200)]
    for size in sizes:
        print(compare(*size, options.rounds), flush=True)


if __name__ == "__main__":
    main()
