"""Verdicts on published figures are computed from the runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from vaelab.evaluation.reproduction import COLUMNS, compare, line, table

ROWS = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (ROOT / "configs" / "row").glob("*.yaml")}
ROW = {"published": -90.0, "tolerance": 0.5, "seeds": [0, 1, 2], "title": "a VAE", "cost": "1 hour"}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-90.4, -89.9, -90.3], "reproduced"),
        ([-89.0, -91.0, -90.0], "reproduced"),  # the mean counts, and the table shows the spread
        ([-90.4, -90.2], "within 0.5 (2 of 3 seeds)"),
        ([-91.0, -90.8, -90.9], "differs by 0.9"),
        ([-88.0], "differs by 2 (1 of 3 seeds)"),
    ],
)
def test_the_verdict(values: list[float], verdict: str) -> None:
    assert compare(ROW, values)["verdict"] == verdict


def test_mean_spread_and_difference() -> None:
    result = compare(ROW, [-89.0, -91.0, -91.5])
    assert result["mean"] == pytest.approx(-90.5)
    assert result["standard_deviation"] == pytest.approx((1.75) ** 0.5)
    assert result["difference"] == pytest.approx(-0.5)


def test_a_row_without_a_published_figure_has_no_verdict() -> None:
    result = compare({**ROW, "published": None}, [-90.0])
    assert result["verdict"] == "nothing published to compare with (1 of 3 seeds)"
    assert "difference" not in result


def test_the_table() -> None:
    record = {"result": compare(ROW, [-90.4, -89.9, -90.3])}
    assert line("a", ROW, record) == [
        "`a`", "a VAE", "-90.00", "-90.20 ± 0.26", "-0.20", "reproduced", "1 hour",
    ]  # fmt: skip
    lines = table({"a": ROW, "b": ROW}, {"a": record}).splitlines()
    assert len(lines) == 4
    assert "not run" in lines[3]
    assert {text.count("|") for text in lines} == {len(COLUMNS) + 1}
    assert table({"a": {**ROW, "tried": "more epochs"}}, {}).splitlines()[-1] == "* `a`: more epochs"


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_says_what_it_needs(name: str) -> None:
    row: Any = ROWS[name]
    what = ("script", "options") if "script" in row else ("overrides",)
    tried = ("tried",) if "tried" in row else ()
    keys = ("title", *what, "evaluation", "metric", "published", "source", *tried, "tolerance", "seeds", "cost")
    assert tuple(row) == keys
    assert len(row["seeds"]) == 3 or "exact" in row["source"]


def test_recorded_verdicts_follow_from_their_runs() -> None:
    for path in Path(ROOT / "docs" / "reproductions").glob("*.json"):
        record = json.loads(path.read_text())
        values = [run["value"] for run in record["runs"]]
        assert record["result"] == compare(record, values), path
        seeds = [run["seed"] for run in record["runs"]]
        assert seeds == [seed for seed in record["seeds"] if seed in seeds]  # one may not be evaluated yet
