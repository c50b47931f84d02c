"""Pages that are made from the code: methods, settings and the API. Sphinx runs this before it reads the other pages.

They are written to docs/generated, which git ignores. Their sources are the headers of configs/experiment, the
comments of configs/, the equations of docs/reference/equations.md, the docstrings of src/vaelab, the notebooks and the
Chinese README. Equations of all pages are drawn when the site is built, so that they need no script, no network and
no font.
"""

import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml
from docutils.nodes import Element, SkipNode
from latex2mathml.converter import convert as mathml
from nbconvert import MarkdownExporter
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from vaelab.evaluation import reproduction

ROOT = Path(__file__).parent.parent
CONFIGS, EXPERIMENTS, ROWS = ROOT / "configs", ROOT / "configs" / "experiment", ROOT / "configs" / "row"
SCRIPTS = ("train", "train_prior", "evaluate", "generate", "export", "classify", "reproduce")
CHINESE = re.compile(r"[\u2e80-\uffef]")
ADDRESS = re.compile(r"https?://[^\s,)]+[^\s,).;:]")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "generated"))
    app.connect("source-read", to_pages)
    app.add_html_math_renderer("svg", (in_line, None), (in_block, None))
    return {"parallel_read_safe": True}


@functools.cache
def drawn(latex: str, size: float, inline: bool) -> str:
    """An equation as SVG in the colour of the text, with its LaTeX as its title. The size is in pixels.

    The font of the equations has no Chinese characters. An equation with Chinese words is MathML, in the fonts of the
    reader.
    """
    if CHINESE.search(latex):
        return mathml(latex, display="inline" if inline else "block")
    import ziamath  # Python 3.11 and 3.12 warn when it is imported, and only building the site needs it

    ziamath.config.svg2 = False  # a glyph is a path of its own, so that no two equations of a page share an id
    ziamath.config.precision = 2  # digits after the point
    equation = ziamath.Latex(latex, size=size, color="currentColor", inline=inline, title=latex)
    svg = equation.svgxml()
    if inline:
        svg.set("style", f"vertical-align: {equation.getyofst():.2f}px")
    return ElementTree.tostring(svg, encoding="unicode")


def in_line(writer: HTML5Translator, node: Element) -> None:
    writer.body.append(drawn(node.astext(), 17, inline=True))
    raise SkipNode


def in_block(writer: HTML5Translator, node: Element) -> None:
    writer.body.append(f'<div class="equation">{drawn(" ".join(node.astext().split()), 19, inline=False)}</div>')
    raise SkipNode


def to_pages(app: Sphinx, page: str, text: list[str]) -> None:  # noqa: ARG001
    """A link to the file of an experiment or to a notebook, which a code host shows, leads to its page on the site."""
    text[0] = re.sub(r"\]\((?:\.\./)+configs/experiment/(\w+)\.yaml\)", r"](/generated/methods/\1.md)", text[0])
    text[0] = re.sub(r"\]\((?:\.\./)*notebooks/([\w.-]+)\.ipynb\)", r"](/generated/tutorial/\1.md)", text[0])


def write(folder: Path) -> None:
    """Write all pages. A page that has not changed is left alone, so that Sphinx does not read it again."""
    pages = {**methods(folder.parent), **settings(), **api(), **tutorials(), "zh-CN.md": chinese()}
    files = {name: page.encode() if isinstance(page, str) else page for name, page in pages.items()}
    for old in folder.rglob("*"):
        if old.is_file() and old.relative_to(folder).as_posix() not in files:
            old.unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


# Methods


def header(path: Path) -> dict[str, str]:
    """The sentences at the head of an experiment's file: `what`, `expected`, `time` and, line by line, `notes`."""
    found = {"what": "", "expected": "", "time": "", "notes": ""}
    key, before = "what", ""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if text.startswith("@package"):
            continue
        keyed = re.match(r"(Expected|Time): ", text)
        if keyed:
            key, text = keyed[1].lower(), text[keyed.end() :]
        elif before.endswith((".", ")")) or ADDRESS.fullmatch(before.split()[-1] if before else ""):
            key, text = "notes", f"\n{text}"
        found[key] = f"{found[key]} {text}".strip()
        before = text
    return found


def prose(text: str) -> str:
    """Plain text as Markdown: addresses are links, settings are code, and no character has a meaning of its own."""
    pieces = re.split(rf"({ADDRESS.pattern}|`[^`|]+`|'[\w./]+=[^'|]+'|(?<![\w`])[\w./]+=[\w./\[\],]*[\w\]])", text)
    plain = [re.sub(r"([\\*_|<>\[\]$`])", r"\\\1", piece) for piece in pieces[::2]]
    kept = [f"<{piece}>" if "://" in piece else f"`{piece.strip('`')}`" for piece in pieces[1::2]]
    return "".join(text for pair in zip(plain, [*kept, ""], strict=True) for text in pair)


def methods(docs: Path) -> dict[str, str]:
    """A page for each experiment, and their table."""
    files = sorted(EXPERIMENTS.glob("*.yaml"))
    rows = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(ROWS.glob("*.yaml"))}
    records = {path.stem: json.loads(path.read_text()) for path in (docs / "reproductions").glob("*.json")}
    pages, lines = {}, ["| `experiment=` | what it is | expected | measured |", "|---|---|---|---|"]
    for path in files:
        name, said = path.stem, header(path)
        recorded = docs / "methods" / "runs" / f"{name}.json"  # docs/record.py writes it
        run = json.loads(recorded.read_text()) if recorded.exists() else None
        of_it = {row: rows[row] for row in rows if trains(rows[row].get("overrides") or [], name)}
        pages[f"methods/{name}.md"] = method(path, said, run, of_it, records)
        alt = f"Reconstructions and samples of {name}"
        shown = f" ![{alt}](../methods/pictures/{name}.png)" if run else ""
        cells = (f"[`{name}`](methods/{name}.md){shown}", prose(said["what"]), prose(said["expected"]), headline(run))
        lines.append(f"| {' | '.join(cells)} |")
    pages["methods.md"] = "\n".join(
        ["# All methods", "", "This table is made from the files of `configs/experiment/`.", "", *lines, "",
         "```{toctree}", ":hidden:", "", *(f"methods/{path.stem}" for path in files), "```", ""]
    )  # fmt: skip
    return pages


def trains(overrides: list[str], name: str) -> bool:
    """Whether a row of the reproductions trains an experiment, with no other part or objective than it has."""
    others = [override for override in overrides if re.match(r"(model(/\w+)?|objective)=", override)]
    return f"experiment={name}" in overrides and not others


def measured(test: dict[str, float]) -> str:
    """The test metrics of a recorded run, without a loss that only repeats the ELBO."""
    return ", ".join(
        f"{key} {value:,.2f}" for key, value in test.items() if (key, value) != ("loss", -test.get("elbo", 0))
    )


def headline(run: dict[str, Any] | None) -> str:
    """The metric by which most readers compare, and the length of the run."""
    if run is None:
        return "–"
    keys = [key for key in ("bound", "elbo", "squared_error", "perplexity", "distortion") if key in run["test"]]
    return f"test {measured({keys[0]: run['test'][keys[0]]})} after {run['epochs']:,} epochs"


def method(
    path: Path, said: dict[str, str], run: dict[str, Any] | None, rows: dict[str, Any], records: dict[str, Any]
) -> str:
    """The page of one experiment."""
    name, text = path.stem, path.read_text()
    changes = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    command = f"python train.py experiment={name}"
    shown = ["No run of it is recorded."]
    if run:
        images, drawn = run["protocol"]["images"], run["protocol"]["binarization"]["test"]
        hardware = f"{run['device']}, {run['processor']}" if run["device"] == "cpu" else run["device"]
        start = " in the last start" if len(run["commands"]) > 1 else ""
        shown = [
            f"* Test metrics: {measured(run['test'])}, of the {run['weights']['test']} weights",
            f"* Data: {images['test']:,} test images of {run['protocol']['dataset']}, binarization {drawn}",
            *(f"* Command: `{command}`" for command in run["commands"]),
            f"* Length: {run['epochs']:,} epochs of {images['train']:,} images, {run['steps']:,} steps",
            f"* Time: {run['fit_seconds']:,.0f} s of training{start} on {hardware}, torch {run['versions']['torch']},"
            f" {run['time'][:10]}",
            "",
            f"![Reconstructions and samples of {name}](../../methods/pictures/{name}.png)",
            "",
            f"Each {'validation' if images['val'] else 'training'} image stands beside its reconstruction.",
            "Below them are samples, if the method has a prior. They show the last weights of the training.",
        ]
    lines = [f"# {name}", "", prose(said["what"]), "", "```bash", command, "```", ""]
    lines += equations(name)
    lines += [
        "## What changes compared with the plain VAE",
        "",
        f"These are the settings of `configs/experiment/{name}.yaml`.",
    ]
    if "- iwae_protocol" in changes:
        lines += ["It starts from the settings of [iwae_protocol](iwae_protocol.md)."]
    lines += ["All other settings are those of `python train.py`.", "", "```yaml", changes.rstrip(), "```", ""]
    lines += [*(f"* {prose(note.strip())}" for note in said["notes"].splitlines()), ""] if said["notes"] else []
    lines += [
        "## Expected, and its cost",
        "",
        f"* Expected: {prose(said['expected'])}",
        f"* Time: {prose(said['time'])}",
        "",
    ]
    if rows:
        lines += ["Rows of the [reproductions](../../reproductions/README.md) that train it:", ""]
        lines += [reproduction.table(rows, records), ""]
    return "\n".join([*lines, "## A recorded run", "", *shown, ""])


def choices(name: str) -> dict[str, str]:
    """The options of an experiment by group: its own, those that it starts from, and objective=elbo."""
    defaults = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text()).get("defaults", [])
    found = {"objective": "elbo"}
    for entry in defaults:
        if isinstance(entry, dict):
            found |= {key.removeprefix("override /"): option for key, option in entry.items()}
        elif entry != "_self_":
            found |= choices(entry)
    return found


@functools.cache
def written() -> dict[str, str]:
    """What docs/reference/equations.md says of each option, GROUP=OPTION."""
    sections = re.split(r"^##+ ", (ROOT / "docs" / "reference" / "equations.md").read_text("utf-8"), flags=re.M)
    parts = (section.partition("\n") for section in sections)
    return {heading.strip("`"): text.strip() for heading, _, text in parts if "=" in heading}


@functools.cache
def typeset() -> dict[str, dict[str, list[str]]]:
    """The equations of each class, in LaTeX, by the options that build it."""
    found: dict[str, dict[str, list[str]]] = {}
    for option, text in written().items():
        if part := class_of(option):
            equations = re.findall(r"```math\n(.*?)\n```", text, re.S)
            found.setdefault(f"{part.__module__}.{part.__name__}", {})[option] = equations
    return found


def class_of(option: str) -> Any:
    """The class that GROUP=OPTION builds, or None if its file starts from another one."""
    group, _, name = option.partition("=")
    target = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text()).get("_target_")
    if target is None:
        return None
    module, _, kind = target.rpartition(".")
    return getattr(importlib.import_module(module), kind)


def equations(name: str) -> list[str]:
    """The equations of an experiment's objective and of the other options that it chooses."""
    chosen = choices(name)
    options = [f"objective={chosen.pop('objective')}", *(f"{group}={chosen[group]}" for group in sorted(chosen))]
    lines = ["## What is optimised", ""]
    for option in options:
        part = class_of(option) if option in (options[0], *written()) else None
        if option in written():
            lines += [f"`{option}`:", "", written()[option], ""]
        elif part:
            lines += [f"`{option}`:", "", prose((inspect.getdoc(part) or "").split("\n\n")[0]), ""]
        if part:
            lines += [f"The class is {{py:class}}`{part.__name__} <{part.__module__}.{part.__name__}>`.", ""]
    return [*lines, "The page [Equations](../../reference/equations.md) explains the symbols and has all options.", ""]


# Settings


def settings() -> dict[str, str]:
    """A page of each group of options, and of the settings of each script."""
    groups = sorted({path.parent for path in CONFIGS.rglob("*.yaml")} - {CONFIGS})
    shown = [group for group in groups if group.relative_to(CONFIGS).parts[0] not in ("experiment", "row", "hydra")]
    pages, table = {}, ["| group | options |", "|---|---|"]
    for script in SCRIPTS:
        pages[f"settings/{script}.md"] = "\n".join([f"# {script}.py", "", *option(CONFIGS / f"{script}.yaml")])
    for group in shown:
        name = group.relative_to(CONFIGS).as_posix()
        lines = [f"# {name}", "", f"Options of `python train.py {name}=...`:", ""]
        files = sorted(group.glob("*.yaml"))
        for path in files:
            lines += [f"## {name}={path.stem}", "", *option(path)]
        page = f"settings/{name.replace('/', '-')}.md"
        table.append(f"| [{name}]({page}) | {', '.join(f'`{path.stem}`' for path in files)} |")
        pages[page] = "\n".join(lines)
    names = [name.removesuffix(".md") for name in pages]
    scripts = ", ".join(f"[{script}.py](settings/{script}.md)" for script in SCRIPTS)
    pages["settings.md"] = "\n".join(
        ["# All settings", "", "The pages are made from the files of `configs/` and their comments.", "",
         f"Each script has settings of its own: {scripts}.", "", "These are the groups of options:", "", *table, "",
         "```{toctree}", ":hidden:", "", *names, "```", ""]
    )  # fmt: skip
    return pages


def option(path: Path) -> list[str]:
    """A YAML file as Markdown: the comment at its head, and a table of keys, defaults and comments."""
    text = path.read_text()
    lines = text.splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    said = [prose(" ".join(line for line in head if not line.startswith("@package"))), ""]
    rows = list(keys(yaml.compose(text), text))
    if not rows:
        return said
    table = ["| key | default | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return [*said, "```{table}", ":class: settings", "", *table, "```", ""]


def keys(node: Any, text: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, comment) of each entry of a YAML node, as cells of a table. Keys have dots between levels."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        line = text.splitlines()[key.start_mark.line]
        comment = prose(line.split(" #", 1)[1].strip()) if " #" in line else ""
        if name == "hydra":
            continue
        entries = value.value if isinstance(value, yaml.SequenceNode) else []
        if isinstance(value, yaml.MappingNode) and value.value:
            if comment and not value.flow_style:
                yield f"`{name}`", "", comment
            yield from keys(value, text, f"{name}.")
        elif any(isinstance(entry, yaml.MappingNode) for entry in entries) and name != "defaults":
            yield f"`{name}`", "", comment
            for i, entry in enumerate(entries):
                yield from keys(entry, text, f"{name}.{i}.")
        elif name == "defaults":
            for entry in entries:
                row = text.splitlines()[entry.start_mark.line].strip().removeprefix("- ")
                written, _, after = row.partition(" #")
                yield "`defaults`", f"`{written.strip()}`", prose(after.strip())
        else:
            written = text[value.start_mark.index : value.end_mark.index]
            yield f"`{name}`", f"`{written}`" if written else "", comment


# The tutorial and the Chinese page


def tutorials() -> dict[str, str | bytes]:
    """The notebooks with their outputs as they are stored, as pages and pictures."""
    pages: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        exporter = MarkdownExporter()
        text, made = exporter.from_filename(str(path), {"unique_key": path.stem, "output_files_dir": "pictures"})
        text = re.sub(r"\]\(([\w.-]+)\.ipynb\)", r"](\1.md)", text).replace("](../docs/", "](/")
        pages[f"tutorial/{path.stem}.md"] = text.replace("](../", "](../../../")
        pages |= {f"tutorial/{name}": content for name, content in made["outputs"].items()}
    return pages


def chinese() -> str:
    """README.zh-CN.md as a page of the site."""
    text = (ROOT / "README.zh-CN.md").read_text("utf-8")
    text = re.sub(r'<img src="docs/([^"]+)" width="(\d+%)" alt="([^"]+)">', r'![\3](/\1){width="\2"}', text)
    for name, page in (("README.md", "index"), ("CONTRIBUTING.md", "contributing"), ("CHANGELOG.md", "changelog")):
        text = text.replace(f"]({name}", f"](/{page}.md")
    text = re.sub(r"^# .*$", "# VAE Lab 中文说明", text, count=1, flags=re.M)
    return text.replace("](docs/", "](/")


# The API


def api() -> dict[str, str]:
    """A page for each module of src/vaelab, or for each package with all of its modules."""
    package = ROOT / "src" / "vaelab"
    modules: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = [part for part in path.relative_to(package).with_suffix("").parts if part != "__init__"]
        modules.setdefault(parts[0] if parts else "vaelab", []).append(".".join(["vaelab", *parts]))
    pages, table = {}, ["| module | what it has |", "|---|---|"]
    for name, members in modules.items():
        said = (inspect.getdoc(importlib.import_module(members[0])) or "").split("\n\n")[0]
        table.append(f"| [`{members[0]}`](api/{name}.md) | {prose(' '.join(said.splitlines()))} |")
        lines = [f"# {members[0]}", ""]
        for member in members:
            lines += [f"## {member}", ""] if len(members) > 1 and member != members[0] else []
            lines += ["```{eval-rst}", f".. automodule:: {member}", "   :members:", "   :ignore-module-all:", "```", ""]
        pages[f"api/{name}.md"] = "\n".join(lines)
    pages["api.md"] = "\n".join(
        ["# The API", "", "The pages are made from the docstrings of `src/vaelab`.", "", *table, "",
         "```{toctree}", ":hidden:", "", *(page.removesuffix(".md") for page in pages), "```", ""]
    )  # fmt: skip
    return pages
