"""Hidden characters are escaped, and text in Markdown is inert."""

import re

import pytest

from vaelab.text import HIDDEN, code, cut, plain, rounded, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\r\nb\tc\x00\x7f\x9b", r"a\r\nb\tc\x00\x7f\x9b"),
        ("\u202egnp.exe\u2066\u2069\u200b\ufeff\u2028", r"\u202egnp.exe\u2066\u2069\u200b\ufeff\u2028"),
        ("\ud800", r"\ud800"),
        ("é 日本 ± –\xa0👍 \\", "é 日本 ± –\xa0👍 \\"),
        (3, "3"),
    ],
)
def test_hidden_characters_become_visible(text: object, shown: str) -> None:
    assert plain(text) == shown
    assert not HIDDEN.search(plain(text))
    assert plain(plain(text)) == shown


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(0.01234, 2, "0.012"), (1.26, 2, "1.3"), (99.4, 2, "99"), (99.6, 2, "100"), (120.4, 2, "120"),
     (-1500.0, 2, "-1500"), (999.4, 3, "999"), (1234.0, 3, "1234"), (0.0, 2, "0")],
)  # fmt: skip
def test_a_rounded_number_has_no_power_of_ten(value: float, digits: int, shown: str) -> None:
    assert rounded(value, digits) == shown


@pytest.mark.parametrize(
    "text", ["MNIST", "`", "a``b`", "``` **x**", "<script>", "a|b", "", "\n# x", "[a](http://b.c)"]
)
def test_code_in_markdown_has_a_longer_fence_than_its_content_and_no_cell_of_a_table(text: str) -> None:
    shown = code(text)
    match = re.fullmatch(r"(`+)( ?)(.*?)\2\1", shown)
    assert match
    assert match[3].replace(r"\|", "|") == plain(text)
    assert match[1] not in match[3]
    assert not re.search(r"(?<!\\)\|", shown)
    assert "\n" not in shown


ROWS = [["run", "a|b", "c"], ["x_1", "-1.5 ± 0.2", "–"]]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "run         a|b  c\nx_1  -1.5 ± 0.2  –"),
        ("markdown", "| run |       a\\|b | c |\n| --- | ---------: | --: |\n| x_1 | -1.5 ± 0.2 | – |"),
        ("csv", "run,a|b,c\nx_1,-1.5 ± 0.2,–"),
        (
            "latex",
            "\\begin{tabular}{lrr}\n\\toprule\nrun & a|b & c \\\\\n\\midrule\n"
            "x\\_1 & $-$1.5 $\\pm$ 0.2 & -- \\\\\n\\bottomrule\n\\end{tabular}",
        ),
    ],
)
def test_tables(form: str, expected: str) -> None:
    assert table(ROWS, form) == expected


def test_a_wide_table_becomes_several_with_the_same_first_column() -> None:
    lines = table([["run", *["x" * 50] * 5], ["a", *["1"] * 5]]).splitlines()
    assert [len(line) for line in lines] == [107, 107, 0, 107, 107, 0, 55, 55]
    assert [line[:4] for line in lines] == ["run ", "a   ", "", "run ", "a   ", "", "run ", "a   "]
    assert table([["run"], ["a"]]) == "run\na"


def test_cut() -> None:
    assert [cut("abcde", 5), cut("abcdef", 5)] == ["abcde", "ab..."]
