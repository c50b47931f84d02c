"""The table of experiments: what it shows, and what it names."""

from pathlib import Path

from benchmarks import family


def metrics(**test: float) -> dict:
    protocol = {"binarization": {"test": "static(0)"}}
    return {"test": test, "fit_seconds": 6.0, "epochs": 3, "protocol": protocol}


def test_a_row_shows_the_bound_that_was_optimised() -> None:
    row = family.row("iwae objective.num_samples=5", metrics(bound=-90.0, elbo=-95.0, rate=20.0, distortion=75.0))
    assert row == "| `iwae` | -90.0 | 20.0 | 75.0 | 2.00 | objective.num_samples=5 |"
    assert family.row("autoencoder", metrics(distortion=75.0)) == "| `autoencoder` | – | – | 75.0 | 2.00 |  |"


def test_a_collapsed_code_is_named() -> None:
    assert "COLLAPSED: rate is below 0.1" in family.row("vae", metrics(elbo=-200.0, rate=0.05, distortion=200.0))
    layers = family.row("ladder_vae", metrics(elbo=-99.0, rate=19.0, rate_1=0.01, rate_2=18.99, distortion=80.0))
    assert "COLLAPSED: rate_1 is below 0.1" in layers
    assert "COLLAPSED: rate_2" not in layers


def test_runs_experiments_by_name_and_says_why_one_failed(tmp_path: Path) -> None:
    done = family.run("vae trainer.limit_test_batches=1", 3, tmp_path / "run")
    assert done["protocol"]["dataset"] == "MNIST-5k"
    assert done["steps"] >= 3
    assert "| `vae` | -" in family.row("vae", done)
    failed = family.row("nonsense", family.run("nonsense", 3, tmp_path / "other"))
    assert "FAILED: error: experiment=nonsense: choose one of" in failed
