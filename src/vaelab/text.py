"""Text from files and folders of unknown origin, made safe to show in a terminal, a log or Markdown."""

import re

# Control characters, which move a terminal's cursor or begin its commands, and characters that are invisible, begin a
# line or change the direction of text
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def plain(text: object) -> str:
    r"""The text in one line, with each hidden character as its escape sequence, such as \x1b or \n."""
    return HIDDEN.sub(lambda match: repr(match[0])[1:-1], str(text))


def code(text: object) -> str:
    """The text as code in Markdown, also in a table. Nothing in it is a link, HTML or another element."""
    shown = plain(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown else ""
    return f"{fence}{space}{shown}{space}{fence}"
