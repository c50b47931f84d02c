"""callbacks=lr_finder searches a learning rate, prints it, draws the search and trains with it."""

import logging
from pathlib import Path

import pytest
from conftest import Compose, checkpoint, equal
from PIL import Image

from train import train

SMALL = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "callbacks.pictures.count=0", "callbacks=lr_finder"]
SEARCH = ["trainer.limit_train_batches=null", "callbacks.lr_finder.num_training_steps=20", "trainer.max_epochs=2"]

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # raised by Lightning's own use of torch


def test_the_rate_is_printed_drawn_and_used(config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vaelab"):
        train(config(*SMALL, *SEARCH), tmp_path)
    rate = checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"]
    assert 1e-6 < rate <= 1
    assert rate != 1e-3
    assert f"suggestion {rate:.3g}; pictures/lr_finder.png shows the search" in caplog.text
    with Image.open(tmp_path / "pictures" / "lr_finder.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 20


def test_a_rate_that_is_only_printed_changes_nothing(config: Compose, tmp_path: Path) -> None:
    for name, own in (("plain", ["~callbacks.lr_finder"]), ("printed", ["callbacks.lr_finder.update_attr=false"])):
        (tmp_path / name).mkdir()
        train(config(*SMALL, *SEARCH, *own), tmp_path / name)
    assert (tmp_path / "printed" / "pictures" / "lr_finder.png").is_file()
    assert equal(*(checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "printed")))


def test_a_search_of_too_few_steps_has_no_suggestion(
    config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vaelab"):
        train(config(*SMALL, "callbacks.lr_finder.num_training_steps=5"), tmp_path)
    assert "no suggestion, because the search took too few steps" in caplog.text
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3
