"""Mistakes that a user can mend. Any other exception is a bug, and keeps its traceback."""

import traceback


class UserError(ValueError):
    """A mistake in settings, data or files. Its text is one sentence that names the cause and the mend."""


class PartsError(UserError, TypeError):
    """Parts do not go together, such as a posterior and a prior that lie on different spaces."""


class NotOfferedError(UserError, NotImplementedError):
    """A model or a distribution does not offer what is asked of it, such as the density of a point."""


def refused_by_library(error: BaseException) -> bool:
    """Whether an exception passed through a library alone, from where it was raised to where it was caught.

    Then a constructor of the library has refused the settings that it was given. Otherwise the exception is a bug.
    """
    packages = ("torch", "lightning", "hydra", "omegaconf", "importlib")
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    return all(f"{name}.".startswith(tuple(f"{package}." for package in packages)) for name in modules)
