"""The tutorial's notebooks, put together from one source.

`source/cells.py` has the code of both languages, and `source/en.md` and `source/zh-CN.md` have the texts and the order.
To change a notebook, change its source, and let `python tests/test_notebooks.py` build and run both.
"""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
TEXTS = {"from_pca_to_vae": "en.md", "from_pca_to_vae.zh-CN": "zh-CN.md"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HAN = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef\u201c\u201d]"  # Chinese characters and punctuation


def blocks(text: str, mark: str) -> dict[str, str]:
    """What stands below each line that matches a mark with one group, by that group."""
    parts = re.split(mark, text, flags=re.M)
    return {name: block.strip() for name, block in zip(parts[1::2], parts[2::2], strict=True)}


def build(name: str) -> NotebookNode:
    """A notebook without outputs. Its name is that of its file, without the ending."""
    source = (FOLDER / "source" / TEXTS[name]).read_text(encoding="utf-8")
    code = blocks((FOLDER / "source" / "cells.py").read_text(encoding="utf-8"), r"^# %% (.*)$")
    if name.endswith("zh-CN"):
        code["setup"] = code["setup"].replace('speak("en")', 'speak("zh")')
        source = re.sub(f"(?<={HAN})\n *(?={HAN})", "", source)  # a line break would be shown as a space
    cells = []
    for mark, text in blocks(source, "^<!-- (.*) -->$").items():
        kind, identity = mark.split()
        cells.append(
            new_code_cell(code[identity], id=identity) if kind == "code" else new_markdown_cell(text, id=identity)
        )
    notebook = new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(notebook)
    return notebook
