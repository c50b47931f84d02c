"""Compare the metrics of several seeds with a published figure.

A row is reproduced if the mean over its seeds is within its tolerance of the published figure, over as many seeds as
the row has. Rows of trained models have three seeds, and rows of exact mathematics have one.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vaelab.text import rounded

COLUMNS = ("row", "what", "reference", "measured", "difference", "verdict", "cost")


def compare(row: Mapping[str, Any], values: Sequence[float]) -> dict[str, Any]:
    """The mean and the standard deviation of the values, their difference to the published figure, and the verdict.

    All are in the unit of the metric. The standard deviation is absent for one value.
    """
    mean = statistics.fmean(values)
    result: dict[str, Any] = {"mean": mean}
    if len(values) > 1:
        result["standard_deviation"] = statistics.stdev(values)
    missing = len(row["seeds"]) - len(values)
    runs = f" ({len(values)} of {len(row['seeds'])} seeds)" if missing else ""
    if row["published"] is None:
        return {**result, "verdict": f"nothing published to compare with{runs}"}
    result["difference"] = mean - row["published"]
    far = abs(result["difference"]) > row["tolerance"]
    if far:
        result["verdict"] = f"differs by {rounded(abs(result['difference']), 3)}{runs}"
    else:
        result["verdict"] = f"within {row['tolerance']:g}{runs}" if missing else "reproduced"
    return result


def line(name: str, row: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[str]:
    """The cells of a row in the table, in the order of COLUMNS. Without a record, the row has not been run."""
    found = record["result"] if record else {"verdict": "not run"}
    spread = f" ± {found['standard_deviation']:.2f}" if "standard_deviation" in found else ""
    digits = 0 if not row["tolerance"] else 3 if row["tolerance"] < 0.01 else 2  # counts have no tolerance
    published = "–" if row["published"] is None else f"{row['published']:.{digits}f}"
    measured = f"{found['mean']:.{digits}f}{spread}" if "mean" in found else "–"
    difference = f"{found['difference']:+.{digits}f}" if "difference" in found else "–"
    return [f"`{name}`", row["title"], published, measured, difference, found["verdict"], row["cost"]]


def table(rows: Mapping[str, Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of all rows: published, measured mean and standard deviation, difference, verdict, cost.

    Below it stands what was tried for the rows that have an entry `tried`.
    """
    cells = [list(COLUMNS), *(line(name, row, records.get(name)) for name, row in rows.items())]
    lines = [f"| {' | '.join(each)} |" for each in cells]
    tried = [f"* `{name}`: {row['tried']}" for name, row in rows.items() if "tried" in row]
    notes = ["", "What was tried where a figure differs:", "", *tried] if tried else []
    return "\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:], *notes])
