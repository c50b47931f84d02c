"""Hydra's command line, with `resume=FOLDER` for runs and sweeps, and one sentence for each mistake of the user."""

import contextlib
import difflib
import errno
import io
import os
import re
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vaelab import runs
from vaelab.errors import UserError, refused_by_callback, refused_by_library
from vaelab.runs import sweeps
from vaelab.text import folder_name, plain

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
Task = Callable[[DictConfig, Path], Any]  # config, the run's folder


def run_name(name: Any) -> str:
    """A unique folder name: the time, the name and eight random hexadecimal digits.

    If torchrun or srun starts several processes, only the first one gets such a folder. The others use the folder logs.
    """
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) > 0:
        return "."
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{folder_name(name)}_{secrets.token_hex(4)}"


OmegaConf.register_new_resolver("threads_of_each", sweeps.threads_of_each, replace=True)
# The cache is a part of the config, and a launcher hands it to the processes of a sweep: all of them have one folder
OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def main(task: Task, config_dir: Path, config_name: str, resumable: bool = False) -> None:
    """Compose the config, or read that of the run to resume, and call `task`. An error exits with one sentence."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="substitute")
    with _sentences():
        resumed = [argument.removeprefix("resume=") for argument in sys.argv[1:] if argument.startswith("resume=")]
        if resumed and resumable:
            if not {"-m", "--multirun"} & {*sys.argv}:
                return _resume(task, resumed[-1])
            place = sweeps.override_of(resumed[-1])
            sys.argv = [place if argument.startswith("resume=") else argument for argument in sys.argv]
        if resumable and {"-m", "--multirun"} & {*sys.argv}:
            sweeps.check_settings(sys.argv[1:])
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # otherwise the processes of joblib would train on
                signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
        _launch(task, config_dir, config_name, writes=resumable)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Exit with one sentence for an error that a user can mend. HYDRA_FULL_ERROR=1 keeps the traceback."""
    try:
        yield
    except BrokenPipeError:  # the program that reads the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("stopped outside of training; what was saved before is still there")
    except Exception as error:
        message = sentence(error)
        if message is not None and not TRACEBACKS:
            sys.exit(f"error: {message}")
        bug = _bug(error)
        if bug is not error and not TRACEBACKS:
            raise bug from None
        raise


def _bug(error: Exception) -> BaseException:
    """The exception of a user's part, without those that Hydra wraps around it."""
    if not isinstance(error, InstantiationException) or not error.__cause__:
        return error
    located = str(error).startswith("Error locating target")
    return (located and error.__cause__.__cause__) or error.__cause__


def _launch(task: Task, config_dir: Path, config_name: str, writes: bool) -> None:
    started, tracebacks = False, TRACEBACKS  # which the processes of a sweep get with the job

    @hydra.main(version_base="1.3", config_path=str(config_dir.absolute()), config_name=config_name)
    def job(cfg: DictConfig) -> Any:
        nonlocal started
        started = True
        folder = Path(HydraConfig.get().runtime.output_dir).absolute()
        moved = writes and HydraConfig.get().job.chdir
        if moved and isinstance(cfg.data.get("root"), str):  # a relative path keeps its meaning
            cfg.data.root = to_absolute_path(str(Path(cfg.data.root).expanduser()))
        try:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return (_run_of_sweep if writes else _reported)(task, cfg, folder, tracebacks)
            with _sentences(), runs.held(folder, new=True) if writes else contextlib.nullcontext():
                return task(cfg, folder)
        finally:
            if folder != Path.cwd():
                with contextlib.suppress(OSError):  # leave no empty folder behind
                    folder.rmdir()

    try:
        job()
        if writes and HydraConfig.initialized():  # see sweeps.Announcement
            sweeps.finish_sweep(sweeps.sweep_folder())
    except (KeyboardInterrupt, SystemExit):
        sweep = writes and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        if sweep and (command := sweeps.continued("this continues the sweep: ")):
            print(command, flush=True)
        raise
    except (ValueError, TypeError) as error:
        if started or _in_a_sweep(error) or isinstance(error, UserError | HydraException | OmegaConfBaseException):
            raise
        raise UserError(f"Hydra cannot read the command line: {error}") from error
    except OSError as error:
        if started or _in_a_sweep(error) or isinstance(error, HydraException | BrokenPipeError):
            raise
        why = f"the run's folder {error.filename} cannot be created: {error.strerror}"
        raise UserError(f"{why}; hydra.run.dir=FOLDER chooses another folder") from error


def _in_a_sweep(error: BaseException) -> bool:
    """Whether an error comes from runs that train together, which do not call the task."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "vaelab.extensions.sweep" for frame, _ in frames)


def _reported(task: Task, cfg: DictConfig, folder: Path, tracebacks: bool) -> Any:
    """Call the task of a sweep that trains nothing. Hydra goes on after an error, and names only the first one."""
    try:
        return task(cfg, folder)
    except Exception as error:
        _report(error, tracebacks)
        raise


def _report(error: Exception, tracebacks: bool) -> str:
    """Print and return the sentence of an error. A bug also gets its traceback."""
    message = sentence(error)
    if message is None or tracebacks:
        traceback.print_exception(_bug(error))
    message = message or plain(repr(_bug(error)))
    print(f"error: {message}", file=sys.stderr, flush=True)
    return message


def _run_of_sweep(task: Task, cfg: DictConfig, folder: Path, tracebacks: bool) -> float | None:
    """Train a run of a sweep. Return its monitored metric, or None after an error: the sweep goes on with other runs.

    A run that the sweep's folder has already is skipped if it is finished, resumed if it was stopped, and repeated if
    it failed or has no checkpoint.
    """
    sweep, overrides, holding = sweeps.sweep_folder(), list(HydraConfig.get().overrides.task), False
    try:
        earlier = sweeps.find(sweep, overrides)
        if earlier and earlier.finished:
            print(f"skipped  {runs.shown(earlier.folder)}: it is finished", flush=True)
            return earlier.value
        resumed = earlier and earlier.resumable
        if earlier and not resumed:
            sweeps.put_aside(earlier, sweep)
        folder = earlier.folder if earlier and resumed else sweeps.free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with runs.held(folder, new=not resumed):
            holding = True
            if resumed:  # the user's own command names the modules to trust
                moved = [override for override in overrides if override.startswith("data.root=")]
                cfg = runs.saved_config(folder, moved, runs.foreign(cfg, resuming=True))
                OmegaConf.update(cfg, "resume", str(folder))
            return task(cfg, folder)
    except BrokenPipeError:
        raise
    except Exception as error:
        message = _report(error, tracebacks)
        if holding:
            sweeps.record_failure(folder, overrides, message)
        return None


def _resume(task: Task, folder: str) -> None:
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith(("resume=", "trust="))]
    trusted = [argument.removeprefix("trust=") for argument in sys.argv[1:] if argument.startswith("trust=")]
    trust = [module.strip(" '\"") for module in trusted[-1].strip("[]").split(",")] if trusted else []
    if not folder:
        raise UserError("resume= needs a run's folder, such as resume=logs/RUN")
    groups = [override for override in overrides if "/" in override.split("=")[0]]
    if groups:
        raise UserError(f"{groups[0]} chooses another part, but a resumed run keeps its parts: start a new run")
    flags = [override for override in overrides if override.startswith("-")]
    if flags:
        raise UserError(f"resume={folder} continues one run and takes only overrides, not {flags[0]}")
    path = Path(folder).expanduser()
    cfg = runs.saved_config(path, overrides, trust)
    OmegaConf.update(cfg, "resume", folder)
    with runs.held(path.absolute(), new=False):
        task(cfg, path.absolute())


def sentence(error: BaseException) -> str | None:
    """One sentence that says what is wrong and how to mend it, or None for a bug of the program."""
    text = _sentence(error)
    return text and plain(" ".join(text.split()))


def _sentence(error: BaseException) -> str | None:
    text, cause = str(error), error.__cause__
    unknown = _unknown_key(error) or _unknown_key(cause)
    if unknown:
        return unknown
    if isinstance(error, OverrideParseException):
        return f"{error.override}: Hydra cannot read this; some values need a second pair of quotes: 'name=\"a=b\"'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = error.options or []  # Hydra has none for a wrong name in a list, such as callbacks=[ema,wrong]
        close = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{group}={option}: {hint}" + (
            f"choose one of {', '.join(options)}" if options else "there is no such option: --help lists them"
        )
    if missing := re.search(r"Could not override '(\S+)/(\S+)'", text):
        return f"{missing[1]}/{missing[2]}: the chosen {missing[1]} has no choice of {missing[2]}"
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        text = f"{error}: {cause}"
    elif isinstance(error, InstantiationException) and cause is not None:
        key = re.search(r"full_key: (\S+)", text)
        if located := re.match(r"Error locating target '(\S+)'", text):
            source = cause.__cause__ or cause
            if not refused_by_library(source):  # a bug in the user's module
                return None
            why = str(source).strip().splitlines()[-1]
            return f"{key[1] if key else 'a _target_'}: {located[1]} cannot be imported: {why}"
        if not isinstance(cause, UserError) and not refused_by_library(cause):
            return None
        text = f"{key[1]}: {cause}" if key else str(cause)
    elif isinstance(error, OSError) and error.strerror:
        mend = "; free some space first" if error.errno == errno.ENOSPC else ""
        path = Path(os.fsdecode(error.filename)) if error.filename else "a file of the run's folder"
        if isinstance(path, Path) and isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            mend = ", and neither does its folder: was the run's folder moved or deleted?"
        text = f"{path} cannot be read or written: {error.strerror}{mend}"
    elif isinstance(error, MemoryError) or re.search("DefaultCPUAllocator|CUDA out of memory", text):
        return f"the memory is not enough; use a smaller model, smaller batches or fewer samples ({text[:300]})"
    elif type(error).__name__ in ("TerminatedWorkerError", "UncompletedJobError", "WorkerCrashedError"):
        return (
            "a process of the sweep was killed, perhaps because the memory is not enough; resume= continues the sweep"
        )
    mendable = UserError | HydraException | OmegaConfBaseException | OSError
    callback = isinstance(error, RuntimeError) and refused_by_callback(error)
    if isinstance(error, mendable) or callback or type(error).__name__ == "MisconfigurationException":
        key = getattr(error, "full_key", None)  # OmegaConf's, which also adds lines of details
        text = text.splitlines()[0] if key else text
        return text if not key or key in text else f"{key}: {text}"
    return None


def _unknown_key(error: BaseException | None) -> str | None:
    """The sentence for a setting that does not exist. It suggests settings with a similar name."""
    if not isinstance(error, OmegaConfBaseException) or not isinstance(error.parent_node, DictConfig):
        return None
    if not error.key or "not in struct" not in str(error):
        return None
    parent = str(error.full_key).removesuffix(str(error.key))
    known = [key for key, _ in runs.settings(error.parent_node)]
    beside = [key for key in known if "." not in key]
    below = [key for key in known if key.endswith(f".{error.key}")]
    if error.key in runs.PARTS:
        below = [key.replace(".", "/") for key in below]
    close = below[:3] or difflib.get_close_matches(str(error.key), beside, n=1, cutoff=0.5)
    names = [parent + key for key in close or beside]
    hint = f"did you mean {' or '.join(names)}?" if close else f"it can be one of {', '.join(names)}"
    plus = f"{'' if close else '.'} A setting that is not listed takes a plus: +{error.full_key}=..." if parent else ""
    return f"there is no setting {error.full_key}; {hint}{plus}"
