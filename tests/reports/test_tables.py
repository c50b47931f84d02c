"""Runs are grouped by their settings and protocols, and the table has the mean, the spread and the best of a metric."""

import statistics
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vaelab.evaluation import report
from vaelab.reports import tables
from vaelab.runs import Run


def made(*runs: dict[str, Any]) -> tuple[dict[str, Run], dict[str, dict[str, Any]]]:
    """Runs /logs/sweep/0, /logs/sweep/1, ... and their records, from settings, metrics and data sets."""
    opened, records = {}, {}
    for i, each in enumerate(runs):
        config = {
            "name": each.get("name", "vae"),
            "seed": each.get("seed", 0),
            "model": {"latent_dim": 2, **each.get("model", {})},
        }
        opened[str(i)] = Run(Path("/logs/sweep") / str(i), DictConfig(config), None, None)  # type: ignore[arg-type]
        protocol = {"dataset": each.get("dataset", "MNIST"), "sizes": {"probed": 1}, "ais": None}
        records[str(i)] = {"metrics": each.get("metrics", {}), "protocol": protocol}
    return opened, records


def keys(groups: list[tables.Group]) -> list[list[str]]:
    return [[entry.key for entry in each.entries] for each in groups]


def test_runs_that_differ_in_the_seed_are_a_group() -> None:
    groups = tables.group(*made({}, {"model": {"latent_dim": 3}}, {"seed": 1}, {"model": {"latent_dim": 4}}))
    assert keys(groups) == [["A1", "A2"], ["B"], ["C"]]
    assert [entry.name for entry in groups[0].entries] == ["0", "2"]  # without the folder that they share
    assert tables.labels(groups) == {"A": "latent_dim=2", "B": "latent_dim=3", "C": "latent_dim=4"}
    assert tables.differing(groups) == {"model.latent_dim": ["2", "3", "4"]}


def test_seeds_of_different_protocols_are_not_a_group() -> None:
    groups = tables.group(*made({}, {"seed": 1, "dataset": "MNIST-5k"}, {"seed": 2}))
    assert keys(groups) == [["A1", "A2"], ["B"]]
    assert keys(tables.by_protocol(groups)[0]) == [["A1", "A2"]]
    assert keys(tables.by_protocol(groups)[1]) == [["B"]]


def test_there_are_more_keys_than_letters() -> None:
    groups = tables.group(*made(*({"model": {"latent_dim": i}} for i in range(28))))
    assert [each.key for each in groups[24:]] == ["Y", "Z", "AA", "BB"]


def test_a_label_has_the_names_of_parts_and_few_settings() -> None:
    assert tables.differing(tables.group(*made({"model": {"b": 1}}, {"model": {"b": 1.0}}))) == {}
    parts = {"encoder": {"_target_": "vaelab.networks.ConvEncoder", "channels": [8, 16]}, "a": 1, "b": 1}
    groups = tables.group(*made({}, {"model": parts}))
    labels = tables.labels(groups)
    assert labels["B"] == "encoder=ConvEncoder, channels.0=8, channels.1=16, 2 more"
    assert labels["A"] == "encoder=–, channels.0=–, channels.1=–, 2 more"
    assert tables.differing(groups)["model.encoder"] == ["–", "ConvEncoder"]
    assert tables.labels(groups[:1]) == {"A": "vae"}


def test_names_are_labels_if_they_differ() -> None:
    groups = tables.group(*made({"name": "beta_vae"}, {"name": "iwae", "model": {"a": 1}}))
    assert tables.labels(groups) == {"A": "beta_vae", "B": "iwae"}
    groups = tables.group(*made({"name": "beta_vae"}, {"name": "iwae"}, {"name": "iwae", "model": {"a": 1}}))
    assert tables.labels(groups) == {"A": "name=beta_vae, a=–", "B": "name=iwae, a=–", "C": "name=iwae, a=1"}


def test_the_settings_that_tell_groups_apart_come_first() -> None:
    """A, B and C differ in p, q and r alike; only s tells A from B."""
    one = {"p": 1, "q": 1, "r": 1, "s": 1}
    groups = tables.group(*made(*({"model": each} for each in (one, {**one, "s": 4}, {**one, "p": 2, "q": 2, "r": 2}))))
    assert tables.telling(tables.differing(groups), 3) == ["model.p", "model.s", "model.q", "model.r"]
    assert tables.labels(groups) == {
        "A": "p=1, s=1, q=1, 1 more",
        "B": "p=1, s=4, q=1, 1 more",
        "C": "p=2, s=1, q=2, 1 more",
    }


def test_a_cell_has_the_mean_and_the_standard_deviation() -> None:
    values = [-100.25, -101.5, -99.125]
    runs = [{"seed": i, "metrics": {"elbo": value, "active_units": 2}} for i, value in enumerate(values)]
    groups = tables.group(*made(*runs))
    expected = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2g}"
    assert tables.column(groups, "elbo") == [tables.Cell(expected, False)]  # nothing to compare with
    assert tables.column(groups, "active_units") == [tables.Cell("2 ± 0", False)]
    assert tables.spread([0.0, 1000.0]) == "500.00 ± 707"
    assert tables.spread([3.0]) == "3.000"
    assert tables.spread([]) == "–"


def test_the_best_mean_is_marked_in_the_direction_of_its_metric() -> None:
    metrics = [
        {"elbo": -100.0, "squared_error": 20.0, "rate": 5.0},
        {"elbo": -90.0, "squared_error": 30.0, "rate": 6.0},
        {"elbo": -95.0, "squared_error": 20.0, "rate": 7.0},  # an equal squared error
        {},
    ]
    groups = tables.group(*made(*({"model": {"latent_dim": i}, "metrics": each} for i, each in enumerate(metrics))))
    best = {name: [cell.best for cell in tables.column(groups, name)] for name in tables.columns(groups)}
    assert best == {
        "elbo": [False, True, False, False],
        "rate": [False, False, False, False],
        "squared_error": [True, False, True, False],
    }
    assert tables.column(groups, "elbo")[3].text == "–"
    assert [tables.arrow(name) for name in best] == ["↑", "", "↓"]


def test_a_group_that_lacks_a_metric_in_one_run_has_no_mean() -> None:
    groups = tables.group(
        *made({"metrics": {"elbo": -90.0}}, {"seed": 1}, {"model": {"a": 1}, "metrics": {"elbo": -95.0}})
    )
    assert tables.column(groups, "elbo") == [tables.Cell("–", False), tables.Cell("-95.00", False)]


def test_directions_are_those_of_metrics_in_the_table() -> None:
    assert {*tables.HIGHER, *tables.LOWER} | {"rate", "distortion", "active_units", "data_copying"} == {*report.COLUMNS}
    assert not {*tables.HIGHER} & {*tables.LOWER}
