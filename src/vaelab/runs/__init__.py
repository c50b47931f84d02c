"""Runs: write a run's folder from a config, and load a model from a run's folder."""

from vaelab.runs.building import build, build_callbacks, build_loggers, check_schedules, fill_in, processes
from vaelab.runs.caveats import find_caveats
from vaelab.runs.config import foreign, read_config, saved_config, settings
from vaelab.runs.folder import finish, held, hyperparameters, read_json, read_pictures, record_start, write_json
from vaelab.runs.loading import (
    MOST_PRIOR,
    PRIOR,
    PRIOR_SIZES,
    Run,
    bytes_of,
    digest,
    find_device,
    last_checkpoint,
    load_run,
    open_run,
    write_prior,
)
from vaelab.runs.log import announce, announce_end, shown, start_log, summary
from vaelab.runs.preflight import PARTS, check_callbacks, check_config, check_data

__all__ = [
    "MOST_PRIOR", "PARTS", "PRIOR", "PRIOR_SIZES", "Run", "announce", "announce_end", "build", "build_callbacks",
    "build_loggers", "bytes_of",
    "check_callbacks", "check_config",
    "check_data", "check_schedules", "digest", "fill_in", "find_caveats", "find_device", "finish", "foreign", "held",
    "hyperparameters", "last_checkpoint", "load_run", "open_run", "processes", "read_config", "read_json",
    "read_pictures", "record_start", "saved_config", "settings", "shown", "start_log", "summary", "write_json",
    "write_prior",
]  # fmt: skip
