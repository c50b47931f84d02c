"""The documentation: its site builds without a warning, its links lead somewhere, and its commands and code run."""

import importlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType

import docstrings
import documents
import numpy as np
import pages
import pytest
import record
import torch
from conftest import ROOT, Command, compose_config
from documents import PAGES
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from train import train
from vaelab.evaluation.report import METRICS

ADDED = [  # (page, section) with a class to add and the YAML file that names it
    (page, section)
    for page, text in PAGES.items()
    for section in documents.sections(text)
    if page != "README.md" and any(block.startswith("class") for block in documents.blocks(section, "python"))
]
YAML = r"`(configs/\S+/(\w+)\.yaml)`:\n\n```yaml\n(.*?)```"
NEW = {match[2] for _, section in ADDED for match in re.finditer(YAML, section, re.S)}  # options that do not exist yet
SCRIPTS = ("evaluate", "generate", "export")
LATER = [(script, words) for script in SCRIPTS for words in documents.arguments(f"python {script}.py")]
# runs/test_sweeps.py and extensions/test_search.py run such commands, and test_options.py each experiment
SWEEPS = r"-m .*(hydra/launcher=(joblib|local|submitit|ray)|hydra/sweeper=|range\(|resume=|experiment=\w+,)"
TRAINING = [
    words
    for words in documents.arguments("python train.py")
    if "trainer=ddp" not in words  # training/test_processes.py runs these
    and not re.match(SWEEPS, " ".join(words))
    and not re.search(r"wandb|mlflow", " ".join(words))  # and training/test_loggers.py these
    and not NEW & {word.partition("=")[2] for word in words}  # test_added_part_trains runs these
]
ELSEWHERE = (  # commands that other tests run, that .ci/run runs, or that need a network or a person
    r"git clone |cd vae-lab$|python3 -m venv \.venv$|\. \.venv/bin/activate$|pip install |pytest$|jupyter lab ",
    r"tensorboard --logdir logs$|sphinx-build -W -b html docs docs/_build$",
    rf"python train.py {SWEEPS}",
    r"python train.py '?logger=(\[tensorboard,mlflow|wandb)",
    r"python train_prior.py run=logs/RUN$",  # tests/test_train_prior.py
    r"torchrun |srun |#!/bin/bash$|#SBATCH |python train.py trainer=ddp",
    r"python classify\.py data=",  # test_classify.py
    r"python reproduce.py row=|python benchmarks/(together|speed|evaluation|family|disentanglement|comparison)\.py",
)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """A link to a page or a heading that does not exist is a warning, too. External addresses are not fetched."""
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "cache",
         ROOT / "docs", tmp_path / "site"],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    site = tmp_path / "site"
    for name, equation in (("iwae", r"\sum_{k=1}^{K} w_k"), ("vampprior", r"q(z \mid u_c)"), ("beta_vae", r"\beta")):
        method = (site / "generated" / "methods" / f"{name}.html").read_text()
        assert re.search(rf"<svg[^>]*><title>[^<]*{re.escape(equation)}", method), name
    gallery = (site / "methods" / "index.html").read_text()
    assert re.search(r'<a [^>]*href="\.\./generated/methods/iwae\.html">(<[^>]*>)*<img [^>]*iwae\.png', gallery)
    tutorial = (site / "generated" / "tutorial" / "from_pca_to_vae.zh-CN.html").read_text()
    for part in ("重参数化技巧", "<math", "<svg", "_images/from_pca_to_vae.zh-CN_3_0.png"):
        assert part in tutorial
    objectives = (site / "generated" / "api" / "objectives.html").read_text()
    assert 'id="vaelab.objectives.elbo.ELBO"' in objectives
    assert "loss = distortion + beta * rate" in objectives
    assert r"<title>\text{loss} = \text{distortion} + \gamma" in objectives  # of objective=capacity


def test_a_recorded_run_has_its_metrics_and_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    samples, reconstructions = (
        torch.randint(255, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for size in ((1, 466, 466), (1, 234, 914))  # as a run draws them, with borders of 2 pixels
    )
    title = torch.full((1, 40, 466), 255, dtype=torch.uint8)
    to_pil_image(torch.cat([title, samples], 1)).save(run / "pictures" / "samples.png")
    wider = torch.full((1, 40, 920), 255, dtype=torch.uint8)  # a title can be wider than its picture
    below = torch.full((1, 234, 6), 255, dtype=torch.uint8)
    page = torch.cat([wider, torch.cat([reconstructions, below], 2)], 1)
    to_pil_image(page).save(run / "pictures" / "reconstructions.png")
    overrides = ["experiment=beta_vae", "seed=3", "data.root=elsewhere", "hydra.run.dir=run"]
    others = {"time": "now", "machine": {"processor": "one"}, "versions": {}}
    facts = {"starts": [{"overrides": each, **others} for each in (overrides, ["resume=runs/run"])]}
    (run / "run.json").write_text(json.dumps(facts))
    metrics = {"test": {"elbo": -100.5}, "epochs": 4, "steps": 20, "fit_seconds": 1.5, "device": "cpu", "unit": "nats"}
    metrics["protocol"] = {"dataset": "MNIST", "images": {"train": 500, "test": 200}, "binarization": {"test": "none"}}
    metrics["weights"] = {"test": "best"}
    (run / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(record, "HERE", tmp_path / "methods")
    record.main([str(run)])
    found = json.loads((tmp_path / "methods" / "runs" / "beta_vae.json").read_text())
    assert found["commands"] == ["python train.py experiment=beta_vae seed=3", "python train.py resume=RUN"]
    assert {key: found[key] for key in ("test", "device", "steps")} == {
        key: metrics[key] for key in ("test", "device", "steps")
    }
    both = pil_to_tensor(Image.open(tmp_path / "methods" / "pictures" / "beta_vae.png"))
    height = reconstructions.shape[1]
    assert both[:, :height, : reconstructions.shape[2]].equal(reconstructions)
    below = both[:, height + 8 :]
    for row in range(8):  # the first four rows of samples stand left, the others right
        top, left = row % 4 * 58, row // 4 * 464
        assert below[:, top + 2 : top + 58, left + 2 : left + 464].equal(
            samples[:, row * 58 + 2 : row * 58 + 58, 2:464]
        )
    assert below.shape[1] == 4 * 58 + 2

    del overrides[0]
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(SystemExit, match="is a run without experiment=NAME"):
        record.main([str(run)])


def test_the_gallery_shows_each_recorded_run() -> None:
    gallery = (ROOT / "docs" / "methods" / "index.md").read_text()
    for picture in (ROOT / "docs" / "methods" / "pictures").glob("*.png"):
        name = picture.stem
        assert f"[![{name}](pictures/{name}.png) `{name}`](../../configs/experiment/{name}.yaml)" in gallery


def test_each_equation_is_one_of_an_option() -> None:
    headings = re.findall(r"^### `(\S+)=(\w+)`$", (ROOT / "docs" / "reference" / "equations.md").read_text(), re.M)
    assert headings
    for group, option in headings:
        assert (ROOT / "configs" / group / f"{option}.yaml").exists(), (group, option)


def test_a_docstring_is_plain_text_with_tables_and_equations() -> None:
    lines = ["KL(q || p), see `kl`:", "", "    KL >= 0", "", "| a | b |", "|---|---|", "| p(x | z) | |"]
    docstrings.as_text(None, "function", "vaelab.none", None, None, lines)
    text = [r"KL(q \|\| p), see ``kl``:", "", "::", "", "    KL >= 0", ""]
    table = ["   :header-rows: 1", "", "   * - a", "     - b", r"   * - p(x \| z)", "     - "]
    assert lines == [*text, "", ".. list-table::", *table, ""]
    lines = ["Alias for field number 0"]
    docstrings.as_text(None, "attribute", "vaelab.trace.Latent.z", None, None, lines)
    assert lines == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", *list(PAGES)[1:]])
def test_links_lead_to_files_and_headings(name: str) -> None:
    """As on a code host, where the pages are read without Sphinx."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.S | re.M)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}, target


def test_the_chinese_page_explains_each_part_that_can_be_added() -> None:
    headings = [section.split("\n")[0] for page, section in ADDED if page == "docs/how-to/add.md"]
    wanted = [f"add.md#{heading.removeprefix('## ').lower().replace(' ', '-')}" for heading in headings]
    found = re.findall(r"^\| \[\S+\]\((add\.md#\S+)\) \| ", PAGES["docs/how-to/add.zh-CN.md"], re.M)
    assert found == wanted
    assert len(found) == 5


def test_each_command_is_run_by_a_test() -> None:
    run = {shlex.join(["python", "train.py", *words]) for words in TRAINING}
    run |= {shlex.join(["python", f"{script}.py", *words]) for script, words in LATER}
    for page, text in PAGES.items():
        for line in documents.commands(text):
            known = any(re.match(pattern, line) for pattern in ELSEWHERE)
            new = NEW & {word.partition("=")[2] for word in shlex.split(line, comments=line.startswith("#"))}
            assert known or new or shlex.join(shlex.split(line)) in run, f"{page}: {line}"
    rows = [words[0].removeprefix("row=") for words in documents.arguments("python reproduce.py")]
    assert all((ROOT / "configs" / "row" / f"{row}.yaml").is_file() for row in rows)


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_training_commands(command: Command, words: list[str]) -> None:
    short = [re.sub(r"^trainer.max_epochs=\d+$", "trainer.max_epochs=2", word) for word in words]
    if any(word.startswith("resume=") for word in words):
        assert command()[0] is None
        (run,) = (command.folder / "logs").iterdir()
        limits = [word for word in short if word.startswith("resume=")] + ["trainer.max_epochs=3"]
        code, printed = command(*(word.replace("logs/RUN", f"logs/{run.name}") for word in limits), small=False)
        assert code is None, printed
        return
    _own_images(command.folder)
    trains = not any(word.startswith("--") for word in words)
    accumulates = any("accumulate_grad_batches" in word for word in words)  # which takes a longer epoch
    more = ["trainer.limit_train_batches=4"] if accumulates else []
    code, printed = command(*short, *more, small=trains)
    if {"trainer.accelerator=gpu", "trainer=gpu_fast"} & {*words} and not torch.cuda.is_available():
        assert "finds no GPU on this machine" in str(code)
    else:
        assert code in (None, 0), printed
        values = [word.partition("=")[2] for word in words]
        runs = 1 if "-m" not in words else len(list(itertools.product(*(v.split(",") for v in values if "[" not in v))))
        assert len(list(command.folder.glob("logs/**/metrics.json"))) == (runs if trains else 0)


def _own_images(folder: Path) -> None:
    """A folder FOLDER of thirty images, and FILE.npz with arrays of them."""
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    (folder / "FOLDER").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "FOLDER" / f"{i}.png")
    np.savez(folder / "FILE.npz", train_images=images, test_images=images[:5])


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with the names of the pages, and codes of two dimensions so that all pictures can be drawn."""
    folder = tmp_path_factory.mktemp("docs")
    for name, overrides in {"RUN": [], "B": ["seed=1"], "AE": ["experiment=autoencoder"]}.items():
        (folder / "logs" / name).mkdir(parents=True)
        train(compose_config(data_root, "model.latent_dim=2", *overrides), folder / "logs" / name)
    for name in ("A", "C", "VAE"):
        shutil.copytree(folder / "logs" / "RUN", folder / "logs" / name)
    for seed, name in enumerate(("RUN", "B")):
        shutil.copytree(folder / "logs" / name, folder / "logs" / "SWEEP" / f"{seed}_seed-{seed}")
    (folder / "FOLDER").mkdir()
    Image.new("L", (28, 28)).save(folder / "FOLDER" / "digit.png")
    (folder / "mynets.py").touch()
    return folder


@pytest.mark.parametrize(("script", "words"), LATER, ids=[f"{script} {' '.join(words)}" for script, words in LATER])
def test_commands_for_a_finished_run(
    script: str, words: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings = words
    if script == "evaluate":
        short = ["num_samples=3", "num_images=60", "sizes.steps=2", "sizes.refined_samples=2"]
        (finished / "logs" / "RUN" / "evaluation.json").unlink(missing_ok=True)  # one with more samples would be kept
        short += ["annealing.temperatures=2"] if "ais=true" in settings else []
        own = any(word.startswith("images=") for word in settings)  # images of one's own take no other sizes
        settings = ["samples=60" if word.startswith("samples=") else word for word in settings]
        settings = [word for word in settings if not word.startswith("num_")] + ([] if own else short)
    monkeypatch.chdir(finished)
    monkeypatch.setenv("VAELAB_CACHE", str(finished.with_name("cache")))  # of the classifier of all these commands
    monkeypatch.syspath_prepend(finished)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(script, settings)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    getattr(importlib.import_module(script), script)(cfg, Path())
    assert capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} != before  # the command wrote a file


def test_tensorboard_serves_the_run(command: Command) -> None:
    assert command("model.latent_dim=2", "trainer.log_every_n_steps=1")[0] is None
    (run,) = (command.folder / "logs").iterdir()
    tool = str(Path(sys.executable).with_name("tensorboard"))
    with subprocess.Popen(
        [tool, "--logdir", "logs", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=command.folder,
    ) as server:  # fmt: skip
        try:
            address = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
            deadline = time.monotonic() + 60
            tags: dict = {}
            while "train/loss" not in tags.get(run.name, {}) and time.monotonic() < deadline:
                time.sleep(0.5)
                with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=60) as reply:
                    tags = json.load(reply)
            assert {"train/loss", "val/elbo", "weights/test_rate", "train/lr"} <= set(tags[run.name])
            with urllib.request.urlopen(f"{address}data/plugin/images/tags", timeout=60) as reply:
                names = ("reconstructions", "samples", "manifold", "codes")
                assert set(json.load(reply)[run.name]) == {f"views/{name}" for name in names}
        finally:
            server.kill()


CODE = dict.fromkeys(block for text in PAGES.values() for block in documents.blocks(text, "python"))
WANTED = {  # a part of each block that runs alone -> what it prints, or a name that it defines
    "log_weight(x).shape": "torch.Size([5, 16])",
    "load_run": "model",
    "read_csv": "loss.png",
    "weights_only=True": "'decoder.layers.0.weight': (32, 2)",  # of the narrow network of these tests
}


@pytest.mark.parametrize(
    "code", [code for code in CODE if not code.startswith(("class", "    "))], ids=lambda code: code.split("\n")[0]
)
def test_python_code(code: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(finished)
    names: dict = {}
    exec(code, names)
    (wanted,) = (wanted for part, wanted in WANTED.items() if part in code)
    if wanted == "model":
        assert names["model"].encode(torch.zeros(3, 1, 28, 28)).shape == (3, 2)
    elif wanted.endswith(".png"):
        assert len(Image.open(finished / "logs" / "RUN" / wanted).convert("RGB").getcolors(10**6)) > 20
    else:
        assert wanted in capsys.readouterr().out


def test_excerpts_are_those_of_the_files() -> None:
    excerpts = [code for code in CODE if code.startswith("    ")]
    module = (ROOT / "src" / "vaelab" / "training" / "module.py").read_text()
    assert len(excerpts) == 1
    assert all(code in module for code in excerpts)
    (shown,) = [block for block in documents.blocks(PAGES["docs/concepts/parts.md"], "yaml") if block.startswith("#")]
    name, *lines = shown.splitlines()
    real = [line.split("#")[0].strip() for line in (ROOT / name.split()[1]).read_text().splitlines()]
    assert all(line.split("#")[0].strip() in real for line in lines)


@pytest.mark.parametrize("section", [section for _, section in ADDED], ids=lambda section: section.split("\n")[0])
def test_added_part_trains(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    """The class goes into its file, the YAML file into configs/, and the commands of the section train it."""
    (code,) = documents.blocks(section, "python")
    name, path = re.search(r"class (\w+)", code)[1], re.search(r"`src/(vaelab/\S+)\.py`", section)[1]  # type: ignore[index]
    module: ModuleType = importlib.import_module(path.replace("/", "."))
    monkeypatch.setattr(module, name, None, raising=False)
    exec(code, vars(module))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (yaml,) = re.finditer(YAML, section, re.S)
    (tmp_path / yaml[1]).write_text(yaml[3])
    lines = [shlex.split(line.removeprefix("python train.py")) for line in documents.commands(section)]
    assert lines
    for i, words in enumerate(lines):
        chosen = [re.sub(r"=.*,", "=", word) for word in words if word != "-m"]  # the last value of a sweep
        own = any(word.startswith("data=") for word in words)
        settings = [] if own else [f"data.root={data_root}", "data.md5=null", "data.val_size=100"]
        with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
            cfg = compose("train", [*settings, "trainer=debug", "callbacks.pictures=null", *chosen])
        (tmp_path / str(i)).mkdir()
        train(cfg, tmp_path / str(i))
        assert json.loads((tmp_path / str(i) / "metrics.json").read_text())["test"]["rate"] > 0


def test_all_metrics_have_a_meaning() -> None:
    page = PAGES["docs/reference/metrics.md"]
    assert not {name for section in METRICS.values() for name in section if f"| `{name}` |" not in page}


def leaves(node: object, prefix: str = "") -> list[str]:
    """The dotted keys of a config, except for Hydra's own."""
    if isinstance(node, DictConfig) and len(node):
        return [key for name in node for key in leaves(node._get_node(name), f"{prefix}{name}.")]
    if isinstance(node, ListConfig) and any(isinstance(node._get_node(i), DictConfig) for i in range(len(node))):
        return [key for i in range(len(node)) for key in leaves(node._get_node(i), f"{prefix}{i}.")]
    return [prefix.removesuffix(".")]


def test_the_settings_have_each_key_of_each_file() -> None:
    made = pages.settings()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        group = path.parent.relative_to(ROOT / "configs").as_posix()
        if group.split("/")[0] in ("experiment", "row", "hydra"):
            continue
        page = made[f"settings/{path.stem if group == '.' else group.replace('/', '-')}.md"]
        part = page if group == "." else page.split(f"## {group}={path.stem}\n")[1].split("\n## ")[0]
        cfg = OmegaConf.load(path)
        keys = [key for key in leaves(cfg) if not key.startswith(("defaults", "hydra"))]
        assert [key for key in keys if key and f"| `{key}` |" not in part] == [], path


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_header_of_an_experiment_is_read(path: Path) -> None:
    said = pages.header(path)
    assert all(said[key] for key in ("what", "expected", "time"))
    words = " ".join(line[1:].strip() for line in path.read_text().splitlines() if re.match(r"#(?! @package)", line))
    assert sorted(" ".join(said.values()).split()) == sorted(re.sub(r"(Expected|Time): ", "", words).split())
