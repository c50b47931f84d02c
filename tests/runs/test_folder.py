"""What a run writes into its folder."""

import json
from pathlib import Path

import pytest
from conftest import metrics

from vaelab import runs

TERMS = ("loss", "elbo", "rate", "distortion")


def test_metrics_name_protocol_units_and_metrics(finished: Path) -> None:
    content = metrics(finished)
    assert content["protocol"]["dataset"] == "MNIST"
    assert content["protocol"]["images"] == {"train": 500, "val": 100, "test": 200}
    assert content["epochs"] == 4
    assert content["steps"] == 20
    for split in ("train", "val", "test"):
        means = content[split]
        assert set(TERMS) <= set(means)
        assert means["elbo"] == pytest.approx(-means["rate"] - means["distortion"])
        assert means["loss"] == pytest.approx(-means["elbo"])


def test_config_and_record_tell_what_was_run(finished: Path) -> None:
    cfg = runs.saved_config(finished)
    assert cfg.data.used == "MNIST"
    assert cfg.model.image_shape == [1, 28, 28]
    assert "${" not in (finished / "config.yaml").read_text()
    (start,) = json.loads((finished / "run.json").read_text())["starts"]
    assert {"torch", "lightning", "hydra-core"} <= set(start["versions"])
    assert set(start) >= {"command", "overrides", "git", "time", "python"}
