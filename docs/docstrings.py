"""Docstrings as pages: in plain text, lists, tables, code in backquotes and indented equations have a meaning."""

import re
from itertools import groupby
from typing import Any

from pages import ADDRESS, typeset
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", as_text)
    return {"parallel_read_safe": True}


def as_text(*event: Any) -> None:
    """Replace the lines of a docstring by reStructuredText.

    The first paragraph of a class that an option names is followed by its typeset equations.
    """
    name: str = event[2]
    lines: list[str] = event[-1]
    made: list[str] = []
    if not re.match(r"Alias for field number \d+", "".join(lines)):  # Python's own words for a field of a named tuple
        for in_table, group in groupby(lines, lambda line: bool(re.match(r"\|.*\|$", line))):
            part = list(group)
            made += table(part) if in_table else paragraphs(part)
    end = made.index("") if "" in made else len(made)
    made[end:end] = [line for option, equations in typeset().get(name, {}).items() for line in block(option, equations)]
    lines[:] = made


def block(option: str, equations: list[str]) -> list[str]:
    """The typeset equations of an option."""
    made = ["", f"With ``{option}``:"]
    for latex in equations:
        made += ["", ".. math::", "", *(f"   {line}" for line in latex.splitlines()), ""]
    return made


def table(rows: list[str]) -> list[str]:
    """A table with pipes, as in Markdown. A pipe in brackets, such as that of p(x | z), does not end a cell."""
    cells = [re.split(r"\s*\|\s*(?![^(\[]*[)\]])", row)[1:-1] for row in rows]
    made = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in [cells[0], *cells[2:]]:
        made += [f"   {'* -' if i == 0 else '  -'} {escaped(cell)}" for i, cell in enumerate(row)]
    return [*made, ""]


def paragraphs(lines: list[str]) -> list[str]:
    """Paragraphs, lists, and equations, which are indented by four spaces."""
    made: list[str] = []
    block = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not block and (not made or not made[-1]):
            made += ["::", ""]
            block = True
        block = block and (indented or not line)
        bullet = re.match(r"\s*(\* |$)", line)
        start = bullet[0] if bullet else ""
        made.append(line if block else start + escaped(line.removeprefix(start)))
    return made


def escaped(line: str) -> str:
    """A line of plain text as reStructuredText. Addresses become links by themselves."""
    pieces = re.split(rf"(`[^`]+`|{ADDRESS.pattern})", line)
    made = [re.sub(r"([\\*|_`])", r"\\\1", piece) for piece in pieces[::2]]
    kept = [f"`{piece}`" if piece.startswith("`") else piece for piece in pieces[1::2]]
    return "".join(text for pair in zip(made, [*kept, ""], strict=True) for text in pair)
