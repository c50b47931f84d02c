"""Measure finished runs: `python evaluate.py run=logs/RUN [setting=value ...]`; `--help` lists them."""

import contextlib
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vaelab import checks, cli
from vaelab.errors import NotOfferedError, UserError
from vaelab.text import FORMATS, plain

if TYPE_CHECKING:
    from vaelab.data.images import Images
    from vaelab.evaluation.measure import Sizes
    from vaelab.evaluation.samples import Sampling
    from vaelab.runs import Run

CONFIGS = Path(__file__).parent / "configs"
OF_TRAINING = (  # settings of the data that change nothing for a classifier, and the class
    *("_target_", "used", "seed", "batch_size", "eval_batch_size", "train_size", "num_labels"),
    *("binarization", "binarization_seed"),
)
OF_IMAGES = ("run", "images", "invert", "sizes.train_samples", "sizes.drawn", "seed", "device", "data.root", "trust")


def evaluate(cfg: DictConfig, _: Path) -> None:
    """Measure runs on the test images: print a table, write evaluation.json and add the results to TensorBoard."""
    import torch

    from vaelab import runs
    from vaelab.evaluation import annealing, measure, report
    from vaelab.runs import sweeps

    torch.distributions.Distribution.set_default_validate_args(False)
    checks.one_of((True, False), ais=cfg.ais, invert=cfg.invert)
    sizes, ais = group(cfg, "sizes", measure.DEFAULT), group(cfg, "annealing", annealing.DEFAULT)
    check_used(cfg)
    if cfg.images:
        return encode(cfg, sizes)
    checks.one_of(FORMATS, format=cfg.format)
    if cfg.report:
        from vaelab import reports

        page = reports.check(cfg.report)
    folders = list(cfg.run) if isinstance(cfg.run, ListConfig) and cfg.run else [cfg.run and str(cfg.run)]
    folders = sweeps.finished_runs(folders) if all(folders) else folders
    opened: dict[str, Run] = {}
    for folder in folders:  # errors of all runs come before the first measurement
        first = next(iter(opened.values()), None)
        opened[folder] = runs.open_run(folder, cfg.data.root, cfg.device, like=first, trust=cfg.trust)
    settings = cfg.num_samples, cfg.num_images, cfg.seed, sizes, ais if cfg.ais else None
    checks.whole(0, samples=cfg.samples)
    samplings = {name: sampling(cfg, run) for name, run in opened.items()}
    protocols = {
        name: measure.protocol(run.model, run.data, *settings, samplings[name]) for name, run in opened.items()
    }
    if not cfg.across_protocols:
        report.check_protocols(protocols)
    reuse = len(folders) > 1 or bool(cfg.report)
    with contextlib.redirect_stdout(
        sys.stdout if cfg.format == "text" else sys.stderr
    ):  # the output is the table alone
        records = {plain(name): measured(run, protocols[name], samplings[name], reuse) for name, run in opened.items()}
    if len(folders) == 1 and cfg.format == "text":
        print(report.table(*records.values()))
    else:
        configs = {plain(name): dict(runs.settings(run.cfg)) for name, run in opened.items()}
        groups = report.seed_groups(configs)
        named = dict(zip(records, opened.values(), strict=True))
        for names in groups:
            compare_seeds([named[name] for name in names], [records[name] for name in names])
        print(report.comparison(records, groups, cfg.format))
    if cfg.report:
        print(f"drawing {runs.shown(page)}", file=sys.stdout if cfg.format == "text" else sys.stderr, flush=True)
        reports.write(page, dict(zip(records, opened.values(), strict=True)), records)


def group(cfg: DictConfig, name: str, default: Any) -> Any:
    """A group of settings as a named tuple like `default`. Raises UserError if a setting is missing or unknown."""
    given, known = cfg[name], default._asdict()
    if not isinstance(given, DictConfig) or {*given} != {*known}:
        raise UserError(f"{name}={given}: it has the settings {', '.join(known)}, and no others")
    return type(default)(*(given[setting] for setting in known))


def sampling(cfg: DictConfig, run: "Run") -> "Sampling":
    """What is measured of a run's samples. Raises UserError if a classifier for its images has not been trained."""
    from vaelab.data import cache
    from vaelab.evaluation import classifier
    from vaelab.evaluation.samples import Sampling

    if not cfg.samples or classifier.lacking(run.data):
        return Sampling(cfg.samples, cfg.density)
    path = classifier.place(run.data, cache.folder())
    if not path.is_file():
        command = classify_command(run.cfg.data)
        raise UserError(f"samples={cfg.samples} needs a classifier of {run.data.name}: {command} trains one")
    found, record = classifier.load(path)
    if path != classifier.DIGITS and record["dataset"] != run.data.name:
        raise UserError(
            f"{path} has a classifier of {record['dataset']}, not of {run.data.name}: delete it, and "
            f"{classify_command(run.cfg.data)} trains the right one"
        )
    return Sampling(cfg.samples, cfg.density, found)


def classify_command(data: DictConfig) -> str:
    """The command that trains a classifier for the data of a run: the option of data= that is nearest, and settings.

    The class of the data is not repeated. Without an option of this class, the command says only what it needs.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def settings(data: DictConfig) -> dict[str, Any]:
        whole: Any = OmegaConf.to_container(data, resolve=True)
        return {key: value for key, value in whole.items() if key not in OF_TRAINING and not isinstance(value, dict)}

    started, found = GlobalHydra.instance().hydra, {}
    mine = settings(data)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
            for path in sorted((CONFIGS / "data").glob("*.yaml")):
                own: Any = OmegaConf.load(path)
                if own.get("_target_", data._target_) != data._target_:  # an option of another option names no class
                    continue
                option = compose("classify", [f"data={path.stem}"]).data
                if option._target_ == data._target_:
                    known = settings(option)
                    differing = (key for key in mine if key in option and known.get(key, ...) != mine[key])
                    found[path.stem] = {key: mine[key] for key in differing}
    finally:
        GlobalHydra.instance().hydra = started
    if not found:
        return "python classify.py with the data settings of this run"
    name = min(found, key=lambda name: len(found[name]))
    words = []
    for key, value in found[name].items():
        bare = isinstance(value, str) and re.fullmatch(r"[\w./~-]+", value)
        words.append(f"data.{key}={value if bare else json.dumps(value, ensure_ascii=False, separators=(',', ':'))}")
    return plain(shlex.join(["python", "classify.py", f"data={name}", *words]))


def check_used(cfg: DictConfig) -> None:
    """Raise UserError for a setting that is not the default one and changes nothing."""
    from vaelab import runs

    for key, default in runs.settings(OmegaConf.load(CONFIGS / "evaluate.yaml")):
        if key.split(".")[0] not in cfg or isinstance(default, dict) or OmegaConf.select(cfg, key) == default:
            continue
        if cfg.images and key not in OF_IMAGES:
            why = f"with images={cfg.images}, which takes {', '.join(OF_IMAGES)}"
        elif key == "invert" and not cfg.images:
            why = "without images=FOLDER"
        elif key.startswith("annealing.") and not cfg.ais:
            why = "without ais=true"
        else:
            continue
        raise UserError(f"{key}={OmegaConf.select(cfg, key)} changes nothing {why}")


def encode(cfg: DictConfig, sizes: "Sizes") -> None:
    """Write the codes of a folder of images to codes.npz in the run's folder, and rank the images."""
    from vaelab import runs
    from vaelab.data.images import write_codes

    checks.whole(2, **{f"sizes.{name}": size for name, size in sizes._asdict().items()})
    checks.whole(0, checks.SEEDS, seed=cfg.seed)
    if not isinstance(cfg.run, str):
        raise UserError(f"run={cfg.run}: codes are written for one run at a time, such as run=logs/RUN")
    run = runs.open_run(cfg.run, cfg.data.root, cfg.device, trust=cfg.trust)
    path = run.folder / "codes.npz"
    images = write_codes(run.model, run.data, cfg.images, path, cfg.invert)
    print(*map(plain, images.remarks), f"{runs.shown(path)}: names and codes of {len(images.names):,} images", sep="\n")
    rank(run, images, sizes.train_samples, sizes.drawn, cfg.seed)


def rank(run: "Run", images: "Images", num_samples: int, most: int, seed: int) -> None:
    """Write strangeness.csv and a picture of the strangest images, compared with the first `most` test images."""
    from vaelab import pictures, runs
    from vaelab.evaluation.strangeness import strangeness
    from vaelab.files import write_atomically
    from vaelab.interfaces import device_of, name_of_image

    test, _ = run.data.images("test", most, device_of(run.model))
    x = run.data.fixed(images.pixels, "test").to(test.device).float().div(255)
    try:
        found = strangeness(run.model, x, test, num_samples, seed)
    except NotOfferedError as error:
        print(f"the images are not ranked: {error}")
        return
    path = run.folder / "strangeness.csv"
    write_atomically(path, found.table(images.names).encode())
    title = f"The strangest images in order, each with {name_of_image(run.model)} on the right"
    drawn = pictures.framed(pictures.reconstructions(run.model, x[found.order[:32]]), title)
    about = f"{run.folder.name}: {run.data.description}"
    pictures.save(drawn, run.folder / "pictures" / "strangest.png", shlex.join(["python", *sys.argv]), about)
    first = found.order[0]
    print(
        f"{runs.shown(path)}: ELBO and IW bound (K = {num_samples:,}) of each image in nats, and the percentage of "
        f"{len(test):,} test images at or below this bound; the strangest image is {plain(images.names[first])}, bound "
        f"{found.bound[first]:.2f}, percentile {found.percentile[first]:.1f}",
        runs.shown(run.folder / "pictures" / "strangest.png"),
        sep="\n",
    )


def measured(run: "Run", protocol: dict[str, Any], sampling: "Sampling", reuse: bool) -> dict[str, Any]:
    """Measure a run and return its record.

    `reuse` returns evaluation.json, without the UDR, if its weights, its protocol and its known metrics are the same.
    """
    from vaelab import pictures, runs
    from vaelab.evaluation.annealing import Annealing
    from vaelab.evaluation.measure import KNOWN, Sizes, measure
    from vaelab.training import tensorboard

    path, weights = run.folder / "evaluation.json", runs.digest(run.model)
    old = runs.read_json(path)
    known = old.get("protocol", {}) if old.get("weights") == weights else {}
    if reuse and known == protocol and old.get("known_metrics") == KNOWN:
        for part in (old["metrics"], old["meanings"]):  # the other seeds of a table can be others
            part.pop("udr", None)
        return {key: value for key, value in old.items() if key != "udr_runs"}
    if not os.access(run.folder, os.W_OK):  # before minutes of measurement
        raise UserError(f"{run.folder} cannot be written to, but evaluation.json goes there: measure a copy of it")
    data = run.data.protocol
    of = f"{protocol['test_images']:,} test images of {data['dataset']}, binarization {data['binarization']['test']}"
    print(f"measuring {runs.shown(run.folder)} on {of}", flush=True)
    settings = protocol["num_samples"], protocol["test_images"], protocol["seed"], Sizes(**protocol["sizes"])
    ais = Annealing(**protocol["ais"]) if protocol["ais"] else None
    measurement = measure(run.model, run.data, *settings, ais, sampling)
    caveats = runs.find_caveats(run.model, run.cfg, measurement.record["metrics"])
    record = {**measurement.record, "caveats": caveats, "weights": weights}
    less = any(known.get(size, 0) > protocol[size] for size in ("num_samples", "test_images", "samples"))
    if less or (known.get("ais") and not ais):
        has = f"K = {known['num_samples']:,}, {known['test_images']:,} test images" + ", AIS" * bool(known.get("ais"))
        has += f", {known['samples']:,} samples" if known.get("samples") else ""
        print(f"{runs.shown(path)} is kept, because it has {has}")
        return record
    runs.write_json(path, record)
    command, about = shlex.join(["python", *sys.argv]), f"{run.folder.name}: {run.data.description}"
    if measurement.pairs is not None:
        title = "The samples nearest to training images, each with its training image on the right"
        nearest = pictures.framed(pictures.grid(measurement.pairs, 8), title)
        pictures.save(nearest, run.folder / "pictures" / "nearest.png", command, about)
    if measurement.checks:
        checked = pictures.predictive_checks(measurement.checks)
        pictures.save(checked, run.folder / "pictures" / "predictive.png", command, about)
    tensorboard.add_evaluation(run.folder, measurement, *run.data.images("test", len(measurement.codes)))
    return record


def compare_seeds(group: "list[Run]", records: list[dict[str, Any]]) -> None:
    """Add the UDR to the records of runs that differ only in the seed, and to the files that hold these records."""
    from vaelab import runs
    from vaelab.evaluation import udr
    from vaelab.interfaces import device_of

    protocols = [record["protocol"] for record in records]
    if any(protocol != protocols[0] for protocol in protocols):
        return  # the images differ
    images = [run.data.images("test", protocols[0]["test_images"], device_of(run.model)) for run in group]
    udr.compare_seeds([run.model for run in group], images, records)
    for run, record in zip(group, records, strict=True):
        path = run.folder / "evaluation.json"
        old = runs.read_json(path)
        if old != record and old.get("protocol") == record["protocol"] and os.access(run.folder, os.W_OK):
            runs.write_json(path, record)


if __name__ == "__main__":
    cli.main(evaluate, CONFIGS, "evaluate")
