"""Errors that a library raises for bad settings are distinguished from bugs in a user's code."""

import pytest
import torch

from vaelab.errors import NotOfferedError, PartsError, UserError, refused_by_library


def caught(function: object, *arguments: object) -> Exception:
    try:
        function(*arguments)
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def own_code() -> None:
    raise ValueError("a bug")


def through_torch() -> None:
    torch.zeros(3).apply_(lambda _: own_code())


def test_a_constructor_of_torch_refuses_its_settings() -> None:
    assert refused_by_library(caught(torch.optim.SGD, [torch.zeros(1)], -1.0))
    assert refused_by_library(caught(torch.optim.Adam, []))


@pytest.mark.parametrize("function", [own_code, through_torch, lambda: torch.nn.Linear(2, 3)(own_code())])
def test_a_bug_is_no_refusal(function: object) -> None:
    assert not refused_by_library(caught(function))


def test_a_sentence_has_one_line_and_no_hidden_characters() -> None:
    """It can name what a stranger's file holds, and Python prints it."""
    for error in (UserError, PartsError, NotOfferedError):
        assert str(error("a\n  b\x1b]0;c\x07 \u202e")) == r"a b\x1b]0;c\x07 \u202e"


def test_errors_are_what_python_takes_them_for() -> None:
    """Our errors are subclasses of Python's errors, so code that catches those still works."""
    assert issubclass(UserError, ValueError)
    for error, python_s in ((PartsError, TypeError), (NotOfferedError, NotImplementedError)):
        assert issubclass(error, UserError)
        assert issubclass(error, python_s)
