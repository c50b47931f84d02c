"""Range checks of constructor arguments. Each raises UserError with one sentence that names the argument."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from vaelab.errors import UserError

LARGEST = 10**9  # no other setting has a use above it, and larger numbers can overflow
SEEDS = 2**32 - 1  # the largest seed


def whole(least: int = 1, most: int = LARGEST, **values: Any) -> None:
    """Check that all values are whole numbers, at least `least` and at most `most`."""
    _check(values, lambda v: type(v) is int and v >= least, f"a whole number, at least {least}, is needed")
    _check(values, lambda v: v <= most, f"a whole number of at most {most:,} is needed")


def finite(**values: Any) -> None:
    """Raise UserError unless each value is a finite number."""
    _check(values, lambda v: type(v) in (int, float) and math.isfinite(v), "a finite number is needed")


def number(**values: Any) -> None:
    """Check that all values are finite numbers, at least zero."""
    _check(values, lambda v: type(v) in (int, float) and 0 <= v < math.inf, "a number, at least zero, is needed")


def positive(**values: Any) -> None:
    """Check that all values are finite numbers above zero."""
    _check(values, lambda v: type(v) in (int, float) and 0 < v < math.inf, "a number above zero is needed")


def share(**values: Any) -> None:
    """Check that all values are numbers from zero to one."""
    _check(values, lambda v: type(v) in (int, float) and 0 <= v <= 1, "a number from zero to one is needed")


def one_of(options: Sequence[Any], **values: Any) -> None:
    """Check that all values are among `options`. The number 1 is not True."""
    _check(
        values,
        lambda v: any(type(v) is type(option) and v == option for option in options),
        f"choose one of {', '.join(map(str, options))}",
    )


def widths(least: int = 0, **values: Any) -> None:
    """Check that all values are lists of whole numbers above zero, with at least `least` entries."""

    def fits(v: Any) -> bool:
        return (
            isinstance(v, Sequence)
            and not isinstance(v, str)
            and len(v) >= least
            and all(type(n) is int and n > 0 for n in v)
        )

    _check(values, fits, "a list of whole numbers above zero is needed, such as [400]")


def _check(values: dict[str, Any], fits: Callable[[Any], bool], needed: str) -> None:
    for name, value in values.items():
        if not fits(value):
            raise UserError(f"{name}={value}: {needed}")
