"""Record finished runs of experiments for their pages: `python docs/record.py logs/RUN...`, then build the site.

A run of `experiment=NAME` gives docs/methods/runs/NAME.json, with its settings and test metrics, and
docs/methods/pictures/NAME.png, with its reconstructions above its samples.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vaelab import runs
from vaelab.export.card import commands

HERE = Path(__file__).parent / "methods"
GAP = 8  # pixels between reconstructions and samples


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        metrics, starts = runs.read_json(folder / "metrics.json"), runs.read_json(folder / "run.json").get("starts", [])
        if not metrics or not starts:
            sys.exit(f"error: {folder} holds no finished run")
        experiments = [one.partition("=")[2] for one in starts[0]["overrides"] if one.startswith("experiment=")]
        if not experiments:
            sys.exit(f"error: {folder} is a run without experiment=NAME")
        (HERE / "runs").mkdir(parents=True, exist_ok=True)
        (HERE / "pictures").mkdir(exist_ok=True)
        text = json.dumps(record(metrics, starts), indent=2, ensure_ascii=False)
        (HERE / "runs" / f"{experiments[0]}.json").write_text(f"{text}\n")
        picture(folder / "pictures").save(HERE / "pictures" / f"{experiments[0]}.png", optimize=True)


def record(metrics: dict[str, Any], starts: list[dict[str, Any]]) -> dict[str, Any]:
    """The commands of a run, what its files say about its data and test metrics, and the time of its last start."""
    last = starts[-1]
    facts = {"processor": last["machine"]["processor"], "versions": last["versions"], "time": last["time"]}
    names = ("protocol", "weights", "test", "epochs", "steps", "fit_seconds", "device")
    return {"commands": commands({"starts": starts}), **facts} | {name: metrics[name] for name in names}


def picture(folder: Path) -> Image.Image:
    """The reconstructions above the samples, if the run has any."""
    files = [folder / f"{name}.png" for name in ("reconstructions", "samples")]
    parts = [wide(Image.open(path)) for path in files if path.is_file()]
    whole = Image.new(
        parts[0].mode, (max(part.width for part in parts), sum(part.height + GAP for part in parts) - GAP)
    )
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + GAP
    return whole


def wide(page: Image.Image) -> Image.Image:
    """A grid without the title above it, and a square one as its upper and its lower half beside each other.

    The title is black on white and does not touch the left edge, where the border of the grid is grey. Both halves keep
    the border between them, 2 pixels.
    """
    levels = np.asarray(page.convert("L"))
    top = int((levels[:, 0] < 255).argmax())
    grid = page.crop((0, top, int((levels[top] < 255).sum()), page.height))
    width, middle = grid.width, grid.width // 2
    if grid.height < width:
        return grid
    halves = Image.new(grid.mode, (2 * width - 2, middle + 1))
    halves.paste(grid.crop((0, 0, width, middle + 1)), (0, 0))
    halves.paste(grid.crop((0, middle - 1, width, grid.height)), (width - 2, 0))
    return halves


if __name__ == "__main__":
    main(sys.argv[1:])
