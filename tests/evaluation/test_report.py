import csv

import pytest

from vaelab.evaluation import report

PROTOCOL = {
    **{"dataset": "MNIST", "train_images": 55000, "test_images": 10000, "binarization": "static(0)"},
    **{"likelihood": "Bernoulli", "num_samples": 5000, "checked_samples": 50_000, "seed": 0, "vaelab": "1"},
    **{"sizes": {"checked": 100, "refined": 1000, "probed": 10_000}, "ais": None},
}


def record(**metrics: float) -> dict:
    errors = dict.fromkeys(metrics, 0.5)
    return {"protocol": PROTOCOL, "metrics": metrics, "standard_errors": errors, "absent": {}, "rate_per_dim": None,
            "collapse": None}  # fmt: skip


def test_a_table_names_protocol_metrics_errors_and_what_is_absent() -> None:
    content = record(elbo=-100.254, log_likelihood=-95.125, active_units=3)
    content |= {"absent": {"silhouette": "no classes"}, "rate_per_dim": [0.5, 2.25], "collapse": "One sentence."}
    lines = report.table(content).splitlines()
    expected = (
        "protocol: MNIST, 10,000 test images (55,000 trained on), binarization static(0), Bernoulli likelihood, "
        "K = 5,000, noise seed 0; ± is the standard error over images"
    )
    assert lines[0] == expected
    assert any(line.split()[:4] == ["elbo", "-100.25", "±", "0.5"] for line in lines)
    assert any(line.split()[:2] == ["active_units", "3"] for line in lines)
    assert any(line.split()[:6] == ["IW", "bound,", "K", "=", "5,000", "-95.12"] for line in lines)
    assert "rate by dimension, nats: z_1 2.25, z_0 0.50" in lines
    assert lines[-2:] == ["One sentence.", "no silhouette: no classes"]
    assert not any("bits_per_dim" in line for line in lines)


def test_the_table_of_predictive_checks() -> None:
    spread = {"samples": {"mean": 97.125, "sd": 33.06}, "tests": {"mean": 103.0, "sd": 35.0}}
    found = {"ink": {"distance": 0.1941, "p_value": 0.001, "floor": 0.016, **spread},
             "mean_map": {"distance": 0.9034, "p_value": 0.25, "floor": 0.2}}  # fmt: skip
    assert report.checks(found)[1:] == [
        ["ink", "97.1 ± 33", "103 ± 35", "0.194", "0.001", "0.016"],
        ["mean_map", "–", "–", "0.903", "0.250", "0.200"],
    ]
    lines = report.table(record(elbo=-100.0) | {"predictive": found}).splitlines()
    assert lines[-4] == "posterior predictive checks: samples against test images, in statistics of pen strokes"
    assert lines[-2].split()[:4] == ["ink", "97.1", "±", "33"]


def test_meanings_have_the_numbers_of_samples_and_images() -> None:
    names = [name for section in report.METRICS.values() for name in section]
    few = {**PROTOCOL, "test_images": 60, "ais": {"chains": 7}}
    texts = report.meanings(few, names)
    assert not any("{" in text for text in texts.values())
    assert texts["ais_bound"].endswith("lower bound of the same 60 images by AIS, 7 chains")
    assert texts["checked_bound_10x"].endswith("10 K = 50,000 samples")
    assert "IW bound - elbo, K = 5,000" in texts["inference_gap"]
    assert texts["sap"].endswith("SVMs of 10,000 training images")
    for name in ("mutual_information", "information_limit", "aggregate_kl", "total_correlation", "mig", "udr"):
        assert "N = 60 images" in texts[name]


def test_real_images_and_noise_stand_beside_the_metrics_of_samples() -> None:
    content = record(elbo=-100.0, frechet_distance=12.345, missing_classes=1)
    content["protocol"] = {**PROTOCOL, "samples": 2000, "density": "gmm"}
    content["references"] = {"real": {"frechet_distance": 0.5, "missing_classes": 0},
                             "noise": {"frechet_distance": 100.0, "missing_classes": 9}}  # fmt: skip
    content["missing"] = "1 of 10 classes is missing."
    lines = report.table(content).splitlines()
    assert "noise seed 0, 2,000 samples, samples of density=gmm; ±" in lines[0]
    (line,) = [line for line in lines if "frechet_distance" in line]
    assert "12.35" in line or "12.34" in line
    assert line.endswith("of 2,000 samples and 10,000 test images; training images 0.500, noise 100.00")
    assert any(line.split()[:2] == ["missing_classes", "1"] for line in lines)
    assert next(line for line in lines if "missing_classes" in line).endswith("training images 0, noise 9")
    assert lines[-1] == "1 of 10 classes is missing."
    assert report.comparison({"a": content, "b": record(elbo=-99.0)}, []).endswith("a: 1 of 10 classes is missing.")
    assert "noise 100" not in report.table(record(frechet_distance=1.0))  # without references


def test_the_columns_of_several_runs_call_the_bound_a_bound() -> None:
    lines = report.comparison({"a": record(log_likelihood=-95.0, elbo=-100.0)}, [])
    assert lines.splitlines()[0].split() == ["run", "IW", "bound", "elbo"]


def test_every_column_has_a_meaning() -> None:
    known = {name for meanings in report.METRICS.values() for name in meanings}
    assert set(report.COLUMNS) <= known


def test_protocols_that_differ_are_named() -> None:
    report.check_protocols({"a": PROTOCOL, "b": dict(PROTOCOL)})
    with pytest.raises(ValueError, match=r"a and c .* \(likelihood Bernoulli and Normal\): across_protocols=true"):
        report.check_protocols({"a": PROTOCOL, "b": dict(PROTOCOL), "c": {**PROTOCOL, "likelihood": "Normal"}})


def test_seeds_are_grouped_and_their_spread_shown() -> None:
    base = {"model": {"latent_dim": 2}, "model.latent_dim": 2, "seed": 0, "data.seed": 0, "optimizer.lr": 0.1}
    configs = {
        "a": base,
        "b": {**base, "seed": 1, "data.seed": 1},
        "c": {**base, "optimizer.lr": 0.2},
        "d": {**base, "seed": 2, "data.seed": 2, "data.root": "elsewhere"},
    }
    groups = report.seed_groups(configs)
    assert groups == [["a", "b", "d"]]
    assert report.seed_groups({"a": base, "the same run again": base, "b": configs["b"]}) == []
    beta = {"a": {**base, "objective.beta": 1}, "b": {**configs["b"], "objective.beta": 1.0}}
    assert report.seed_groups(beta) == [["a", "b"]]
    beta["b"]["objective.beta"] = True
    assert report.seed_groups(beta) == []
    records = {name: record(elbo=value) for name, value in zip("abcd", (-100.0, -101.0, -90.0, -102.0), strict=True)}
    lines = report.comparison(records, groups).splitlines()
    assert lines[0].split() == ["run", "elbo"]
    assert [line.split()[-1] for line in lines[1:4]] == ["-100.00", "-101.00", "-102.00"]
    assert lines[4].startswith("mean ± s.d. of these 3 seeds ")
    assert lines[4].endswith("-101.00 ± 1")
    assert lines[5].split() == ["c", "-90.00"]
    assert lines[-1].startswith("protocol: MNIST")
    two = {**configs, "e": {**configs["c"], "seed": 1, "data.seed": 1}}
    records["e"] = record(elbo=-91.0)
    first = [line.split()[0] for line in report.comparison(records, report.seed_groups(two)).splitlines()[1:8]]
    assert first == ["a", "b", "d", "mean", "c", "e", "mean"]  # the runs of a group are together
    last = [line.split(",")[0] for line in report.comparison(records, report.seed_groups(two), "csv").splitlines()[:6]]
    assert last == ["run", "a", "b", "c", "d", "e"]


def test_a_caveat_stands_once_with_its_runs() -> None:
    records = {name: {**record(elbo=-100.0), "caveats": ["The same."]} for name in "abcdef"}
    for name, share in zip("abcd", (12, 3, 12, 3), strict=True):
        records[name]["caveats"] = ["The same.", f"{share}% of the images."]
    for name in "abcde":
        records[name]["caveats"] = [*records[name]["caveats"], "Of five."]
    notes = report.comparison(records, []).splitlines()[-3:]
    assert notes == [
        "The same.",
        "a, c: 12% of the images. (also 2 other runs, with other numbers)",
        "a, b, c and 2 more: Of five.",
    ]


def test_a_metric_that_one_run_lacks_is_a_dash() -> None:
    records = {"a": record(elbo=-100.0), "b": record(squared_error=20.0)}
    records["b"]["protocol"] = {**PROTOCOL, "dataset": "MNIST-5k"}
    lines = report.comparison(records, [["a", "b"]]).splitlines()
    assert lines[1].split() == ["a", "-100.00", "–"]
    assert lines[2].split() == ["b", "–", "20.00"]
    assert lines[3].split()[-2:] == ["–", "–"]
    assert [line.split(":")[0] for line in lines[-2:]] == ["protocol of a", "protocol of b"]


def test_a_table_of_many_columns_is_narrow_and_has_other_formats() -> None:
    metrics = dict.fromkeys(report.COLUMNS, -1234.5678)
    records = {f"logs/sweep/{i}_{'long.name-' * 9}{i}": record(**metrics) for i in range(2)}
    lines = report.comparison(records, [list(records)]).splitlines()
    assert max(map(len, lines[:-1])) <= 120
    assert sum(line.startswith("run ") for line in lines) == 4  # four tables, with the same runs
    assert sum(line.startswith("0_long.name-long.name-") for line in lines) == 4
    names, *rows = list(csv.reader(report.comparison(records, [list(records)], "csv").splitlines()))
    assert names == ["run", *report.COLUMNS]
    assert rows[0] == [next(iter(records)), *["-1234.5678"] * len(report.COLUMNS)]
    assert [row[0].split(" of ")[0] for row in rows[2:4]] == ["mean", "s.d."]
    assert rows[4] == ["#"]
    latex = report.comparison(records, [list(records)], "latex")
    assert r"0\_long.name" in latex
    assert latex.count(r"$-$1234.57 $\pm$ 0") == len(report.COLUMNS)
    assert report.comparison(records, [], "markdown").count(" -1234.57 |") == 2 * len(report.COLUMNS)
