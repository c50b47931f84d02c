"""Errors that a user can mend. Any other exception is a bug and keeps its traceback."""

import traceback

from vaelab.text import plain


class UserError(ValueError):
    """A mistake in settings, data or files. Its message is one sentence: what is wrong, and how to mend it.

    The sentence can name what a file of unknown origin holds, so that hidden characters in it are escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(plain(" ".join(sentence.split())))


class PartsError(UserError, TypeError):
    """Parts that do not go together, such as a posterior and a prior on different spaces."""


class NotOfferedError(UserError, NotImplementedError):
    """Something that a model or a distribution does not offer, such as the density of a point mass."""


def refused_by_callback(error: BaseException) -> bool:
    """Whether a callback of Lightning raised an exception, such as EarlyStopping for a metric that nothing logs."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__")).startswith("lightning.pytorch.callbacks.") if frames else False


def refused_by_library(error: BaseException) -> bool:
    """Whether an exception passed only through library code, from where it was raised to where it was caught.

    If so, a constructor of the library refused the user's settings. If not, the exception is a bug.
    """
    packages = ("torch", "lightning", "hydra", "omegaconf", "importlib", "wandb", "mlflow", "sqlalchemy")
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    return all(f"{name}.".startswith(tuple(f"{package}." for package in packages)) for name in modules)
