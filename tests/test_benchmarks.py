"""The table of experiments and the loops of the speed comparison give the right rows and results."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import family, loops, speed, together


def metrics(**test: float) -> dict:
    protocol = {"binarization": {"test": "static(0)"}}
    return {"test": test, "fit_seconds": 6.0, "epochs": 3, "protocol": protocol}


def test_a_row_shows_the_bound_that_was_optimised() -> None:
    row = family.row("iwae objective.num_samples=5", metrics(bound=-90.0, elbo=-95.0, rate=20.0, distortion=75.0))
    assert row == "| `iwae` | -90.0 | 20.0 | 75.0 | 2.00 | objective.num_samples=5 |"
    assert family.row("autoencoder", metrics(distortion=75.0)) == "| `autoencoder` | – | – | 75.0 | 2.00 |  |"


def test_a_collapsed_code_is_named() -> None:
    assert "COLLAPSED: rate is below 0.1" in family.row(
        "vae_iwae_protocol", metrics(elbo=-200.0, rate=0.05, distortion=200.0)
    )
    layers = family.row("ladder_vae", metrics(elbo=-99.0, rate=19.0, rate_1=0.01, rate_2=18.99, distortion=80.0))
    assert "COLLAPSED: rate_1 is below 0.1" in layers
    assert "COLLAPSED: rate_2" not in layers


def test_runs_experiments_by_name_and_says_why_one_failed(tmp_path: Path) -> None:
    done = family.run("vae_iwae_protocol trainer.limit_test_batches=1", 3, tmp_path / "run")
    assert done["protocol"]["dataset"] == "MNIST-5k"
    assert done["steps"] >= 3
    assert "| `vae_iwae_protocol` | -" in family.row("vae_iwae_protocol", done)
    failed = family.row("nonsense", family.run("nonsense", 3, tmp_path / "other"))
    assert "FAILED: error: experiment=nonsense: choose one of" in failed


def options(**changed: object) -> Namespace:
    """The options of one loop with 16 images per batch."""
    same = {"model": "mlp", "loop": "bare", "batch_size": 16, "device": "cpu", "precision": "32", "overrides": []}
    return Namespace(**{**same, "images": 48, "epochs": 1, **changed})


def test_the_loops_by_hand_optimise_the_loss_of_the_project() -> None:
    x = (torch.rand(5, 1, 28, 28) < 0.3).float()
    parts = loops.network(options(loop="parts"))
    losses = []
    for net in (parts, loops.network(options()), loops.network(options(), logits=False)):
        weights = dict(zip(net.state_dict(), parts.state_dict().values(), strict=True))
        net.load_state_dict(weights)
        torch.manual_seed(0)
        loss, *terms = net(x)
        losses.append(loss.item())
        assert len(terms) >= 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)


@pytest.mark.parametrize(("model", "matrices", "convolutions"), [("mlp", 11, 0), ("conv", 12, 4), ("iwae", 17, 0)])
def test_the_floor_is_every_product_forward_and_backward(
    tmp_path: Path, model: str, matrices: int, convolutions: int
) -> None:
    o = options(model=model, overrides=speed.MODELS[model])
    with torch.profiler.profile(acc_events=True) as profile:
        loops.products(o, loops.Stopwatch(tmp_path, "cpu"))
    counts = {event.key: event.count for event in profile.key_averages()}
    steps = 6  # a step has three products per layer, but two for the first, as its input needs no gradient
    assert counts["aten::mm"] == steps * matrices
    assert counts.get("aten::convolution_backward", 0) == steps * convolutions
    assert len(json.loads((tmp_path / "times.json").read_text())["laps"]) == 3


def test_ratios_are_to_the_bare_loop_of_the_same_round() -> None:
    rounds = [{"bare": {"images_per_second": 20_000.0}, "train": {"images_per_second": 16_000.0}},
              {"bare": {"images_per_second": 10_000.0}, "train": {"images_per_second": 10_000.0}}]  # fmt: skip
    table = speed.columns(rounds)
    assert table["train"]["ratio"] == [1.25, 1.0]
    assert table["bare"]["seconds_per_epoch"] == [3.0, 6.0]


def test_trains_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    where = ["--root", str(tmp_path / "nowhere"), f"out={tmp_path / 'speed'}", "--loops", "train,fast,bare,graph"]
    size = ["--batch-size", "16", "images=200", "rounds=1"]  # both ways to write an option
    monkeypatch.setattr(sys, "argv", ["speed.py", "callbacks.pictures.count=0", *where, *size])
    speed.main()
    said = capsys.readouterr()
    assert "without graph: it needs --device cuda" in said.err
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["images"] == 192
    assert written["data"] == "MNIST-5k"
    assert [*written["loops"]] == ["train", "bare"]
    for loop, measured in written["loops"].items():
        assert speed.row(loop, measured) in said.out
        assert measured["startup"][0] > 0.5  # starting python and torch takes longer
        assert measured["memory"][0] > 2**26
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_models_together_and_in_turn_take_the_same_steps() -> None:
    x = (torch.rand(4, 1, 28, 28) < 0.3).float()
    weights = []
    for at_once in (False, True):
        torch.manual_seed(0)
        step, members = together.build(at_once, 2, 8, x)
        torch.manual_seed(1)
        step()
        weights.append([member.state_dict() for member in members])
    first, second = weights
    assert not torch.equal(first[0]["model.decoder.layers.2.bias"], first[1]["model.decoder.layers.2.bias"])
    for name in first[0]:  # the second model's noise differs between the two ways
        torch.testing.assert_close(second[0][name], first[0][name], rtol=0, atol=1e-6)
    row = together.compare(2, 8, "cpu", steps=1, rounds=2)
    members, hidden, one, turn, batched, ratio, _ = row.strip("| ").split(" | ")
    assert (members, hidden) == ("2", "8")
    assert float(ratio) == pytest.approx(float(batched) / float(one), rel=0.1)
    assert float(turn) > float(one)
