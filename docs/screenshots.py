"""Take a screenshot of each TensorBoard tab in a browser: `python docs/screenshots.py logs FOLDER` writes PNG files.

It needs Chromium or Chrome. It fails if a tab cannot be reached, but it does not check the content of a tab.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

TABS = ("timeseries", "scalars", "images", "custom_scalars", "hparams", "projector")
PORT = 6123


def main(logdir: str, folder: Path) -> None:
    """Write one picture of 1,600 x 1,200 pixels for each tab."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("error: there is no chromium or google-chrome on the PATH: install one of them")
    folder.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--port", str(PORT), "--load_fast=false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(f"http://localhost:{PORT}/data/runs")
        for tab in TABS:
            picture = folder / f"{tab}.png"
            with tempfile.TemporaryDirectory() as profile:
                subprocess.run(
                    [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1600,1200",
                     "--enable-unsafe-swiftshader", f"--user-data-dir={profile}", "--virtual-time-budget=30000",
                     f"--screenshot={picture.absolute()}", f"http://localhost:{PORT}/#{tab}"],
                    check=True, capture_output=True, timeout=180,
                )  # fmt: skip
            print(picture)
    finally:
        server.terminate()


def _wait(url: str) -> None:
    """Wait until the server has read the runs. Exit with an error after a minute."""
    for _ in range(60):
        time.sleep(1)
        try:
            if urllib.request.urlopen(url).read().strip() != b"[]":
                return
        except OSError:
            pass
    sys.exit("error: TensorBoard did not start, or the folder holds no runs")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {__doc__}")
    main(sys.argv[1], Path(sys.argv[2]))
