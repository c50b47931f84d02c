"""The command line: Hydra's, with `resume=<run folder>`, and one sentence for every mistake that a user can mend."""

import contextlib
import difflib
import errno
import functools
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaelab import runs

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
Task = Callable[[DictConfig, Path], Any]  # config, the run's folder


@functools.cache  # one name for all that a process starts
def run_name(name: str) -> str:
    """A folder name that no other run gets: the time, the name, eight random hexadecimal digits."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{folder_name(name)}_{secrets.token_hex(4)}"


def folder_name(text: str) -> str:
    """Only letters, digits, dot, underscore and hyphen: anything else would have to be quoted in run=<folder>."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:100]


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def main(task: Task, config_dir: Path, config_name: str) -> None:
    """Compose the config, or take that of the run to resume, and hand it to `task`; a failure exits with a sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, instead of printing a traceback of its own
    with _sentences():
        resumed = [argument for argument in sys.argv[1:] if argument.startswith("resume=")]
        if resumed:
            _resume(task, resumed[-1].removeprefix("resume="))
        else:
            _launch(task, config_dir, config_name)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Exit with one sentence for an error that a user can mend; HYDRA_FULL_ERROR=1 keeps the traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("stopped before there was anything to save")
    except Exception as error:
        message = sentence(error)
        if TRACEBACKS or message is None:
            raise
        sys.exit(f"error: {message}")


@contextlib.contextmanager
def _said_at_once() -> Iterator[None]:
    """A sweep goes on after a run that failed, and Hydra names it at the end."""
    try:
        yield
    except Exception as error:
        print(f"error: {sentence(error) or repr(error)}", file=sys.stderr)
        raise


def _launch(task: Task, config_dir: Path, config_name: str) -> None:
    started = False

    @hydra.main(version_base="1.3", config_path=str(config_dir.absolute()), config_name=config_name)
    def job(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        folder = Path(HydraConfig.get().runtime.output_dir).absolute()
        try:
            with _sentences() if HydraConfig.get().mode == RunMode.RUN else _said_at_once():
                return task(cfg, folder)
        finally:
            with contextlib.suppress(OSError):  # leave no empty folder behind
                folder.rmdir()

    try:
        job()
    except OSError as error:
        if started or isinstance(error, HydraException):
            raise
        raise ValueError(
            f"the run's folder {error.filename} cannot be made: {error.strerror}; "
            "hydra.run.dir=FOLDER chooses another place"
        ) from error


def _resume(task: Task, folder: str) -> None:
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("resume=")]
    if not folder:
        raise ValueError("resume= needs a run's folder, such as resume=logs/RUN")
    groups = [override for override in overrides if "/" in override.split("=")[0]]
    if groups:
        raise ValueError(f"{groups[0]} chooses another part, and a resumed run keeps its parts: start a new run")
    flags = [override for override in overrides if override.startswith("-")]
    if flags:
        raise ValueError(f"resume={folder} goes on with one run and takes overrides only, not {flags[0]}")
    cfg = runs.saved_config(Path(folder), overrides)
    OmegaConf.update(cfg, "resume", folder)
    task(cfg, Path(folder).absolute())


def sentence(error: BaseException) -> str | None:
    """What went wrong and how to mend it, in one sentence; None for an error that is a fault of the program."""
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        return _unknown_key(cause) or _one_line(f"{error}: {cause}")
    if isinstance(error, HydraException) and cause is not None and "Error in call to target" in str(error):
        key = re.search(r"full_key: (\S+)", str(error))
        return _one_line(f"{key[1]}: {cause}" if key else str(cause))
    if isinstance(error, OmegaConfBaseException):
        return _unknown_key(error) or _one_line(str(error))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = error.options or []
        close = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{group}={option}: {hint}" + (f"choose one of {', '.join(options)}" if options else "no such group")
    if isinstance(error, HydraException):
        return _one_line(str(error))
    if isinstance(error, OSError) and error.strerror:
        mend = "; make room, then go on with resume=<the run's folder>" if error.errno == errno.ENOSPC else ""
        return f"{error.filename or 'a file'} cannot be read or written: {error.strerror}{mend}"
    mendable = OSError | ValueError | ArithmeticError | NotImplementedError
    if isinstance(error, mendable) or type(error).__name__ == "MisconfigurationException":
        return _one_line(str(error))
    return None


def _unknown_key(error: OmegaConfBaseException) -> str | None:
    if not error.key or not isinstance(error.parent_node, DictConfig) or "not in struct" not in str(error):
        return None
    known = [str(key) for key in error.parent_node]
    parent = str(error.full_key).removesuffix(str(error.key))
    deeper = [key for key in _keys(error.parent_node) if key.endswith(f".{error.key}")]
    if deeper:
        return f"there is no setting {error.full_key}; did you mean {' or '.join(parent + key for key in deeper[:3])}?"
    close = difflib.get_close_matches(str(error.key), known, n=1, cutoff=0.5)
    hint = f"did you mean {parent}{close[0]}?" if close else f"it can be one of {', '.join(parent + k for k in known)}"
    return f"there is no setting {error.full_key}; {hint}"


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """All dotted keys below a node."""
    for key in map(str, node):
        yield prefix + key
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _keys(child, f"{prefix}{key}.")


def _one_line(text: str) -> str:
    return " ".join(text.split())
