"""The page of a report: one HTML file that needs no network. Text from runs is escaped."""

import os
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from vaelab.errors import UserError
from vaelab.evaluation import annealing, measure, report
from vaelab.evaluation.predictive import MAPS, STATISTICS
from vaelab.export.card import commands
from vaelab.files import write_atomically
from vaelab.reports import drawings, plots, tables
from vaelab.reports.curves import Curve, band, metrics, read_curves
from vaelab.reports.tables import Entry, Group
from vaelab.runs import Run, find_caveats, foreign, read_json
from vaelab.text import rounded

TEMPLATE = Path(__file__).with_name("page.html")
MARK = b'<meta name="generator" content="VAE Lab">'  # in the first kilobyte of each report
SPLITS = {"train": "training", "val": "validation"}
MOST_CURVES = 12  # metrics with curves


def check(given: Any) -> Path:
    """The path of the setting `report`. Raises UserError if no report can be written there.

    A file that is not a report is kept.
    """
    path = Path(str(given)).expanduser()
    if path.suffix != ".html":
        raise UserError(f"report={given}: the name of an HTML file is needed, such as report=report.html")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"report={given}: {path.parent} is not a folder that can be written to")
    if path.exists() and not (path.is_file() and MARK in path.read_bytes()[:1000]):
        raise UserError(f"report={given}: what is there is not a report and is kept, so choose another name")
    return path


def write(path: Path, runs: Mapping[str, Run], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the report of runs, given by name with their evaluations. It replaces an earlier report.

    Curves come from the files of the runs, and pictures are drawn with the tested weights. Raises UserError for a
    damaged file of a run.
    """
    groups = tables.group(runs, records)
    entries = [entry for each in groups for entry in each.entries]
    styles = {each.key: plots.style(i) for i, each in enumerate(groups)}
    curves = {entry.key: read_curves(entry.run.folder) for entry in entries}
    repeat = [_repeat(entry) for entry in entries]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        version=metadata.version("vaelab"),
        date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        light=plots.LIGHT,
        dark=plots.DARK,
        shown=report.shown,
        groups=groups,
        entries=entries,
        styles=styles,
        labels=tables.labels(groups),
        differing=tables.differing(groups),
        results=[_results(part, curves, styles) for part in tables.by_protocol(groups)],
        images={entry.key: drawings.images(entry.run) for entry in entries},
        latent={each.key: drawings.latent(each.entries[0].run) for each in groups},
        rates=list(filter(None, (_rates(part, styles) for part in tables.by_protocol(groups)))),
        units=_by_text({entry.key: [_units(entry.record)] for entry in entries}),
        caveats=_by_text({entry.key: _caveats(entry) for entry in entries}),
        absent=_by_text(
            {entry.key: [f"{name}: {why}" for name, why in entry.record["absent"].items()] for entry in entries}
        ),
        repeat=repeat,
        same={
            name: value
            for name, value in repeat[0]["facts"].items()
            if all(value == run["facts"].get(name) for run in repeat)
        },
    )
    write_atomically(path, text.encode())


def _results(
    groups: list[Group], curves: Mapping[str, Mapping[str, Curve]], styles: Mapping[str, plots.Style]
) -> dict[str, Any]:
    """The tables and plots of groups whose metrics compare."""
    entries = [entry for each in groups for entry in each.entries]
    protocol, columns = entries[0].record["protocol"], tables.columns(groups)
    cells = zip(*(tables.column(groups, name) for name in columns), strict=True)
    measured = {name for entry in entries for name in entry.record["metrics"]}
    known = [name for section in report.METRICS.values() for name in section if name in measured]
    references = [entry.record["references"] for entry in entries if entry.record["references"]]
    texts = report.meanings(protocol, known, references[0] if references else None)
    pairs = {each.key: [tables.values(each, name) for name in ("rate", "distortion")] for each in groups}
    points = {key: list(zip(*pair, strict=True)) for key, pair in pairs.items() if all(pair)}
    return {
        "keys": ", ".join(each.key for each in groups),
        "sentence": report.protocol_line(protocol),
        "protocol": {name.replace("_", " "): _words(value) for name, value in protocol.items()},
        "columns": [(report.LABELS.get(name, name), tables.arrow(name), texts[name]) for name in columns],
        "names": columns,
        "rows": [(each, list(row)) for each, row in zip(groups, cells, strict=True)],
        "panels": list(_panels(groups, curves, styles)),
        "more": metrics([curves[entry.key] for entry in entries])[MOST_CURVES:],
        "scatter": plots.rate_distortion(points, styles) if points else "",
        "checks": _checks(groups, styles),
        "entries": entries,
        "sections": {
            section: [
                (name, texts[name], [_value(entry, name) for entry in entries]) for name in names if name in known
            ]
            for section, names in report.METRICS.items()
        },
    }


def _panels(
    groups: Sequence[Group], curves: Mapping[str, Mapping[str, Curve]], styles: Mapping[str, plots.Style]
) -> Iterator[dict[str, str]]:
    """Yield the plots of the curves of groups: each metric in training and in validation."""
    for name in metrics([curves[entry.key] for each in groups for entry in each.entries])[:MOST_CURVES]:
        for split, words in SPLITS.items():
            bands = {
                each.key: band([curves[entry.key].get(f"{split}/{name}", {}) for entry in each.entries])
                for each in groups
            }
            drawn = {key: each for key, each in bands.items() if each.steps}
            if drawn:
                ends = ", ".join(f"{key} ends at {report.shown(each.mean[-1])}" for key, each in drawn.items())
                missing = ", ".join(key for key in bands if key not in drawn)
                yield {
                    "title": f"{name} in {words}" + (f" (no curve of {missing})" if missing else ""),
                    "alt": f"Curves of {name} in {words} by step: {ends}",
                    "source": plots.curves(drawn, styles, name),
                }


def _rates(groups: Sequence[Group], styles: Mapping[str, plots.Style]) -> str:
    """The plot of the rates by dimension, sorted and averaged over seeds. Empty if no run has them."""
    means = {}
    for each in groups:
        ordered = [sorted(entry.record["rate_per_dim"] or [], reverse=True) for entry in each.entries]
        means[each.key] = [statistics.fmean(rates) for rates in zip(*ordered, strict=False)]
    means = {key: rates for key, rates in means.items() if rates}
    return plots.rates(means, styles) if means else ""


def _checks(groups: Sequence[Group], styles: Mapping[str, plots.Style]) -> dict[str, Any] | None:
    """The plots and the table of the posterior predictive checks of the first run of each group that has them."""
    found = {each.key: each.entries[0].record["predictive"] for each in groups if each.entries[0].record["predictive"]}
    names = [name for name in STATISTICS | MAPS if found and all(name in checks for checks in found.values())]
    each = {name: {key: checks[name] for key, checks in found.items()} for name in names}
    rows = [(name.replace("_", " "), (STATISTICS | MAPS)[name], list(checks.values())) for name, checks in each.items()]
    panels = [
        (plots.distributions(checks, styles, (words := name.replace("_", " "))), words, STATISTICS[name])
        for name, checks in each.items()
        if all(check.get(part) for check in checks.values() for part in ("edges", "samples", "tests"))
    ]
    return {"keys": list(found), "panels": panels, "rows": rows} if names else None


def _units(record: Mapping[str, Any]) -> str:
    """How many units of a code are active, in words, with the names of the collapsed ones and the remedies."""
    if "active_units" not in record["metrics"]:
        return f"Active units are not counted: {record['absent'].get('active_units', 'the model has none')}."
    count = f"{record['metrics']['active_units']} of {len(record['variance_per_dim'])} units are active."
    return f"{count} {record['collapse'] or ''}".strip()


def _caveats(entry: Entry) -> list[str]:
    """The caveats of a run, without the local folder in which a data set is missing, and the classes it lacks."""
    cfg: Any = entry.run.cfg
    data = {**cfg.data, "dataset": cfg.data.used}
    missing = [entry.record["missing"]] if entry.record["missing"] else []
    return find_caveats(entry.run.model, {**cfg, "data": data}, entry.record["metrics"]) + missing


def _by_text(texts: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """The keys of the runs that a text is about, and the text, for each different text."""
    found: dict[str, list[str]] = {}
    for key, of_run in texts.items():
        for text in of_run:
            found.setdefault(text, []).append(key)
    return [(", ".join(keys), text) for text, keys in found.items()]


def _value(entry: Entry, name: str) -> str:
    """A metric of a run with its standard error over images."""
    value, error = (entry.record[part].get(name) for part in ("metrics", "standard_errors"))
    return report.shown(value) + ("" if error is None else f" ± {rounded(error)}")


def _words(value: Any) -> str:
    """A value of a protocol in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _repeat(entry: Entry) -> dict[str, Any]:
    """The commands that repeat a run and its evaluation, and where the run was made."""
    folder, protocol = entry.run.folder, entry.record["protocol"]
    record, result = read_json(folder / "run.json"), read_json(folder / "metrics.json")
    start = (record.get("starts") or [{}])[-1]
    words = [f"num_samples={protocol['num_samples']}", f"seed={protocol['seed']}"]
    if protocol["test_images"] < len(entry.run.data.splits["test"][0]):
        words.append(f"num_images={protocol['test_images']}")
    words += [f"{name}={protocol[name]}" for name in ("samples", "density") if protocol.get(name)]
    words += _changed("sizes", protocol["sizes"], measure.DEFAULT._asdict())
    if protocol["ais"]:
        words += ["ais=true", *_changed("annealing", protocol["ais"], annealing.DEFAULT._asdict())]
    trust = foreign(entry.run.cfg)
    words += [f"trust=[{','.join(trust)}]"] if trust else []
    git, machine, versions = start.get("git"), start.get("machine"), start.get("versions") or {}
    facts = {
        "started": start.get("time"),
        "commit": git and git["commit"] + ", with changes" * git["modified"],
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "Python": start.get("python"),
        "processor": machine and machine.get("processor"),
        "device": result.get("device"),
        "training": result and f"{result['epochs']:,} epochs, {result['steps']:,} steps",
        "weights (SHA-256)": entry.record["weights"],
    }
    evaluation = shlex.join(["python", "evaluate.py", "run=logs/RUN", *words])
    return {
        "entry": entry,
        "commands": [*commands(record), evaluation],
        "facts": {name: value for name, value in facts.items() if value},
    }


def _changed(group: str, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """The settings of a group that are not the usual ones, as words of a command."""
    return [f"{group}.{name}={value}" for name, value in settings.items() if value != usual.get(name)]
