"""Each check accepts valid values, and refuses others with the name, the value and what is needed."""

import math

import pytest

from vaelab import checks
from vaelab.errors import UserError

CASES = {
    checks.whole: ([1, 7], [0, -1, 1.0, True, "1", None, math.inf]),
    checks.number: ([0, 0.5, 3], [-1, -1e-9, math.inf, math.nan, True, "1", None]),
    checks.finite: ([-7.5, 0, 3], [math.inf, -math.inf, math.nan, True, "1", None]),
    checks.positive: ([1e-9, 3], [0, 0.0, -1, math.inf, math.nan, True, "1", None]),
    checks.share: ([0, 1, 0.25], [-0.1, 1.1, math.nan, True, "0.5", None]),
    checks.widths: ([[], [400], (3, 4)], [[0], [-1], [1.5], [True], 400, "400", 0.5, None, {1: 2}]),
}


@pytest.mark.parametrize(("check", "value"), [(check, value) for check, (good, _) in CASES.items() for value in good])
def test_values_in_range(check: object, value: object) -> None:
    check(setting=value)


@pytest.mark.parametrize(("check", "value"), [(check, value) for check, (_, bad) in CASES.items() for value in bad])
def test_values_out_of_range(check: object, value: object) -> None:
    with pytest.raises(UserError) as error:
        check(setting=value)
    assert str(error.value).startswith(f"setting={value}: ")


def test_least_values_and_options() -> None:
    checks.whole(0, setting=0)
    checks.one_of(("a", True), setting="a")
    checks.one_of(("a", True), setting=True)
    for other in (1, 1.0, ["a"], {}):
        with pytest.raises(UserError, match="choose one of a, True"):
            checks.one_of(("a", True), setting=other)
    with pytest.raises(UserError, match=r"setting=1: .*, at least 2"):
        checks.whole(2, setting=1)
    with pytest.raises(UserError, match="setting=c: choose one of a, b"):
        checks.one_of(("a", "b"), setting="c")
    with pytest.raises(UserError, match="setting="):
        checks.widths(1, setting=[])


def test_numbers_that_could_overflow() -> None:
    checks.whole(0, checks.SEEDS, seed=2**32 - 1)
    with pytest.raises(ValueError, match=r"seed=4294967296: a whole number of at most 4,294,967,295"):
        checks.whole(0, checks.SEEDS, seed=2**32)
    with pytest.raises(ValueError, match=r"size=10{30}: a whole number of at most 1,000,000,000"):
        checks.whole(size=10**30)
