"""The page has the runs, their numbers and their commands, opens without a network, and replaces no other file."""

import html
import itertools
import json
import re
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, opened
from conftest import ROOT, compose_config, refused
from hydra import compose, initialize_config_dir

from evaluate import evaluate, sampling
from train import train
from vaelab import reports, runs
from vaelab.evaluation import annealing, report
from vaelab.evaluation import measure as measure_module
from vaelab.evaluation.predictive import MAPS, STATISTICS

TYPED = {
    f"{word}-{seed}": [f"model.latent_dim={size}", f"seed={seed}"]
    for word, size in (("two", 2), ("five", 5))
    for seed in (0, 1)
}
NAMES = tuple(TYPED)
SIZES = {"probed": 60, "train_samples": 3, "refined": 20, "steps": 3, "refined_samples": 3, "drawn": 20, "checked": 10}
SHORT = ("num_samples=5", "num_images=60", "samples=30", *(f"sizes.{name}={size}" for name, size in SIZES.items()))


def measured(*overrides: str) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("evaluate", [*SHORT, *overrides])
    evaluate(cfg, Path())


@pytest.fixture(scope="module")
def sweep(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two sizes of the code, measured, and report.html."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for name, typed in TYPED.items():
            (folder / name).mkdir()
            patch.setattr(sys, "argv", ["train.py", *typed, f"data.root={data_root}"])
            train(compose_config(data_root, "callbacks.pictures=null", *typed), folder / name)
        patch.setattr("vaelab.evaluation.quality.EXPECTED", 1)  # so that some of 30 samples can lack a class
        measured(f"run=[{','.join(str(folder / name) for name in NAMES)}]", f"report={folder}/report.html")
    return folder


@pytest.fixture
def page(sweep: Path) -> str:
    return (sweep / "report.html").read_text()


def record(folder: Path, name: str, file: str = "evaluation") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name / f"{file}.json").read_text())
    return content


def cells(page: str, key: str) -> list[str]:
    """The cells of the row of a run or of a group."""
    (row,) = re.findall(rf'<tr class="\w+" data-key="{key}">(.*?)</tr>', page, re.S)
    return [html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)]


def test_the_table_has_the_numbers_of_the_evaluations(sweep: Path, page: str) -> None:
    names = [name for name in report.COLUMNS if name in record(sweep, "two-0")["metrics"]]
    assert {"log_likelihood", "elbo", "rate", "distortion", "squared_error", "active_units"} <= {*names}
    of_groups = {}
    for key, members in {"A": NAMES[:2], "B": NAMES[2:]}.items():
        found = [record(sweep, name)["metrics"] for name in members]
        for i, metrics in enumerate(found, 1):
            assert cells(page, f"{key}{i}") == [report.shown(metrics[name]) for name in names]
        values = {name: [metrics[name] for metrics in found] for name in names}
        of_groups[key] = {name: statistics.mean(each) for name, each in values.items()}
        expected = [f"{report.shown(statistics.mean(each))} ± {statistics.stdev(each):.2g}" for each in values.values()]
        assert [cell.removesuffix(" (best)") for cell in cells(page, key)] == expected
    for i, name in enumerate(names):
        marked = [key for key in "AB" if cells(page, key)[i].endswith("(best)")]
        a, b = of_groups["A"][name], of_groups["B"][name]
        lower = ("squared_error", "frechet_distance", "predictive_distance")
        best = report.shown((min if name in lower else max)(a, b))
        shown = [key for key in "AB" if report.shown(of_groups[key][name]) == best]
        assert marked == ([] if name in ("rate", "distortion", "active_units", "data_copying") else shown)


def test_all_runs_and_pictures_are_there(sweep: Path, page: str) -> None:
    for key, name in zip(("A1", "A2", "B1", "B2"), NAMES, strict=True):
        assert f">{key}</b> {name}</h3>" in page
    assert str(sweep.parent) not in page  # names of local folders stay private
    pictures = re.findall(r'<img [^>]*src="data:image/([a-z]+)[^>]*alt="([^"]+)"', page)
    assert len([alt for _, alt in pictures if "samples" in alt]) == 4
    assert len([alt for _, alt in pictures if "test images, each with" in alt]) == 4
    assert [alt[-2:] for _, alt in pictures if alt.startswith("Codes of")] == ["A1", "B1"]
    curves = {alt.partition(" by step")[0] for _, alt in pictures if alt.startswith("Curves")}
    splits = ("training", "validation")
    names = ("loss", "elbo", "rate", "distortion")
    assert curves == {f"Curves of {name} in {split}" for name in names for split in splits}
    assert f"{record(sweep, 'two-0')['metrics']['active_units']} of 2 units are active" in page
    caveats = record(sweep, "two-0")["caveats"]
    assert caveats
    assert all(caveat in html.unescape(page) for caveat in caveats)
    missing = [record(sweep, name)["missing"] for name in NAMES]
    assert any(missing)
    assert all(sentence in html.unescape(page) for sentence in missing if sentence)


def test_posterior_predictive_checks_are_of_the_first_runs(sweep: Path, page: str) -> None:
    checks = [record(sweep, name)["predictive"] for name in (NAMES[0], NAMES[2])]
    for name in STATISTICS | MAPS:
        (row,) = re.findall(rf'<tr><th scope="row">{name.replace("_", " ")}</th>(.*?)</tr>', page)
        values = [f"{check[name]['distance']:.3f} ({check[name]['p_value']:.3f})" for check in checks]
        assert re.findall("<td>(.*?)</td>", row) == [*values, f"{checks[0][name]['floor']:.3f}"]
    assert page.count('alt="Distribution of ') == len(STATISTICS)


def test_its_commands_repeat_the_runs(sweep: Path, page: str) -> None:
    blocks = [html.unescape(block).splitlines() for block in re.findall(r"<pre><code>(.*?)</code>", page, re.S)]
    assert len(blocks) == 4
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        usual = compose("evaluate")  # what the commands need not say
    assert usual.sizes == measure_module.DEFAULT._asdict()
    assert usual.annealing == annealing.DEFAULT._asdict()
    for name, (first, again) in zip(NAMES, blocks, strict=True):
        assert first == shlex.join(["python", "train.py", *TYPED[name]])
        script, *words = shlex.split(again.removeprefix("python "))
        assert script == "evaluate.py"
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("evaluate", words)
        run = runs.open_run(str(sweep / name))
        sizes = measure_module.Sizes(**cfg.sizes)
        settings = cfg.num_samples, cfg.num_images, cfg.seed, sizes, None, sampling(cfg, run)
        assert measure_module.protocol(run.model, run.data, *settings) == record(sweep, name)["protocol"]
        assert record(sweep, name)["weights"] in page


def test_runs_that_are_not_measured_are_measured_first(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(sweep / "two-0", tmp_path / "run")
    (run / "evaluation.json").unlink()
    ais = ["ais=true", "annealing.chains=2", "annealing.temperatures=3"]
    settings = [f"run={run}", f"report={tmp_path}/one.html", *ais]
    measured(*settings)
    printed = capsys.readouterr().out
    assert f"measuring {run}" in printed
    assert f"drawing {tmp_path}/one.html" in printed
    page = (tmp_path / "one.html").read_text()
    names = [name for name in report.COLUMNS if name in record(tmp_path, "run")["metrics"]]
    assert cells(page, "A") == [report.shown(record(tmp_path, "run")["metrics"][name]) for name in names]
    assert f"{' '.join(ais)}\n" in page.replace("</code>", "\n")  # the command that repeats it
    (tmp_path / "one.html").write_text(page.replace("<h1>", "<h1>old"))
    measured(*settings)  # replaces the page, and measures nothing again
    assert "measuring" not in capsys.readouterr().out
    assert "<h1>old" not in (tmp_path / "one.html").read_text()


def test_several_protocols_have_a_table_each(sweep: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sweep / "two-0", tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("binarization: dynamic", "binarization: threshold"))
    settings = [f"run=[{sweep}/two-0,{run}]", f"report={tmp_path}/both.html"]
    with pytest.raises(ValueError, match="have metrics that do not compare"):
        measured(*settings)
    assert not (tmp_path / "both.html").exists()
    measured(*settings, "across_protocols=true")
    page = (tmp_path / "both.html").read_text()
    assert page.count('<table class="metrics"') == 2
    assert '<td class="best"' not in page
    assert "binarization static(0)" in page
    assert "binarization threshold" in page


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("report.txt", "the name of an HTML file is needed"),
        ("nowhere/report.html", "is not a folder that can be written to"),
        ("other.html", "what is there is not a report and is kept"),
        ("folder.html", "what is there is not a report and is kept"),
    ],
)
def test_a_place_that_does_not_fit_is_refused_before_anything(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr("vaelab.runs.open_run", None)
    assert sentence in refused(measured, "run=nowhere", f"report={tmp_path}/{name}")
    assert (tmp_path / "other.html").read_text() == "<!doctype html><title>mine</title>"


EVIL = "<script>document.title='evil'</script><img src=https://evil.example/x.png>'\"&{{ 7 * 7 }}"


def test_text_of_a_run_is_escaped_and_the_place_of_its_data_is_left_out(sweep: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sweep / "two-0", tmp_path / EVIL.replace("/", "_"))
    evaluation = record(sweep, "two-0")
    evaluation |= {"absent": {EVIL: EVIL}, "collapse": EVIL}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    start = record(sweep, "two-0", "run")["starts"][0]
    start |= {"overrides": [EVIL], "python": EVIL, "time": EVIL, "versions": {EVIL: EVIL}}
    (run / "run.json").write_text(json.dumps({"starts": [start, start]}))
    evil = runs.open_run(str(run))
    evil.cfg.data.update({"root": "/home/someone/data", "used": "MNIST-5k"})
    assert "/home/someone" in runs.find_caveats(evil.model, evil.cfg)[0]
    both = {"a": runs.open_run(str(sweep / "two-0")), EVIL: evil}
    reports.write(tmp_path / "page.html", both, {"a": record(sweep, "two-0"), EVIL: evaluation})
    text = (tmp_path / "page.html").read_text()
    assert text.count(html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) > 5
    assert "This is not the full MNIST but MNIST-5k" in text
    assert "/home/someone" not in text
    assert not re.search(r"<script|<img (?!(class=\"pixels\" )?src=\"data:)", text)


def test_a_record_that_is_not_of_a_run_is_refused(sweep: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sweep / "two-0", tmp_path / "run")
    for key, value in {"rate_per_dim": ["x"], "collapse": 3, "absent": [], "variance_per_dim": None}.items():
        (run / "evaluation.json").write_text(json.dumps({**record(sweep, "two-0"), key: value}))
        assert f"see its {key}" in refused(measured, f"run={run}", f"report={tmp_path}/page.html")


DRAWN = """(() => {
    const canvas = document.createElement("canvas"), image = document.querySelector(".plots img");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    const values = pen.getImageData(0, 0, canvas.width, canvas.height).data, seen = {light: 0, dark: 0};
    for (let i = 0; i < values.length; i += 4) {
        const grey = (values[i] + values[i + 1] + values[i + 2]) / 3;
        if (values[i + 3] > 200) { seen.light += grey > 200; seen.dark += grey < 60; }
    }
    return seen.light > seen.dark ? "light" : "dark";
})()"""
WIDE = """[...document.querySelectorAll("main *")].filter(part => !part.closest(".scroll"))
    .filter(part => part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_it_opens_in_a_browser_without_a_network(sweep: Path, tmp_path: Path) -> None:
    looks, events = [], []
    with opened(tmp_path) as page:
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            page.call("Emulation.setDeviceMetricsOverride", **size)
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open((sweep / "report.html").as_uri())
            assert page.run("[...document.images].filter(image => !image.naturalWidth).length") == 0
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run(WIDE) == []
            looks.append((page.run("getComputedStyle(document.body).backgroundColor"), page.run(DRAWN)))
            events += page.events
        shown, title = page.run("document.body.innerText"), page.run("document.title")
        ids = page.run("[...document.querySelectorAll('[id]')].map(part => part.id)")
        levels = page.run("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(part => +part.tagName[1])")
        assert page.run("[...document.images].every(image => image.alt)")
    light, dark = ("rgb(255, 255, 255)", "dark"), ("rgb(20, 23, 27)", "light")  # the page, and the text of a plot
    assert looks == [light, dark, light]
    assert title == "4 runs of VAE Lab"
    assert all(name in shown for name in NAMES)
    assert len({*ids}) == len(ids) > 3
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {address.partition(":")[0] for address in sent} == {"file", "data"}
    problems = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert not [event for event in events if event["method"] in problems]
