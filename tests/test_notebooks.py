"""Every notebook runs from top to bottom in limited time, and was committed with such outputs.

`python tests/test_notebooks.py` runs them all and renews their outputs.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, Compose
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> NotebookNode:
    """Run a notebook in a fresh kernel and return it; CellExecutionError names the cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True, resources=resources)
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    notebook.metadata = METADATA  # a run records the version of Python
    return notebook


def outputs(notebook: NotebookNode) -> list[list[str]]:
    """The kinds of outputs of each code cell: the name of a stream, or the richest type of a result."""
    return [
        [output.get("name") or min(output.data) for output in cell.outputs]  # "image/png" comes before "text/plain"
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_is_the_tutorial() -> None:
    assert [path.name for path in NOTEBOOKS] == ["from_pca_to_vae.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_leaves_what_was_committed(path: Path) -> None:
    before = os.times()
    executed = execute(path)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    assert 1 < cpu < 90  # CPU seconds, which do not depend on the load of the machine
    committed = nbformat.read(path, as_version=4)
    assert outputs(committed) == outputs(executed)
    assert set().union(*outputs(committed)) == {"stdout", "image/png"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_was_committed_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert notebook.metadata == METADATA
    assert not any(cell.metadata for cell in notebook.cells)
    assert not re.search(r"/(home|root|tmp|work|Users|usr)/|C:\\", path.read_text())
    assert path.stat().st_size < 1.5e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_have_settings_that_exist(config: Compose, path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    commands = re.findall(r"^python train\.py (?:-m )?(.*?)\s*(?:#.*)?$", text, re.M)
    assert commands
    for command in commands:
        config(*(argument.split(",")[0] for argument in command.split()))


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        nbformat.write(execute(notebook_path), notebook_path)
