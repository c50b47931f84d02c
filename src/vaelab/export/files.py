"""The files of an export: check its folder, collect weights and pictures, and write all files."""

import importlib.util
import json
from importlib import metadata
from pathlib import Path

from torch import nn

from vaelab.errors import UserError
from vaelab.files import write_atomically
from vaelab.runs import PRIOR, read_pictures

PICTURES = {"reconstructions.png": "images beside their reconstructions", "samples.png": "samples"}  # name, caption


def check(folder: Path) -> None:
    """Raise UserError if a package for ONNX is missing, or if `folder` holds anything other than an export."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise UserError(f"an export needs packages that are not installed ({names}): run pip install -e '.[export]'")
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder / "config.json"):
        raise UserError(f"{folder} holds files other than an export: output=FOLDER chooses another folder")


def _is_export(path: Path) -> bool:
    """Whether a config.json is that of an export. Models of other libraries have a file of this name, too."""
    try:
        config = json.loads(path.read_bytes())
        return all("_target_" in config[group] for group in ("model", "data"))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Replace an earlier export by these files. config.json is last, because a folder without it is not a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "encoder.onnx", "decoder.onnx", "page.html", PRIOR, *PICTURES):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(files, key="config.json".__eq__):
        write_atomically(folder / name, files[name])


def weights(model: nn.Module) -> bytes:
    """The state dict of a model as safetensors, without a prior over codes, which has a file of its own."""
    from safetensors.torch import save

    state = {name: weight.contiguous() for name, weight in model.state_dict().items()
             if not name.startswith("code_prior.")}  # fmt: skip
    return save(state, {"format": "pt", "vaelab": metadata.version("vaelab")})


def pictures(run: Path) -> dict[str, bytes]:
    """The pictures of a run, by file name."""
    found = {name: read_pictures(run, name.removesuffix(".png")) for name in PICTURES}
    return {name: content for name, content in found.items() if content}
