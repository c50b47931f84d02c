"""Text from files and folders of unknown origin, made safe to show in a terminal, a log or Markdown. Also tables."""

import codecs
import csv
import io
import re
from collections.abc import Sequence

# Control characters, which move a terminal's cursor or begin its commands, and characters that are invisible, begin a
# line or change the direction of text
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def plain(text: object) -> str:
    r"""The text in one line, with each hidden character as its escape sequence, such as \x1b or \n."""
    return HIDDEN.sub(lambda match: repr(match[0])[1:-1], str(text))


def substitute(error: UnicodeError) -> tuple[str, int]:
    """Replace a character that the output cannot encode. A terminal or a log may take ASCII only."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join({"±": "+-", "–": "-", "é": "e"}.get(letter, "?") for letter in letters), error.end


codecs.register_error("substitute", substitute)


def code(text: object) -> str:
    """The text as code in Markdown, also in a table. Nothing in it is a link, HTML or another element."""
    shown = plain(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def folder_name(text: object) -> str:
    """Replace characters that need quotes in run=<folder>. Letters, digits, dot, underscore and hyphen stay."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-_")[:100]


FORMATS = ("text", "markdown", "latex", "csv")
WIDTH = 120  # characters of a line


def cut(name: str, most: int = 40) -> str:
    """A name of at most `most` characters. Three dots stand for its end."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def rounded(value: float, digits: int = 2) -> str:
    """A number with this many significant digits, or as a whole number if it has more before its decimal point."""
    return f"{value:.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:.0f}"


def table(rows: Sequence[Sequence[str]], form: str = "text") -> str:
    """Rows of cells, the header first, as a table in one of `FORMATS`. A LaTeX table needs the package booktabs.

    A text that would be wider than 120 characters becomes several tables, one below the other, with the same first
    column.
    """
    if form == "csv":
        csv.writer(text := io.StringIO(), lineterminator="\n").writerows(rows)
        return text.getvalue().rstrip("\n")
    if form == "latex":
        header, *lines = (" & ".join(map(_latex, row)) + r" \\" for row in rows)
        columns = "l" + "r" * (len(rows[0]) - 1)
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *lines,
                          r"\bottomrule", r"\end{tabular}"])  # fmt: skip
    if form == "markdown":
        rows = [[cell.replace("\\", "\\\\").replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    cells = [[cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in
              enumerate(zip(row, widths, strict=True))] for row in rows]  # fmt: skip
    if form == "markdown":
        rule = [f"{'-' * (width - 1)}{':' if i else '-'}" for i, width in enumerate(max(3, each) for each in widths)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))
    blocks: list[str] = []
    start = 1
    while start < len(widths) or not blocks:
        end, width = start + 1, widths[0] + sum(2 + each for each in widths[start : start + 1])
        while end < len(widths) and (width := width + 2 + widths[end]) <= WIDTH:
            end += 1
        blocks.append("\n".join("  ".join([line[0], *line[start:end]]).rstrip() for line in cells))
        start = end
    return "\n\n".join(blocks)


def _latex(cell: str) -> str:
    """The text of a cell in LaTeX."""
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
    return re.sub(r"^-(?=\d)", "$-$", "".join(signs.get(letter, letter) for letter in cell))
