"""The table of experiments, the loops of the speed comparison and the faults give the right rows and results."""

import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from benchmarks import comparison, disentanglement, family, faults, loops, overrides, snr, speed, together


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


def test_a_killed_run_is_resumed_and_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(
        faults.VARIANTS, "default", faults.NARROW + "trainer.max_epochs=3 trainer.limit_train_batches=9"
    )
    monkeypatch.setattr(sys, "argv", ["faults.py", "--minutes", "0", "--variants", "default"])
    faults.main()
    said = capsys.readouterr()
    names, _, row = ([cell.strip() for cell in line.split("|")] for line in said.out.splitlines())
    counts = dict(zip(names, row, strict=True))
    assert (counts["runs"], counts["equal"], counts["lost"], counts["leftover"]) == ("1", "1", "0", "0"), said.err


def test_differences_of_two_runs_are_found(finished: Path, tmp_path: Path) -> None:
    ours = tmp_path / "run"
    shutil.copytree(finished, ours)
    metrics = json.loads((ours / "metrics.json").read_text())
    (ours / "metrics.json").write_text(json.dumps(metrics | {"fit_seconds": 1e9}))
    assert list(faults.differences(ours, finished)) == []
    (ours / "metrics.json").write_text(json.dumps(metrics | {"steps": 3}))
    last = torch.load(ours / "checkpoints/last.ckpt", weights_only=True)
    last["optimizer_states"][0]["state"][0]["exp_avg"][0, 0] += 1e-7
    torch.save(last, ours / "checkpoints/last.ckpt")
    (ours / "checkpoints/best.ckpt").unlink()
    with SummaryWriter(str(ours)) as board:
        board.add_scalar("val/loss", 1.0, 999)
    found = "\n".join(faults.differences(ours, finished))
    for what in (r"last.ckpt: .optimizer_states.0.state.0.exp_avg$", "best.ckpt: ", r"metrics.json: .steps \(3 instead",
                 r"curve val/loss: steps \[999\] differ"):  # fmt: skip
        assert re.search(what, found, re.M), found
    assert "weights.pt" not in found
    (ours / "weights.pt").write_bytes((ours / "weights.pt").read_bytes()[:-9])
    with pytest.raises(faults.LostError, match=r"weights.pt is damaged"):
        faults.check(ours)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("model.latent_dim=3", ""),
        ("model.latent_dim=3.0", "the default is 20: dimensions of the code"),
        ("model.latent_dim=-3", "the default is 20"),
        ("optimizer.betas.0=1.5", ""),  # an entry of a list has no comment of its own
        ("optimizer.lr=nan", "the default is 0.001: learning rate"),
        ("model.encoder.activation=sine", "one of relu, tanh, silu"),
        ("model.encoder.gated=1", "the default is False"),
        ("data.train_size=abc", ""),  # the default is null
        ("trainer.limit_val_batches=null", ""),
        ("data=mnist", ""),
    ],
)
def test_a_value_is_compared_with_the_comment_of_its_setting(change: str, why: str) -> None:
    found = overrides.odd([], change)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_a_sentence_names_the_setting_or_the_value() -> None:
    assert not overrides.vague("error: latent_dim=0: a whole number", ["model.latent_dim=0"])
    assert not overrides.vague("error: Invalid beta at index 1: 7", ["optimizer.betas.1=7"])
    assert overrides.vague("error: Missing value at index 1", ["optimizer.betas.1='???'"])
    assert overrides.vague("error: betas: '<=' not supported between float and str", ["optimizer.betas.1=a"])


def test_malformed_settings_are_tried_and_counted(tmp_path: Path) -> None:
    """Both commands run in one process that imports torch once, and that is fresh because each try is a copy of it."""
    commands = [
        ["--tries", "4", "--seed", "1", "--out", str(tmp_path / "tries.txt")],
        ["--try", "model.latent_dim=[1]"],
    ]
    script = f"import runpy, sys\nfor words in {commands}:\n    sys.argv[1:] = words\n"
    script += f"    runpy.run_path({overrides.__file__!r}, run_name='__main__')\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300, cwd=ROOT
    )
    assert "4 tries, seed 1" in done.stdout
    assert len((tmp_path / "tries.txt").read_text().split("\n    ")) == 5
    assert "| refused | 1 |" in done.stdout.rpartition("1 tries, seed 0")[2]


def test_the_ratio_of_draws_with_a_known_signal_and_of_pure_noise() -> None:
    noise = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert snr.ratio(noise + 0.3) == pytest.approx(0.3, abs=0.005)  # |g| / sqrt(tr C) = 2 * 0.3 / 2
    assert snr.ratio(noise) < 0.01
    assert snr.slope([1, 10, 100], [0.2, 0.02, 0.002]) == pytest.approx(-1)


def test_more_samples_help_the_gradients_of_the_decoder_and_of_dreg_but_harm_iwae_s_encoder() -> None:
    found = snr.measure([1, 64], 4000, 0.1, seed=0)
    assert snr.slope([1, 64], found["iwae decoder"]) == pytest.approx(0.5, abs=0.05)
    assert snr.slope([1, 64], found["iwae encoder"]) < -0.3
    assert snr.slope([1, 64], found["dreg encoder"]) > 0.2


def test_the_gradient_of_a_bias_is_that_of_its_layer_s_output() -> None:
    module, x = snr.build("iwae", 3, 0.1), torch.randn(1, 1, 4, 5)
    torch.manual_seed(0)
    each = snr.gradients(module, x)
    torch.manual_seed(0)
    module.objective(module.model, x, None, None)["loss"].sum().backward()
    torch.testing.assert_close(each["encoder"][0], module.model.posterior.linear.bias.grad[: snr.DIM])
    torch.testing.assert_close(each["decoder"][0], module.model.decoder.layers[0].bias.grad)


def test_the_spectrum_of_the_digits_of_a_folder(
    data_root: Path, digits: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["--noise", "392", "1", f"--root={data_root}", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["spectrum.py", *words])
    runpy.run_path(str(ROOT / "benchmarks/spectrum.py"), run_name="__main__")
    images = digits[0][:600].flatten(1).numpy() / 255
    count = int((np.linalg.eigvalsh(np.cov(images, rowvar=False, bias=True)) > 1).sum())
    assert f"beta sigma^2 = 392: 0 units\nbeta sigma^2 = 1: {count} units" in capsys.readouterr().out
    assert json.loads((tmp_path / "measured.json").read_text())["test"] == {"units at 392": 0, "units at 1": count}


def test_runs_of_one_method_are_a_row_and_a_mark(tmp_path: Path) -> None:
    """MIG is 0.1 and 0.3 for one method, 0.5 and 0.7 for the other: the means explain 0.16 of 0.2."""
    for i, (beta, mig) in enumerate([(1.0, 0.1), (1.0, 0.3), (4.0, 0.5), (4.0, 0.7)]):
        folder = tmp_path / f"{9 - i}_run"
        folder.mkdir()
        target = "vaelab.objectives.ELBO"
        (folder / "config.yaml").write_text(json.dumps({"objective": {"_target_": target, "beta": beta}}))
        found = {"mig": mig, "squared_error": 10.0 + i, "dci_disentanglement": 0.2 + i / 100}
        (folder / "evaluation.json").write_text(json.dumps({"metrics": found}))
    groups = disentanglement.read(tmp_path)
    assert list(groups) == ["ELBO, beta 1", "ELBO, beta 4"]
    assert disentanglement.explained(groups, "mig") == pytest.approx(0.16 / 0.2)
    assert math.isnan(disentanglement.explained({"one": [{"mig": 1.0}], "other": [{"mig": 1.0}]}, "mig"))
    header, _, first, second, _, shares = disentanglement.table(groups).splitlines()
    assert header == "| method | runs | squared error | MIG | DCI |"
    assert first == "| ELBO, beta 1 | 2 | 10.5 ± 0.7 | 0.200 ± 0.141 | 0.205 ± 0.007 |"
    assert second.startswith("| ELBO, beta 4 | 2 | 12.5 ± 0.7 | 0.600 ± 0.141")
    assert "(chance: 0.33): squared error 0.80, MIG 0.80" in shares
    disentanglement.draw(groups, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 20


def test_the_comparison_has_seeds_and_references(tmp_path: Path) -> None:
    for i, (name, density, distance) in enumerate([("vae", None, 4.0), ("vae", None, 6.0), ("rae", "gmm", 1.25)]):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "config.yaml").write_text(f"name: {name}\n")
        metrics = {"frechet_distance": distance, "active_units": 20} | ({} if density else {"elbo": -100.0 - i})
        found = {
            "protocol": {"binarization": "none" if density else "static(0)", "density": density},
            "metrics": metrics,
            "references": {"real": {"frechet_distance": 0.03}, "noise": {"frechet_distance": 35.0}},
        }
        (tmp_path / str(i) / "evaluation.json").write_text(json.dumps(found))
    binary, grey = comparison.read([tmp_path]).values()
    assert comparison.table(binary, comparison.LIKELIHOOD, references=False).splitlines()[2:] == [
        "| vae | 2 | -100.5 ± 0.7 | 20 ± 0.0 |"
    ]
    assert comparison.table(grey, comparison.SAMPLES, references=True).splitlines()[2:] == [
        "| rae, density=gmm | 1 | 1.250 |", "| *training images* | | 0.030 |", "| *test images* | | – |",
        "| *noise* | | 35.0 |",
    ]  # fmt: skip
