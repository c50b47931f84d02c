"""The tutorial runs from top to bottom in limited time, and was committed with such outputs, in both languages.

`python tests/test_notebooks.py` builds both notebooks from their source, runs them and writes them with their outputs.
"""

import ast
import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from string import Formatter
from types import ModuleType
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

if TYPE_CHECKING:
    from conftest import Compose

FOLDER = Path(__file__).parents[1] / "notebooks"
ENGLISH, CHINESE = "from_pca_to_vae", "from_pca_to_vae.zh-CN"
DRAWINGS = ("bottleneck", "selection_and_extraction", "lossless_and_lossy", "ae_and_vae", "reparameterisation")
FEW = """
images, labels = images[:500], labels[:500]
torch.testing.assert_close = lambda *_, **__: None
"""
SHORT = """
whole = train
train = lambda model, objective, x, epochs, rate: whole(model, objective, x, 1, rate)
"""


def module(name: str) -> ModuleType:
    """A module beside the notebooks."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


build, diagrams, words = module("build"), module("diagrams"), module("words")


def committed(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook: NotebookNode, **environment: str) -> NotebookNode:
    """Run a notebook in a fresh kernel and return it; CellExecutionError names the cell that fails."""
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True, resources=resources)
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    notebook.metadata = build.METADATA  # a run records the version of Python
    return notebook


def outputs(notebook: NotebookNode) -> list[list[str]]:
    """The kinds of outputs of each code cell: the name of a stream, or the richest type of a result."""
    return [
        [output.get("name") or min(output.data) for output in cell.outputs]  # "image/png" comes before "text/plain"
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def sources(notebook: NotebookNode) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def said() -> set[str]:
    """All texts that figures and messages say."""
    trees = [ast.parse((FOLDER / name).read_text()) for name in ("diagrams.py", "source/cells.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        ast.literal_eval(call.args[0]) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "say"
    }


@pytest.fixture
def fonts() -> Iterator[None]:
    """Matplotlib draws without a window, and forgets the fonts that a test chose."""
    with mpl.rc_context({"backend": "agg", "figure.constrained_layout.use": True}):
        yield
    plt.close("all")


def test_the_english_notebook_runs_and_leaves_what_was_committed() -> None:
    before = os.times()
    executed = execute(build.build(ENGLISH))
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    assert 1 < cpu < 90  # CPU seconds, which do not depend on the load of the machine
    assert outputs(committed(ENGLISH)) == outputs(executed)


def test_the_chinese_notebook_runs_without_a_missing_glyph() -> None:
    """Its code is the English one, so few images train models for a moment only, and nothing is asserted."""
    notebook = build.build(CHINESE)
    added = {"setup": new_code_cell(FEW), "linear-autoencoder": new_code_cell(SHORT)}
    for name, cell in added.items():
        notebook.cells.insert([other.id for other in notebook.cells].index(name) + 1, cell)
    execute(notebook, PYTHONOPTIMIZE="1")
    notebook.cells = [cell for cell in notebook.cells if cell.id not in {each.id for each in added.values()}]
    assert outputs(notebook) == outputs(committed(CHINESE))  # a missing glyph is a warning, and so a "stderr"


def test_both_languages_have_the_same_cells_and_code() -> None:
    english, chinese = (sources(build.build(name)) for name in (ENGLISH, CHINESE))
    assert [cell[:2] for cell in english] == [cell[:2] for cell in chinese]
    code = [[text for _, kind, text in cells if kind == "code"] for cells in (english, chinese)]
    assert [text.replace('speak("zh")', 'speak("en")') for text in code[1]] == code[0]
    assert sum('speak("zh")' in text for text in code[1]) == 1


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_was_committed_clean(name: str) -> None:
    notebook, path = committed(name), FOLDER / f"{name}.ipynb"
    assert sources(notebook) == sources(build.build(name)), "change the source, and run python tests/test_notebooks.py"
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert set().union(*outputs(notebook)) == {"stdout", "image/png"}
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert notebook.metadata == build.METADATA
    assert not any(cell.metadata for cell in notebook.cells)
    assert not re.search(r"/(home|root|tmp|work|Users|usr)/|C:\\", path.read_text())
    assert path.stat().st_size < 2e6


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_links_lead_to_files(name: str) -> None:
    text = "\n".join(cell.source for cell in build.build(name).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert len(links) > 10
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_commands_have_settings_that_exist(config: "Compose") -> None:
    texts = ["\n".join(cell.source for cell in build.build(name).cells) for name in (ENGLISH, CHINESE)]
    english, chinese = (re.findall(r"^python train\.py (?:-m )?(.*?)\s*(?:#.*)?$", text, re.M) for text in texts)
    assert english == chinese
    assert len(english) > 3
    for command in english:
        config(*(argument.split(",")[0] for argument in command.split()))


def test_every_text_has_its_translation_with_the_same_gaps() -> None:
    assert said() == set(words.CHINESE)
    for english, chinese in words.CHINESE.items():
        gaps = [
            [field[1:3] for field in Formatter().parse(text) if field[1] is not None] for text in (english, chinese)
        ]
        assert gaps[0] == gaps[1], english


@pytest.mark.usefixtures("fonts")
def test_without_a_font_that_has_all_characters_the_texts_stay_english(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    latin = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    poor = Path(shutil.copy(latin, tmp_path / "simhei.ttf"))  # it is called as a Chinese font is
    for found in ([], [str(poor)]):
        monkeypatch.setattr(words.font_manager, "findSystemFonts", lambda found=found: found)
        assert words.speak("zh")("encoder") == "encoder"
        assert plt.rcParams["font.family"] == ["DejaVu Sans"]
        diagrams.bottleneck(words.speak("zh")).canvas.draw()


@pytest.mark.usefixtures("fonts")
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_keep_their_texts_apart(name: str, language: str) -> None:
    """Where no Chinese font is installed, both are English. A missing glyph is a warning, which is an error here."""
    figure = getattr(diagrams, name)(words.speak(language))
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts]
    assert {text.get_weight() for text in texts} <= {"normal"}  # many Chinese fonts have no other weight
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        assert not one.overlaps(other), (first, second)
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text


if __name__ == "__main__":
    for notebook_name in (ENGLISH, CHINESE):
        nbformat.write(execute(build.build(notebook_name)), FOLDER / f"{notebook_name}.ipynb")
