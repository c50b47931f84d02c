"""One sentence, a ValueError, for an argument that is out of its range: what every constructor here begins with."""

import math
from collections.abc import Sequence
from typing import Any


def whole(least: int = 1, **values: Any) -> None:
    """Whole numbers, at least `least`."""
    for name, value in values.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{name}={value}: a whole number, at least {least}, is needed")


def number(**values: Any) -> None:
    """Finite numbers, at least zero."""
    for name, value in values.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: a number, at least zero, is needed")


def positive(**values: Any) -> None:
    """Finite numbers above zero."""
    for name, value in values.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: a number above zero is needed")


def share(**values: Any) -> None:
    """Numbers from zero to one."""
    for name, value in values.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: a number from zero to one is needed")


def one_of(options: Sequence[Any], **values: Any) -> None:
    """Names out of a few, or true and false."""
    for name, value in values.items():
        if value not in options:
            raise ValueError(f"{name}={value}: choose one of {', '.join(map(str, options))}")


def widths(least: int = 0, **values: Any) -> None:
    """Lists of whole numbers above zero, with at least `least` entries."""
    for name, value in values.items():
        numbers = not isinstance(value, int | str) and all(type(width) is int and width > 0 for width in value)
        if not numbers or len(value) < least:
            raise ValueError(f"{name}={value}: a list of whole numbers above zero is needed, such as [400]")
