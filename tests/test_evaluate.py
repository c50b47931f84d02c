"""`python evaluate.py` prints and writes the right metrics, and refuses wrong input."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, compose_config
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluate import evaluate
from train import train
from vaelab import linear, load_run, runs
from vaelab.evaluation import measure as measure_module
from vaelab.evaluation import report
from vaelab.evaluation.measure import measure, protocol
from vaelab.evaluation.predictive import STATISTICS

Evaluate = Callable[..., dict]
SHORT = ("num_samples=20", "num_images=100", "sizes.train_samples=10", "sizes.steps=10", "sizes.refined_samples=10")

FEW = ("sizes.train_samples=10",)


@pytest.fixture(scope="session")
def trained(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a function that trains a short run for each set of overrides once."""
    known: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in known:
            known[overrides] = tmp_path_factory.mktemp("run")
            train(compose_config(data_root, "callbacks.pictures.count=0", *overrides), known[overrides])
        return known[overrides]

    return make


@pytest.fixture
def run(trained: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Returns a function that copies a finished run, so a test may write into it."""

    def copy(*overrides: str, name: str = "run") -> str:
        return str(shutil.copytree(trained(*overrides), tmp_path / name))

    return copy


def settings(*overrides: str, short: Sequence[str] = SHORT) -> DictConfig:
    """Evaluate with these settings and return the config."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("evaluate", [*short, *overrides])
    evaluate(cfg, Path())
    return cfg


def measured(*overrides: str) -> dict:
    cfg = settings(*overrides)
    return json.loads((Path(cfg.run if isinstance(cfg.run, str) else cfg.run[0]) / "evaluation.json").read_text())


def test_metrics_go_to_the_screen_a_file_and_tensorboard(
    run: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    folder = run()
    record = measured(f"run={folder}")
    metrics = record["metrics"]
    assert record["protocol"] == {
        **{"dataset": "MNIST", "train_images": 500, "test_images": 100, "binarization": "static(0)"},
        **{
            "likelihood": "Bernoulli",
            "num_samples": 20,
            "checked_samples": 200,
            "seed": 0,
            "vaelab": version("vaelab"),
        },
        "sizes": {
            "probed": 10_000,
            "train_samples": 10,
            "refined": 1_000,
            "steps": 10,
            "refined_samples": 10,
            "drawn": 1_000,
            "checked": 100,
        },
        **{"ais": None, "samples": 0, "density": None, "classifier": None},
    }
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])
    assert metrics["inference_gap"] == pytest.approx(metrics["log_likelihood"] - metrics["elbo"])
    parts = metrics["amortization_gap"] + metrics["approximation_gap"]  # with the closer bound
    assert metrics["inference_gap"] + metrics["refined_gain"] == pytest.approx(parts, abs=1)
    assert metrics["elbo"] < metrics["log_likelihood"] < -100
    assert 1 < metrics["ess"] < 20
    assert 0.5 < metrics["low_ess_share"] <= 1
    assert len(record["rate_per_dim"]) == len(record["variance_per_dim"]) == 20
    assert sum(record["rate_per_dim"]) == pytest.approx(metrics["rate"], rel=0.2)
    errors = record["standard_errors"]
    assert 0 < errors["elbo"] < errors["generalization_gap"] < 20
    assert 0.1 < metrics["knn_accuracy"] <= 1
    assert record["weights"] == runs.digest(load_run(folder))
    printed = capsys.readouterr().out
    assert "protocol: MNIST, 100 test images (500 trained on), binarization static(0), Bernoulli" in printed
    assert f"IW bound, K = 20      {metrics['log_likelihood']:>10.2f}" in printed
    assert "IW bound of 100 images, K = 20, q refined for each" in printed
    assert metrics["refined_gain"] == pytest.approx(metrics["refined_bound"] - metrics["log_likelihood"])
    assert measured(f"run={folder}")["metrics"] == metrics  # the same seed, the same metrics
    assert Path(folder, "projector_config.pbtxt").read_text().count("embeddings {") == 1
    (events,) = Path(folder).glob("*.evaluation")
    board = EventAccumulator(str(events)).Reload()
    assert board.Scalars("weights/elbo")[0].value == pytest.approx(metrics["elbo"])
    assert board.Tags()["images"] == ["views/samples beside their nearest training images"]
    with Image.open(f"{folder}/pictures/nearest.png") as picture:
        assert picture.width >= 2 * (8 * 57 + 1)
        assert picture.text["Description"].startswith("run: MNIST (500 / 100 / 200 images")
    assert len(next(Path(folder).glob("**/tensors.tsv")).read_text().splitlines()) == 100
    assert len(next(Path(folder).glob("**/metadata.tsv")).read_text().splitlines()) == 100


def test_the_quality_of_samples(run: Callable[..., str], capsys: pytest.CaptureFixture) -> None:
    folder = run()
    plainly = measured(f"run={folder}")
    again = shutil.copytree(folder, f"{folder}-again")
    old = {**plainly, "known_metrics": plainly["known_metrics"] - 1, "metrics": {"elbo": 0.0}}
    runs.write_json(Path(folder, "evaluation.json"), old)  # of a version that could not measure all
    capsys.readouterr()
    settings(f"run=[{folder},{again}]")
    printed = capsys.readouterr().out
    assert f"measuring {folder} on" in printed
    assert f"measuring {again}" not in printed
    assert json.loads(Path(folder, "evaluation.json").read_text())["metrics"] == plainly["metrics"]

    record = measured(f"run={folder}", "samples=100")
    metrics, references = record["metrics"], record["references"]
    assert metrics.items() >= plainly["metrics"].items()
    names = metrics.keys() - plainly["metrics"].keys()
    quality = set(report.METRICS["quality of the samples"])
    assert names == quality | set(report.METRICS["copies and posterior predictive checks"])
    of_sets = quality - {"classifier_accuracy"}
    assert references["noise"].keys() == of_sets == references["real"].keys() - {"predictive_distance"}
    assert metrics["classifier_accuracy"] > 0.95
    assert metrics["predictive_distance"] == max(record["predictive"][name]["distance"] for name in STATISTICS)
    assert metrics["predictive_p"] < 0.05  # the run is short
    with Image.open(Path(folder, "pictures", "predictive.png")) as picture:
        assert picture.text["Description"].startswith(f"{Path(folder).name}: MNIST")
    assert references["real"]["frechet_distance"] < metrics["frechet_distance"]
    assert record["protocol"]["classifier"].startswith("MNIST ")
    printed = capsys.readouterr().out
    assert "noise seed 0, 100 samples; " in printed
    real, noise = (report.shown(references[kind]["frechet_distance"]) for kind in ("real", "noise"))
    assert f"of 100 samples and 100 test images; training images {real}, noise {noise}" in printed
    assert record["missing"] is None  # fewer than 20 samples of each class are expected
    assert "posterior predictive checks: samples against test images, in statistics of pen strokes\ncheck " in printed
    assert measured(f"run={folder}")["metrics"] == metrics  # the file with more stays
    assert "is kept, because it has K = 20, 100 test images, 100 samples" in capsys.readouterr().out

    fitted = measured(f"run={folder}", "samples=100", "density=gmm")
    assert fitted["protocol"]["density"] == "gmm"
    assert fitted["metrics"]["log_likelihood"] == metrics["log_likelihood"]
    assert fitted["metrics"]["sample_distance"] != metrics["sample_distance"]
    assert fitted["metrics"]["frechet_distance"] != metrics["frechet_distance"]
    assert fitted["references"] == references
    assert "100 samples, samples of density=gmm; " in capsys.readouterr().out


def test_a_model_without_samples_has_no_quality(run: Callable[..., str]) -> None:
    folder = run("experiment=vq_vae")
    record = measured(f"run={folder}", "samples=50")
    assert {"sample_distance", "frechet_distance"} <= record["absent"].keys()
    assert record["references"] == {}
    with pytest.raises(ValueError, match="maps of indices: no density of vectors fits them"):
        measured(f"run={folder}", "density=gmm")


ANNEALING = ("ais=true", "sizes.checked=20", "annealing.chains=4", "annealing.temperatures=20")


def test_annealing_gives_bounds_on_both_sides(run: Callable[..., str], capsys: pytest.CaptureFixture) -> None:
    folder = run()
    record = measured(f"run={folder}", *ANNEALING)
    metrics, errors = record["metrics"], record["standard_errors"]
    assert record["protocol"]["ais"] == {
        "chains": 4,
        "temperatures": 20,
        "leapfrog": 5,
        "start": "q",
        "schedule": "linear",
    }
    assert metrics["ais_gain"] > -2 * errors["ais_gain"]
    assert metrics["drawn_gap"] == pytest.approx(metrics["drawn_upper"] - metrics["drawn_lower"])
    assert metrics["drawn_gap"] > -2 * errors["drawn_gap"]
    printed = capsys.readouterr().out
    assert "lower bound of the same 20 images by AIS, 4 chains" in printed
    assert measured(f"run={folder}", *ANNEALING)["metrics"] == metrics
    capsys.readouterr()
    assert measured(f"run={folder}") == measured(f"run={folder}")  # the file with more stays
    assert measured(f"run={folder}")["metrics"] == metrics
    assert "evaluation.json is kept, because it has K = 20, 100 test images, AIS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "setting", "sentence"),
    [
        ([], "annealing.chains=0", r"annealing\.chains=0: a whole number"),
        ([], "annealing=3", "annealing=3: it has the settings chains, temperatures, leapfrog, start, schedule, and no"),
        (["experiment=vq_vae"], "seed=0", r"ais=true needs one code in R\^D with a density"),
    ],
)
def test_annealing_is_refused_before_anything_is_measured(
    overrides: list[str], setting: str, sentence: str, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "measure", None)
    with pytest.raises(ValueError, match=sentence):
        measured(f"run={run(*overrides)}", "ais=true", setting)
    with pytest.raises(ValueError, match="ais=yes: choose one of True, False"):
        measured("ais='yes'", f"run={run(*overrides, name='again')}")


def test_grey_levels_on_256_steps_have_bits_per_dimension(run: Callable[..., str]) -> None:
    metrics = measured(f"run={run('experiment=discretized_logistic')}")["metrics"]
    assert metrics["bits_per_dim"] == pytest.approx(-metrics["log_likelihood"] / 784 / 0.693147, rel=1e-4)


def test_linear_models_show_the_exact_value_beside_the_estimate(
    run: Callable[..., str], digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    folder = run("experiment=ppca", "trainer.max_epochs=0")
    metrics = measured(f"run={folder}")["metrics"]
    x = digits[0][600:700].float() / 255
    exact = linear.ppca_log_likelihood(load_run(folder).state_dict(), x).mean().item()
    assert metrics["exact_log_likelihood"] == pytest.approx(exact, abs=1e-3)
    assert metrics["log_likelihood"] == pytest.approx(exact, abs=0.01)  # the posterior is exact
    pca = measured(f"run={run('experiment=pca', 'trainer.max_epochs=0', name='pca')}")
    assert "exact_log_likelihood" in pca["metrics"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=autoencoder",),
        ("experiment=vq_vae",),
        ("experiment=conditional_vae",),
        ("experiment=ladder_vae", "model.inference=bottom_up"),
        ("experiment=iaf_posterior", "model.latent_dim=3"),
        ("experiment=joint_vae",),
        ("experiment=vampprior", "model.prior.num_components=10", "trainer.max_epochs=1"),
    ],
    ids=str,
)
def test_what_a_model_has_not_is_absent_with_the_reason(overrides: tuple[str, ...], run: Callable[..., str]) -> None:
    record = measured(f"run={run(*overrides)}")
    metrics, absent = record["metrics"], record["absent"]
    assert {"squared_error", "linear_accuracy"} <= metrics.keys()
    assert metrics.keys() <= {name for meanings in report.METRICS.values() for name in meanings}
    assert ("log_likelihood" in metrics) != ("log_likelihood" in absent)
    assert all(len(reason) > 10 for reason in absent.values())
    if "log_likelihood" in metrics:
        assert metrics["elbo"] <= metrics["log_likelihood"]


def test_autoregressive_pixels_are_measured_without_a_squared_error(run: Callable[..., str]) -> None:
    folder = run("model/likelihood=autoregressive", "model.likelihood.network.channels=4", "callbacks.pictures=null")
    few = [f"sizes.{name}=4" for name in ("probed", "refined", "drawn", "checked", "steps")]
    record = measured(f"run={folder}", "num_images=20", *few)
    assert record["absent"]["squared_error"] == "E[x | z] is not known"
    assert {"log_likelihood", "sample_distance", "refined_bound", "linear_accuracy"} <= record["metrics"].keys()
    assert record["protocol"]["likelihood"] == "Bernoulli"


def test_several_runs_make_a_table_with_the_spread_over_seeds(
    run: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    a, b, c = run(name="a"), run("seed=1", name="b"), run("model.latent_dim=2", name="c")
    first = measured(f"run={a}")
    capsys.readouterr()
    measured(f"run=[{a},{b},{c}]")
    printed = capsys.readouterr().out
    assert f"measuring {a}" not in printed  # evaluation.json holds this protocol already
    assert f"measuring {b}" in printed
    assert f"{first['metrics']['elbo']:.2f}" in next(line for line in printed.splitlines() if line[:3] == "a  ")
    assert "mean ± s.d. of these 2 seeds" in printed
    settings(f"run={Path(a).parent}", "format=csv")  # a folder of runs, such as that of a sweep
    names, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines() if line[:1] != "#"]
    assert [row[0] for row in rows[:3]] == [a, b, c]
    assert float(rows[0][names.index("elbo")]) == first["metrics"]["elbo"]
    settings(f"run={Path(a).parent}/?", "num_samples=21", "format=csv")  # needs a new measurement
    out, err = capsys.readouterr()
    assert f"measuring {a}" in err
    assert out.startswith("run,")


SPRITES = (
    *("data=sprites_32", "data.image_shape=[1,16,16]", "data.factor_sizes=[3,2,4,4,4]", "data.val_size=20"),
    *("data.test_size=164", "model.latent_dim=3", "model.encoder.hidden=[32]", "model.decoder.hidden=[32]"),
)


def test_data_with_factors_have_metrics_of_disentanglement_and_seeds_agree(
    run: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    a, b = run(*SPRITES, name="a"), run(*SPRITES, "seed=1", name="b")
    factors = {*report.METRICS["factors of variation"]}
    record = measured(f"run={a}", "num_images=164")
    assert factors - record["metrics"].keys() == {"udr"}
    assert all(0 <= record["metrics"][name] <= 1 for name in factors - {"udr"})
    printed = capsys.readouterr().out
    assert "factors of variation" in printed
    assert "N = 164 images" in next(line for line in printed.splitlines() if line.startswith("  mig "))
    settings(f"run={Path(a).parent}", "num_images=164")
    printed = capsys.readouterr().out
    assert f"measuring {a}" not in printed
    for heading in ("MIG", "DCI", "FactorVAE", "UDR"):
        assert heading in printed
    both = [json.loads(Path(folder, "evaluation.json").read_text()) for folder in (a, b)]
    assert both[0]["metrics"]["udr"] == both[1]["metrics"]["udr"]  # of two models, each is the only other one
    assert 0 < both[0]["metrics"]["udr"] < 1
    assert both[0]["udr_runs"] == 2
    assert {**both[0]["metrics"], "udr": None} == {**record["metrics"], "udr": None}
    again = shutil.copytree(a, f"{Path(a).parent}-again")
    settings(f"run=[{a},{again}]", "num_images=164")  # the same seed
    printed = capsys.readouterr().out
    assert "measuring" not in printed
    assert "MIG" in printed
    assert "UDR" not in printed  # it is that of other runs than those of this table
    assert json.loads(Path(a, "evaluation.json").read_text()) == both[0]
    settings(f"run={Path(a).parent}", "num_images=100", "format=csv")  # this shorter evaluation goes to no file
    rows = [row for row in capsys.readouterr().out.splitlines() if row[:1] != "#"]
    names, first, _, mean, spread = csv.reader(rows)
    assert json.loads(Path(a, "evaluation.json").read_text()) == both[0]
    assert first[names.index("udr")] == mean[names.index("udr")]
    assert float(spread[names.index("udr")]) == 0
    assert float(spread[names.index("mig")]) > 0


def test_runs_of_different_protocols_are_refused_unless_asked_for(
    run: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    a, b = run(name="a"), run("data.binarization=threshold", name="b")
    with pytest.raises(ValueError, match=r"do not compare \(binarization static\(0\) and threshold\): across_proto"):
        measured(f"run=[{a},{b}]")
    assert not (Path(a) / "evaluation.json").exists()  # refused before anything is measured
    measured(f"run=[{a},{b}]", "across_protocols=true")
    printed = capsys.readouterr().out
    assert f"protocol of {a}: MNIST, 100 test images (500 trained on), binarization static(0)" in printed
    assert f"protocol of {b}: MNIST, 100 test images (500 trained on), binarization threshold" in printed


def test_the_protocol_tells_log_likelihoods_apart_that_do_not_compare(run: Callable[..., str]) -> None:
    """The protocol names a class-conditional likelihood, and a Bernoulli on grey levels, which is no density."""
    likelihoods = {"model.num_classes=10": "class-conditional Bernoulli",
                   "data.binarization=none": "Bernoulli (on grey levels no density)"}  # fmt: skip
    for overrides, likelihood in likelihoods.items():
        opened = runs.open_run(run(overrides, name=overrides))
        assert protocol(opened.model, opened.data, 1, None, 0)["likelihood"] == likelihood


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["num_images=201"], "num_images=201, but MNIST has 200 test images"),
        (["num_images=1"], "num_images=1: a whole number, at least 2"),
        (["num_samples=0"], "num_samples=0: a whole number"),
        (["seed=-1"], "seed=-1: a whole number"),
        (["samples=9"], "samples=9: quality is measured with at least 20"),
        (["samples=many"], "samples=many: a whole number"),
        (["density=kde"], "density=kde: choose one of None, gmm, flow"),
        (["device=tpu"], "device=tpu: choose one of auto, cpu, cuda"),
        (["data.root=nowhere", "device=cpu"], "this run was trained on MNIST, but data.root=nowhere now gives"),
    ],
)
def test_bad_settings_get_one_sentence(
    overrides: list[str], sentence: str, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaelab.data.files.reachable", lambda *_: ())
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        measured(f"run={run()}", *overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["images=mine", "num_samples=20"],
            "num_samples=20 changes nothing with images=mine, which takes run, images, ",
        ),
        (["images=mine", "num_images=5"], "num_images=5 changes nothing with images=mine"),
        (["images=mine", "ais=true"], "ais=True changes nothing with images=mine"),
        (["images=mine", "format=csv"], "format=csv changes nothing with images=mine"),
        (["images=mine", "sizes.steps=5"], r"sizes\.steps=5 changes nothing with images=mine"),
        (["images=mine", "across_protocols=true"], "across_protocols=True changes nothing with images=mine"),
        (["images=mine", "report=a.html"], r"report=a\.html changes nothing with images=mine"),
        (["invert=true"], "invert=True changes nothing without images=FOLDER"),
        (["annealing.chains=4"], r"annealing\.chains=4 changes nothing without ais=true"),
        (["images=mine", "invert='yes'"], "invert=yes: choose one of True, False"),
    ],
)
def test_settings_that_change_nothing_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        settings("run=nowhere", *overrides, short=())


def test_no_run_at_all() -> None:
    with pytest.raises(ValueError, match="run=None: the folder of a finished run is needed, such as run=logs/RUN"):
        measured()


def test_measuring_draws_nothing_from_the_random_stream(run: Callable[..., str]) -> None:
    opened = runs.open_run(run())
    state = torch.get_rng_state()
    measure(opened.model, opened.data, num_samples=2, num_images=50)
    assert torch.equal(state, torch.get_rng_state())


def test_codes_of_a_folder_of_images(run: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, images = run("data.binarization=none"), tmp_path / "images"
    opened = runs.open_run(folder)
    x = opened.data.splits["test"][0][:3]
    images.mkdir()
    for i in range(3):
        Image.fromarray(x[i, 0].numpy()).save(images / f"{i}.png")
    settings(f"run={folder}", f"images={images}", short=FEW)
    printed = capsys.readouterr().out
    assert f"{folder}/codes.npz: names and codes of 3 images" in printed
    with np.load(f"{folder}/codes.npz") as saved:
        assert saved["names"].tolist() == ["0.png", "1.png", "2.png"]
        np.testing.assert_allclose(saved["codes"], opened.model.encode(x / 255).detach(), atol=1e-5)
    assert not Path(folder, "evaluation.json").exists()
    with pytest.raises(ValueError, match=r"run=.*: codes are written for one run"):
        settings(f"run=[{folder},{folder}]", f"images={images}", short=FEW)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(images / "noise.png")
    settings(f"run={folder}", f"images={images}", short=FEW)
    lines = Path(folder, "strangeness.csv").read_text().splitlines()
    assert lines[0] == "rank,name,elbo,bound,percentile"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert sorted(row[1] for row in rows) == ["0.png", "1.png", "2.png", "noise.png"]
    assert rows[0][1] == "noise.png"
    bounds = [float(row[3]) for row in rows]
    assert bounds == sorted(bounds)
    assert all(float(row[2]) <= float(row[3]) for row in rows)
    assert float(rows[0][4]) == 0
    assert "the strangest image is noise.png" in capsys.readouterr().out
    with Image.open(Path(folder, "pictures", "strangest.png")) as picture:
        assert picture.text["Description"].startswith(f"{Path(folder).name}: MNIST")


def test_a_metric_that_is_not_finite_is_absent(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "exact_log_likelihood", lambda _, x: torch.full((len(x),), -torch.inf))
    record = measured(f"run={run()}")
    assert record["absent"]["exact_log_likelihood"] == "it is -inf"
    assert "exact_log_likelihood" not in record["metrics"]
    assert "exact_log_likelihood" not in record["standard_errors"]


def test_the_protocol_names_the_floor_of_learned_scales(run: Callable[..., str]) -> None:
    record = measured(f"run={run('model/likelihood=gaussian', 'model.likelihood.scale=per_pixel')}")
    assert record["protocol"]["likelihood"] == "Gaussian (a scale per pixel, at least 0.003906)"


def test_a_shorter_evaluation_does_not_replace_a_longer_one(
    run: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    folder = run()
    long = measured(f"run={folder}")
    assert measured(f"run={folder}", "num_images=50") == long
    assert "evaluation.json is kept, because it has K = 20, 100 test images" in capsys.readouterr().out
    assert measured(f"run={folder}", "num_samples=30")["protocol"]["num_samples"] == 30


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run()
    monkeypatch.setattr("os.access", lambda *_: False)  # like a read-only disk, also for root
    monkeypatch.setattr(measure_module, "measure", None)
    with pytest.raises(ValueError, match=r"cannot be written to, but evaluation\.json goes there"):
        settings(f"run={folder}")


def test_two_dimensions_are_drawn_by_the_projector(run: Callable[..., str]) -> None:
    folder = run("model.latent_dim=2")
    measured(f"run={folder}")
    rows = next(Path(folder).glob("**/tensors.tsv")).read_text().splitlines()
    assert all(len(row.split("\t")) == 3 for row in rows)  # the projector's PCA needs three


def test_a_run_on_the_packaged_digits_opens_where_mnist_has_come_since(
    run: Callable[..., str], data_root: Path
) -> None:
    folder = run("data=mnist_5k", "data.train_size=200")
    config = Path(folder, "config.yaml")
    config.write_text(config.read_text().replace("dataset: MNIST-5k", "dataset: MNIST"))  # MNIST was chosen
    assert "used: MNIST-5k" in config.read_text()
    assert runs.open_run(folder, str(data_root)).data.name == "MNIST-5k"
