"""Values of settings are compared with the annotations of the classes that take them."""

import collections.abc
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, Optional

import pytest
import torch
from conftest import Compose

from vaelab.data import MNISTDataModule
from vaelab.errors import UserError
from vaelab.runs.arguments import accepts, arguments, check_arguments, needed

NAN = float("nan")
PART = {"_target_": "some.Class"}


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3, 10**30], [1.5, True, "1", None, [1], {}]),
        (float, [0, 1.5, float("inf")], [True, "1", None, NAN, [1.0]]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (int | None, [1, None], [1.5, "null"]),
        (Optional[float], [1, None, 2.5], ["x", NAN]),  # noqa: UP045
        (Literal["a", 3], ["a", 3], ["b", 4]),
        (Sequence[int], [[], [1, 2]], [1, "12", [1, "x"], [NAN]]),
        (tuple[float, float], [[0.9, 0.99]], [[0.9], [0.9, 0.99, 1.0], 0.9]),
        (tuple[int, ...], [[], [1], [1, 2, 3]], [[1.5]]),
        (collections.abc.Mapping[str, str], [{}, {"a": "b"}], [[], "a", 3]),
        (torch.nn.Module, [PART], [3, "x", None, [1]]),
        (Callable[[int], int], [PART], [3, "x", None]),
        (float | Callable[..., Any], [1, PART], ["x", [1]]),
        (Any, [1, "x", None, [1], {}], [NAN]),
    ],
    ids=str,
)
def test_values_that_fit_an_annotation(hint: Any, good: list, bad: list) -> None:
    assert all(accepts(hint, value) for value in good), good
    assert not any(accepts(hint, value) for value in bad), bad


def test_a_class_outside_may_take_what_its_annotation_does_not_say() -> None:
    assert accepts(torch.nn.Module, "a name that the class looks up", strict=False)


def test_an_annotation_in_words() -> None:
    assert needed(int | None) == "a whole number or null"
    assert needed(tuple[float, float]) == "a list of 2 entries"
    assert needed(Sequence[int]) == "a list, each entry a whole number,"
    assert needed(list) == "a list"
    assert needed(torch.nn.Module) == "a group of settings with a _target_"


def test_an_interpolation_is_checked_by_its_value(config: Compose) -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=vae: a whole number is needed"):
        check_arguments(config("data.batch_size=${name}"))


def test_a_class_takes_the_arguments_of_its_base_class_through_settings() -> None:
    class Own(MNISTDataModule):
        def __init__(self, path: str, **settings: Any) -> None:
            super().__init__(**settings)

    class Open:
        def __init__(self, **settings: Any) -> None:
            pass

    class Nothing:
        pass

    taken, more = arguments(Own)
    assert not more
    assert {"path": str, "batch_size": int}.items() <= taken.items()
    assert "settings" not in taken
    assert arguments(Open) == ({}, True)
    assert arguments(Nothing) == ({}, False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "++model.likelihood._partial_=true",
            "model.likelihood._partial_=true: vaelab.models.VAE takes the part itself",
        ),
        ("++objective._partial_=true", "objective._partial_=true: this group is built before the run"),
        ("++data._partial_=true", "data._partial_=true: this group is built before the run"),
        (
            "++model.prior._partial_=false",
            "needs latent_dim, which vaelab.models.VAE gives it: set model.prior._partial_",
        ),
        ("++model.posterior._partial_=false", "needs in_features and latent_dim, which vaelab.models.VAE gives it"),
    ],
)
def test_a_part_is_partial_exactly_where_its_owner_builds_it(config: Compose, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_arguments(config(setting))
