"""The README: what it promises, its length, and what it repeats from other files."""

import re
import tomllib

import documents
from documents import ROOT

README = (ROOT / "README.md").read_text()


def test_the_promised_commands_stand_there_word_for_word() -> None:
    promised = (
        "python train.py",
        "python train.py trainer.accelerator=gpu model.latent_dim=2",
        "python train.py -m model.latent_dim=2,10",
        "python train.py experiment=tutorial",
        "tensorboard --logdir logs",
    )
    assert set(promised) <= set(documents.commands(README))
    first_screen = "\n".join(README.splitlines()[:30])
    assert "pip install -e . && python train.py" in first_screen
    assert "pip install -e '.[dev]' && pytest" in first_screen


def test_the_chinese_readme_is_in_step() -> None:
    """The same commands, code, headings, links and tables."""
    chinese = (ROOT / "README.zh-CN.md").read_text()
    assert documents.commands(chinese) == documents.commands(README)
    for language in ("python", "yaml"):
        assert documents.blocks(chinese, language) == documents.blocks(README, language)
    for pattern in (r"^(#+) ", r"^\|( `[^`]+`)"):  # levels of headings; first cells
        assert re.findall(pattern, chinese, re.M) == re.findall(pattern, README, re.M)
    tables = [[line.count(" | ") for line in text.splitlines() if line.startswith("|")] for text in (chinese, README)]
    assert tables[0] == tables[1]
    links = [  # one page is translated
        {
            link.replace("add.zh-CN.md", "add.md")
            for link in re.findall(r"\]\(([^)]+)\)", text)
            if not link.startswith("README")
        }
        for text in (chinese, README)
    ]
    assert links[0] == links[1]


def test_the_chinese_rows_have_the_figures_and_verdicts_of_the_english_ones() -> None:
    texts = ((ROOT / "README.zh-CN.md").read_text(), README)
    blocks = [re.search(r"<!-- rows -->\n(.*?)<!-- /rows -->", text, re.S)[1] for text in texts]  # type: ignore[index]
    tables = [[line.strip("| ").split(" | ") for line in block.splitlines()[2:]] for block in blocks]
    verdicts = {"已复现": "reproduced", "文献中没有可对照的数值": "nothing published to compare with"}
    for chinese, english in zip(*tables, strict=True):
        name, what, *figures, verdict = chinese
        assert [name, *figures] == [english[0], *english[2:-1]]
        assert verdicts.get(verdict, verdict.replace("相差", "differs by")) == english[-1]
        number = r"\d+(?:\.\d+)?"
        assert sorted(re.findall(number, what)) == sorted(re.findall(number, english[1]))


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_its_rows_are_those_of_the_reproductions_that_were_run() -> None:
    """If this fails, copy the rows from docs/reproductions/README.md, without the last column."""
    whole = (ROOT / "docs" / "reproductions" / "README.md").read_text()
    cells = [line.split(" | ") for line in whole.splitlines() if line.startswith("| ") and "| not run |" not in line]
    wanted = [" | ".join(row[:-1]) + " |" for row in cells]
    block = re.search(r"<!-- rows -->\n(.*?)<!-- /rows -->", README, re.S)[1]  # type: ignore[index]
    assert [line for line in block.splitlines() if line.startswith("| ")] == wanted


def test_its_examples_are_those_of_the_documentation() -> None:
    """So the tests of the documentation run them, too."""
    pages = [documents.PAGES[f"docs/{name}.md"] for name in ("concepts/parts", "how-to/add", "how-to/loggers")]
    for language, count in (("python", 4), ("yaml", 2)):
        own = documents.blocks(README, language)
        assert len(own) == count
        assert set(own) <= {block for page in pages for block in documents.blocks(page, language)}


def test_number_of_methods() -> None:
    count = len(list((ROOT / "configs" / "experiment").glob("*.yaml")))
    assert f"{count} methods of the literature" in " ".join(README.split())


def test_lock_file_has_versions_and_hashes_but_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = re.findall(r"^([a-z0-9._-]+)==(\S+)", lock, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted += [*project["optional-dependencies"]["export"], *project["optional-dependencies"]["docs"]]
    assert {re.match(r"[\w.-]+", each)[0] for each in wanted} - {"vaelab"} <= {name for name, _ in pinned}
    assert lock.count("--hash=sha256:") >= len(pinned)
