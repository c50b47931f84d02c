"""Train a prior over the codes of a finished VQ-VAE: `python train_prior.py run=logs/RUN`; `--help` lists settings."""

import math
import os
from pathlib import Path

from omegaconf import DictConfig

from vaelab import checks, cli
from vaelab.errors import UserError


def train_prior(cfg: DictConfig, _: Path) -> None:
    """Fit a PixelCNN to the codes of the training images, and write it to prior.pt in the run's folder."""
    from tqdm import tqdm

    from vaelab import runs
    from vaelab.evaluation import codebook
    from vaelab.interfaces import device_of, quantises
    from vaelab.networks import PixelCNN
    from vaelab.noise import fixed_noise

    checks.whole(epochs=cfg.epochs, batch_size=cfg.batch_size)
    checks.positive(lr=cfg.lr)
    checks.whole(0, checks.SEEDS, seed=cfg.seed)
    run = runs.open_run(cfg.run, cfg.data.root, cfg.device, trust=cfg.trust, with_prior=False)
    model, data, device = run.model, run.data, device_of(run.model)
    if not quantises(model):
        raise UserError(
            f"run={cfg.run}: only a VQ-VAE needs a prior over its codes, and this is a {type(model).__name__}"
        )
    if not os.access(run.folder, os.W_OK):  # before minutes of training
        raise UserError(f"{run.folder} cannot be written to, but {runs.PRIOR} goes there: copy it first")
    sizes = {name: cfg[name] for name in runs.PRIOR_SIZES}
    with fixed_noise(device, cfg.seed):
        prior = PixelCNN(len(model.codebook), **sizes).to(device)
    if runs.bytes_of(prior) > runs.MOST_PRIOR - 10**6:  # the file has more than the weights
        raise UserError(
            f"a prior with channels={cfg.channels}, kernel_size={cfg.kernel_size} and num_blocks={cfg.num_blocks} for "
            f"{len(model.codebook):,} codes has {runs.bytes_of(prior):,} bytes, and at most {runs.MOST_PRIOR:,} are "
            "loaded again: choose smaller ones"
        )
    maps = {split: codebook.code_maps(model, data.pixels(split)[0]) for split in ("train", "val", "test") if
            len(data.splits[split][0])}  # fmt: skip
    (count, height, width), codes = maps["train"].shape, len(model.codebook)
    uniform = height * width * math.log(codes)
    print(f"training a prior on {count:,} maps of {height} x {width} codes out of {codes:,}, {data.description}")
    print(f"uniform codes have {uniform:.2f} nats per image", flush=True)

    def show(epoch: int, train: float, val: float | None) -> None:
        tqdm.write(f"epoch {epoch}: train {train:.2f}" + ("" if val is None else f", validation {val:.2f}"))

    fit = codebook.fit_prior(prior, maps["train"], maps.get("val"), cfg.epochs, cfg.batch_size, cfg.lr, cfg.seed, show)
    path = runs.write_prior(run.folder, model, prior, sizes)
    reached = {split: codebook.nats(prior, maps[split]).mean().item() for split in maps if split != "train"}
    each = ", ".join(f"{split} {value:.2f}" for split, value in reached.items())
    print(f"{runs.shown(path)}: the weights after epoch {fit.epoch}; nats per image: {each}")


if __name__ == "__main__":
    cli.main(train_prior, Path(__file__).parent / "configs", "train_prior")
