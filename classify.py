"""Train the classifier in whose features samples are measured: `python classify.py data=NAME`; `--help` says more."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaelab import checks, cli
from vaelab.errors import UserError

CONFIGS = Path(__file__).parent / "configs"


def classify(cfg: DictConfig, _: Path) -> None:
    """Train a classifier of a data set, if there is none yet, and print its accuracy on the test images."""
    from hydra.utils import instantiate
    from tqdm import tqdm

    from vaelab import runs
    from vaelab.data import cache
    from vaelab.evaluation import classifier

    checks.whole(epochs=cfg.epochs)
    checks.whole(0, checks.SEEDS, seed=cfg.seed)
    device = runs.find_device(cfg.device)
    data = instantiate(cfg.data, _convert_="all")
    data.setup()
    if why := classifier.lacking(data):
        raise UserError(f"no classifier can be trained on {data.name}: {why}")
    path = Path(cfg.output).expanduser() if cfg.output else classifier.place(data, cache.folder())
    if cfg.output and (path.suffix != ".safetensors" or not os.access(path.absolute().parent, os.W_OK)):
        raise UserError(f"output={cfg.output}: a file that ends in .safetensors, in a folder that can be written to")
    if cfg.output and path.is_file() and (other := classifier.load(path)[1]["dataset"]) != data.name:
        raise UserError(f"output={cfg.output} has a classifier of {other}, not of {data.name}: choose another file")
    (x, y), (test_x, test_y) = data.read()[1:3]
    if cfg.output or not path.is_file():
        print(f"training on {len(x):,} images of {data.name}", flush=True)
        with tqdm(total=cfg.epochs * len(x), desc="training", unit="image", leave=False, disable=None) as bar:
            model = classifier.fit(x.to(device), y.to(device), cfg.epochs, cfg.seed, bar.update)
        record = {
            "command": shlex.join(["python", *sys.argv]),
            "dataset": data.name,
            "images": {"train": len(x), "test": len(test_x)},
            "image_shape": list(data.image_shape),
            "epochs": cfg.epochs,
            "seed": cfg.seed,
            "accuracy": classifier.accuracy(model, test_x.to(device), test_y.to(device)),
            "device": str(device),
            "versions": {"vaelab": version("vaelab"), "torch": version("torch"), "python": platform.python_version()},
        }
        classifier.save(model, path, record)
    model, record = classifier.load(path)
    default: Any = OmegaConf.load(CONFIGS / "classify.yaml")
    for name in ("epochs", "seed"):
        if cfg[name] not in (default[name], record.get(name)):
            raise UserError(
                f"{name}={cfg[name]} changes nothing: {runs.shown(path)} is there already, trained with "
                f"{name}={record.get(name)}; output=FILE.safetensors trains another classifier"
            )
    found = classifier.accuracy(model.to(device), test_x.to(device), test_y.to(device))
    shares = ", ".join(f"{share:.2%} ({kind})" for kind, share in found.items())
    print(f"{runs.shown(path)}: a classifier of {record['dataset']}, {record.get('epochs')} epochs")
    print(f"right on {len(test_x):,} test images of {data.name}: {shares}")


if __name__ == "__main__":
    cli.main(classify, CONFIGS, "classify")
