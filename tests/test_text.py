"""Hidden characters are escaped, and text in Markdown is inert."""

import re

import pytest

from vaelab.text import HIDDEN, code, plain


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
