"""Draw a finished run: `python generate.py run=logs/RUN kind=samples`; `--help` lists the kinds and the settings."""

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from vaelab import cli
from vaelab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.runs import Run

KINDS: dict[str, tuple[str, ...]] = {  # each kind with the settings that change its picture
    "samples": ("label", "density", "num", "seed"),
    "reconstructions": ("num", "seed"),
    "interpolation": ("num", "seed"),
    "traversal": ("index", "seed"),
    "manifold": ("label",),
    "codes": ("projection", "num", "seed"),
    "prior": ("seed",),
    "training": (),
    "ae_vs_vae": (),
}
DEFAULTS = {"label": None, "density": None, "projection": None, "index": None, "num": None, "seed": 0}


def generate(cfg: DictConfig, _: Path) -> None:
    """Draw one picture of a run, write it to the run's folder and print its path."""
    from vaelab import pictures, runs

    chosen = {key: cfg[key] for key, default in DEFAULTS.items() if cfg[key] != default}
    check(cfg, list(chosen))
    folders = cfg.run if cfg.kind == "ae_vs_vae" else [cfg.run]
    run, *others = (runs.open_run(folder, cfg.data.root, cfg.device, trust=cfg.trust) for folder in folders)
    picture = draw(cfg, run, *others)
    name = "_".join([cfg.kind, *(other.folder.name for other in others), *(f"{key}-{chosen[key]}" for key in chosen)])
    path = run.folder / "generated" / f"{name}.{'gif' if cfg.kind == 'training' else cfg.format}"
    about = "; ".join(f"{each.folder.name}: {each.data.description}" for each in (run, *others))
    pictures.save(picture, path, shlex.join(["python", *sys.argv]), about)
    for caveat in runs.find_caveats(run.model, run.cfg) if cfg.kind == "samples" and not cfg.density else ():
        print(caveat)
    print(runs.shown(path))


def check(cfg: DictConfig, chosen: list[str]) -> None:
    """Raise UserError for a setting that is out of its range, or that the kind does not take."""
    from vaelab import checks
    from vaelab.evaluation.densities import DENSITIES

    checks.one_of(tuple(KINDS), kind=cfg.kind)
    checks.one_of((None, *DENSITIES), density=cfg.density)
    checks.one_of((None, "pca", "tsne"), projection=cfg.projection)
    checks.one_of(("png",) if cfg.kind == "training" else ("png", "svg"), format=cfg.format)
    checks.whole(0, seed=cfg.seed, index=0 if cfg.index is None else cfg.index)
    checks.whole(num=1 if cfg.num is None else cfg.num)
    if cfg.num is not None and cfg.num > 10_000:
        raise UserError(f"num={cfg.num}: a picture holds 10,000 images at most")
    for key in chosen:
        if key not in KINDS[cfg.kind]:
            takes = " and ".join(KINDS[cfg.kind]) or "no such setting"
            raise UserError(f"{key}={cfg[key]} changes nothing in kind={cfg.kind}, which takes {takes}")
    if {"index", "seed"} <= {*chosen}:
        raise UserError(f"index={cfg.index} chooses the image, so that seed={cfg.seed} changes nothing: leave one out")
    needed = 2 if cfg.kind == "ae_vs_vae" else 1
    if needed != (len(cfg.run) if isinstance(cfg.run, ListConfig) else 1):
        example = "two runs, 'run=[AUTOENCODER,VAE]'" if needed == 2 else "one run, run=logs/RUN"
        raise UserError(f"run={cfg.run}: kind={cfg.kind} draws {example}")


def draw(cfg: DictConfig, run: "Run", *others: "Run") -> Any:
    """The picture: a matplotlib Figure, or the frames of an animation."""
    from vaelab import pictures, runs
    from vaelab.interfaces import labels, name_of_image

    model, given = run.model, "" if cfg.label is None else f", class {cfg.label}"
    image = name_of_image(model, given)
    match cfg.kind:
        case "samples":
            picture, source = samples(cfg, run)
            classes = range(pictures.drawn_classes(model) if cfg.label is None else 0)
            title, axis = f"Samples: {image}, z from {source}", "class" if classes else ""
            return pictures.framed(picture, title, columns=[str(k) for k in classes], xlabel=axis)
        case "reconstructions":
            x, y = images(run, cfg.seed, cfg.num or 32)
            pairs = pictures.reconstructions(model, x, labels(model, y))
            return pictures.framed(pairs, f"Test images, each with {image} at its code on the right")
        case "interpolation":
            return pictures.interpolation(model, *images(run, cfg.seed), cfg.num or 5)
        case "traversal":
            name = "a test image" if cfg.index is None else f"test image {cfg.index}"
            return pictures.traversal(model, *images(run, cfg.seed, first=cfg.index), name)
        case "manifold":
            steps = [f"{(i + 0.5) / 20:.1%}" for i in range(20)]
            return pictures.framed(
                pictures.manifold(model, len(steps), cfg.label), f"{image} at the prior's quantiles",
                steps[::-1], steps, xlabel="$z_0$, by quantile of its prior", ylabel="$z_1$, by quantile of its prior",
            )  # fmt: skip
        case "codes":
            return pictures.codes(model, *images(run, cfg.seed, cfg.num or 5000), cfg.projection, cfg.seed)
        case "prior":
            return pictures.prior(model, *images(run, cfg.seed), cfg.seed)
        case "training":
            metrics = runs.read_json(run.folder / "metrics.json")
            return pictures.training(run.folder, metrics.get("epochs", 0), metrics.get("steps", 0))
    panels = [(each.folder.name, each.model, *images(each, 0, 5000)) for each in (run, *others)]
    return pictures.ae_vs_vae(panels)


def samples(cfg: DictConfig, run: "Run") -> "tuple[Tensor, str]":
    """Samples from the prior, or from a density that is fitted to codes, and the name of this source."""
    from vaelab import pictures
    from vaelab.evaluation import densities

    model, num, source = run.model, cfg.num or 64, "p(z)"
    if cfg.label is not None:
        pictures.one_class(model, cfg.label)  # raises UserError before a density is fitted
    elif not (cfg.density and not model.num_classes) and num < (classes := pictures.drawn_classes(model)):
        raise UserError(f"num={num}: all {classes} classes are drawn in turn: raise num or set label=3")
    if cfg.density:
        if cfg.label is not None and not model.num_classes:
            raise UserError(
                f"label={cfg.label}: density={cfg.density} is fitted to the codes of all classes: leave it out"
            )
        model.prior = densities.fit(cfg.density, model, run.data.train_dataloader(), cfg.seed)
        source = f"{densities.DENSITIES[cfg.density][0]} fitted to codes"
    return pictures.samples(model, num, cfg.seed, math.isqrt(num - 1) + 1, cfg.label), source


def images(run: "Run", seed: int, count: int | None = None, first: int | None = None) -> "tuple[Tensor, Tensor | None]":
    """The first `count` test images, uint8, and their classes or None, in an order that depends on the seed alone.

    The image that is `first` comes before all others. Raises UserError if there is no such image.
    """
    import torch

    from vaelab.interfaces import device_of

    device, (pixels, y) = device_of(run.model), run.data.pixels("test")
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    if first is not None:
        if first >= len(pixels):
            raise UserError(f"index={first}: the test images of {run.data.name} are 0 to {len(pixels) - 1:,}")
        order = torch.cat([torch.tensor([first]), order[order != first]])
    order = order[:count]
    return pixels[order].to(device), None if y is None else y[order].to(device)


if __name__ == "__main__":
    cli.main(generate, Path(__file__).parent / "configs", "generate")
