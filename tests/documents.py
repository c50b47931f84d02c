"""The README and the pages of docs/, with the commands and the code in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
MADE = ("docs/generated/", "docs/_build/", "docs/reproductions/")  # these are made from the code or from runs
PAGES = {
    name: path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if not (name := path.relative_to(ROOT).as_posix()).startswith(MADE)
}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def commands(text: str) -> list[str]:
    """The commands in the bash blocks of a page, without their comments. Each part of `a && b` is a command."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    whole = [line if line.startswith("#") else re.split(r"\s#", line)[0].strip() for line in lines]
    return [part for line in whole for part in line.split(" && ") if part]


def arguments(start: str) -> list[list[str]]:
    """The words after `start` of each different command that begins with it, over all pages."""
    found = dict.fromkeys(line for text in PAGES.values() for line in commands(text))
    return [shlex.split(line.removeprefix(start)) for line in found if re.match(rf"{re.escape(start)}( |$)", line)]


def sections(text: str) -> list[str]:
    """The parts of a page, from one heading to the next."""
    return re.split(r"^(?=## )", text, flags=re.M)
