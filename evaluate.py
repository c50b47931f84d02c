"""Measure a finished run: `python evaluate.py run=logs/RUN`; `--help` lists the settings."""

from pathlib import Path

from omegaconf import DictConfig

from vaelab import cli


def evaluate(cfg: DictConfig, _: Path) -> None:
    """Measure on the test set, print, write evaluation.json."""
    from vaelab import runs

    run = runs.open_run(cfg.run, cfg.data.root, cfg.device)
    print(run.model)


if __name__ == "__main__":
    cli.main(evaluate, Path(__file__).parent / "configs", "evaluate")
