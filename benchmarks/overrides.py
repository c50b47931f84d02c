"""Random and malformed settings for `python train.py`: each has to be refused in one sentence, or to make sense.

    python benchmarks/overrides.py                            # 500 tries, about ten minutes of one CPU core
    python benchmarks/overrides.py --tries 100 --seed 7       # the same seed gives the same tries
    python benchmarks/overrides.py --minutes 5 --out all.txt  # a time limit; a file with all tries and their messages
    python benchmarks/overrides.py --try 'model.latent_dim=[1]' optimizer.lr=-1

A try is `python train.py` with one or two random changes to the default config, an experiment or another option: values
of a wrong type, sign or size, unknown, missing and doubled groups, unknown and missing keys. It trains two steps on 600
digits, in a process of its own that has imported torch already, with a limit of time and memory. Linux is required.

    trained      the run ends, its weights and metrics are finite, and the values fit the comments in configs/
    refused      one sentence of vaelab, before the training begins
    hydra        one sentence that comes from Hydra or OmegaConf
    LATE         one sentence, but only when the run's folder is written
    VAGUE        one sentence that names neither the setting nor the value, or has words of Python
    TRACEBACK    an error that is not a sentence
    NONSENSE     the run ends, but the value has another type than the default, is outside the documented range, or the
                 weights are not finite, or a temporary file is left
    NO EFFECT    the run ends with the same weights and metrics as without the change
    LONG         the time limit ends a run that trains
    TIMEOUT      the time limit ends a run that has not begun to train
    MEMORY       the memory limit ends the run
    KILLED       the process ends without an answer

Kinds in capitals are printed with their commands, each cause once. VAGUE, NONSENSE and NO EFFECT are guesses, which a
person has to judge.
"""

import argparse
import collections
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of the tries, which are forked

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
sys.path.insert(0, str(ROOT))

from train import train  # noqa: E402
from vaelab import cli, runs  # noqa: E402
from vaelab.data import files  # noqa: E402
from vaelab.errors import UserError  # noqa: E402

GOOD = ("trained", "refused", "hydra", "LONG")
PYTHON = "supported between|object is not|unhashable|positional argument|no attribute|Exception|has no len"  # its words
SMALL = (
    "data.md5=null", "data.val_size=100", "data.batch_size=50", "trainer.accelerator=cpu", "trainer.max_epochs=1",
    "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
    "callbacks.pictures.count=0", "callbacks.pictures.num_samples=4", "callbacks.pictures.num_reconstructions=4",
)  # fmt: skip
WHOLE = ("data", "model", "objective", "optimizer", "scheduler", "trainer", "callbacks")  # drawn equally often
NUMBERS = ("-1", "0", "1", "2", "3", "7", "0.5", "-0.5", "1.5", "1e38", "1e-38", "1e300", "1e-300", 10**30, 10**6)
QUOTED = r"'[^']*'|=\S+|\d\S*"  # the parts of a message that differ between tries with the same cause
NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?|-?inf|nan")
VALUES = (
    "abc", "''", "'two words'", "é☃", "no/such/path", "null", "true", "false", "nan", "inf", "-inf", "-1", "0", "1",
    "2", "3", "0.5", "-0.5", "1.5", "1e38", "1e-38", "1e300", "1e-300", 10**30, -(10**30), "[]", "[1]", "[-1,2]",
    "[0.5,0.5]", "[a]", "[[1]]", "[null]", "[nan,1]", "{}", "{a:1}", "'1'", "", "'a\nb'", "'???'", "${seed}", "${no}",
)  # fmt: skip


# What to try ----------------------------------------------------------------------------------------------------------


def composed(arguments: Sequence[str]) -> DictConfig:
    """The config of some overrides, with Hydra's own node."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(arguments), return_hydra_config=True)


def options() -> dict[str, list[str]]:
    """The names of the options of each config group."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.glob("*/**/*.yaml")):
        groups.setdefault(str(path.parent.relative_to(CONFIGS)), []).append(path.stem)
    others = ("hydra", "row")  # Hydra's own groups, and that of reproduce.py
    return {group: names for group, names in groups.items() if not group.startswith(others)}


class Draws:
    """Random tries: each is (arguments of a sound run, changes)."""

    def __init__(self, seed: int, sound: Callable[[list[str]], bool]) -> None:
        self.random, self.groups, self.sound = random.Random(seed), options(), sound

    def __iter__(self) -> Iterator[tuple[list[str], list[str]]]:
        while True:
            base = self._base()
            if not self.sound(base):
                continue
            cfg = composed([*base, *SMALL])
            yield base, [self._change(cfg) for _ in range(1 + (self.random.random() < 0.3))]

    def _base(self) -> list[str]:
        kind = self.random.random()
        if kind < 0.35:
            return []
        if kind < 0.75:
            return [f"experiment={self.random.choice(self.groups['experiment'])}"]
        group = self.random.choice([name for name in self.groups if name not in ("experiment", "model", "data")])
        base = [f"{group}={self.random.choice(self.groups[group])}"]
        return [] if base == ["trainer=ddp"] else base

    def _change(self, cfg: DictConfig) -> str:
        kind, keys = self.random.random(), [key for key, _ in runs.settings(cfg) if not key.startswith("hydra")]
        group = self.random.choice([*WHOLE, "others"])
        own = [key for key in keys if key.startswith(f"{group}.")]
        own = [key for key in own if not key.endswith("_") or self.random.random() < 0.2] or own  # few _target_
        key = self.random.choice(own or [key for key in keys if key.split(".")[0] not in WHOLE])
        if kind < 0.08:
            return self._choice()
        if kind < 0.12:
            return f"~{key}"
        if kind < 0.16:
            return self.random.choice(
                (f"{key}x=1", f"+{key}.new=1", f"+{group}.new=1", f"+{key}=1", f"++{group}.a.b=1")
            )
        number = isinstance(OmegaConf.select(cfg, key), int | float) and self.random.random() < 0.5
        return f"{key}={self.random.choice(NUMBERS if number else VALUES)}"

    def _choice(self) -> str:
        group = self.random.choice(list(self.groups))
        one, two = (self.random.choice(self.groups[group]) for _ in range(2))
        value = self.random.choice(VALUES)
        forms = f"{group}={one}", f"{group}={value}", f"{group}=nothing", f"{group}=[{one},{two}]", f"{group}=null"
        return self.random.choice((*forms, f"~{group}", f"{group}=", f"+{group}={one}", f"{group}@new={one}"))


# A try ----------------------------------------------------------------------------------------------------------------


def act(arguments: Sequence[str], folder: Path, memory: int) -> None:
    """Run `python train.py` with `arguments` in this process, which was forked for it. Write how it ends."""
    os.setsid()
    os.chdir(folder)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    sys.argv = [str(ROOT / "train.py"), *arguments]
    GlobalHydra.instance().clear()
    kind, message = "trained", ""
    try:
        cli.main(train, CONFIGS, "train", resumable=True)
    except SystemExit as stop:
        message = str(stop.code)
        causes = [stop.__context__, stop.__context__ and stop.__context__.__cause__]
        kind = "refused" if any(isinstance(cause, UserError | OSError) for cause in causes) else "hydra"
        if not message.startswith("error: ") or len(message.splitlines()) > 1:
            kind = "hydra" if stop.code == 2 else "TRACEBACK"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(frame.filename).name}, {frame.name})"
        kind = "MEMORY" if re.search("memory|MemoryError", message) else "TRACEBACK"
    (folder / "end.json").write_text(json.dumps([kind, message]))
    os._exit(0)


def attempt(base: Sequence[str], changes: Sequence[str], o: argparse.Namespace) -> tuple[str, str]:
    """The kind of a try, and its message."""
    with tempfile.TemporaryDirectory(dir=o.folder) as name:
        folder = Path(name)
        arguments = [f"data.root={o.folder / 'data'}", *base, *SMALL, *changes]
        process = multiprocessing.get_context("fork").Process(target=act, args=(arguments, folder, o.gib * 2**30))
        process.start()
        process.join(o.seconds)
        late = any(folder.glob("logs/*/events*"))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            process.join()
            return ("LONG" if late else "TIMEOUT"), f"after {o.seconds} s"
        if not (folder / "end.json").is_file():
            return "KILLED", f"exit code {process.exitcode}"
        kind, message = json.loads((folder / "end.json").read_text())
        if kind in ("refused", "hydra"):
            return ("LATE" if late else "VAGUE" if vague(message, changes) else kind), message
        return judge(folder, base, changes, o) if kind == "trained" else (kind, message)


def sound(base: Sequence[str], o: argparse.Namespace) -> bool:
    """Whether a run without changes trains."""
    if tuple(base) not in o.bases:
        kind, message = attempt(base, [], o)
        if kind != "trained":
            o.bases[tuple(base)] = None
            print(f"without {' '.join(base)}: {message[:200]}")
    return o.bases[tuple(base)] is not None


def vague(message: str, changes: Sequence[str]) -> bool:
    """Whether a message names no changed setting and no value."""
    for change in changes:
        key, _, value = change.lstrip("+~").partition("=")
        values = {" ".join(value.strip("'").split()), str(float(value)) if NUMBER.fullmatch(value) else ""} - {""}
        name = [part for part in re.split(r"[./@]", key) if not part.isdecimal()][-1]
        if name in message or any(value in message for value in values):
            return bool(re.search(PYTHON, message))
    return True


def judge(folder: Path, base: Sequence[str], changes: Sequence[str], o: argparse.Namespace) -> tuple[str, str]:
    """Whether what a run has trained makes sense."""
    paths = list(folder.glob("logs/*/metrics.json"))
    if len(paths) != 1:
        return "NONSENSE", "no metrics.json"
    if left := [path.name for path in paths[0].parent.rglob(".*") if path.name != ".lock"]:
        return "NONSENSE", f"it leaves {left[0]}"
    weights = torch.load(paths[0].parent / "weights.pt", weights_only=True)
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        return "NONSENSE", "the weights are not finite"
    for change in changes:
        if why := odd(base, change):
            return "NONSENSE", why
    metrics = json.loads(paths[0].read_text())
    result = weights, {name: metrics.get(name) for name in ("val", "test")}
    before = o.bases.setdefault(tuple(base), result)  # a base is tried without changes first
    if len(changes) != 1 or not changes[0].startswith(("model.", "objective.", "optimizer.")):
        return "trained", ""
    same = before[0].keys() == weights.keys() and before[1] == result[1]
    if same and all(torch.equal(before[0][name], weights[name]) for name in weights):
        key = changes[0].partition("=")[0]
        old, new = (OmegaConf.select(composed([*base, *SMALL, *more]), key) for more in ([], changes))
        if old != new:
            return "NO EFFECT", f"the same weights and metrics as with {old}"
    return "trained", ""


def odd(base: Sequence[str], change: str) -> str:
    """Why the value of a change does not fit the default and the comment of its setting, or an empty string."""
    if change[0] in "+~" or "." not in change.partition("=")[0]:
        return ""
    key = change.partition("=")[0]
    value: Any = OverridesParser.create().parse_override(change).value()
    cfg = composed([*base, *SMALL])
    default, comment = OmegaConf.select(cfg, key), comments(cfg).get(key, "")
    if isinstance(value, str) and "${" in value:
        return ""
    if OmegaConf.is_config(default):
        default = OmegaConf.to_container(default, resolve=True)
    if default is None or (value is None and "null" in comment):
        return ""
    number = isinstance(default, int | float) and not isinstance(default, bool)
    kinds: tuple[type, ...] = ((int,) if isinstance(default, int) else (int, float)) if number else (type(default),)
    if type(value) not in kinds:
        return f"the default is {default}: {comment}"
    if choices := re.match(r"[\w.-]+(: [^|]*)?( \| [\w.-]+(: [^|]*)?)+", comment):
        names = [part.split(":")[0].strip() for part in choices[0].split("|")]
        if isinstance(value, str) and value not in names:
            return f"one of {', '.join(names)} is documented"
    if not number:
        return ""
    least, most = (-math.inf if default < 0 else 0), math.inf
    if limits := re.search(r"(-?[\d.]+) to (\d+)", comment):
        least, most = float(limits[1]), float(limits[2])
    if not math.isfinite(value) or not least <= value <= most or ("above 0" in comment and value == 0):
        return f"the default is {default}: {comment}"
    return ""


def comments(cfg: DictConfig) -> dict[str, str]:
    """The comments behind the settings of the chosen options in configs/, by dotted key."""
    found: dict[str, str] = {}
    for group, option in [("", "train"), *cfg.hydra.runtime.choices.items()]:
        path = CONFIGS / group / f"{option}.yaml"
        if group.startswith("hydra") or not path.is_file():
            continue
        text = path.read_text()
        for parent in re.findall(r"defaults: \[(\w+)", text):
            text = path.with_name(f"{parent}.yaml").read_text() + text
        package = re.search(r"# @package (\S+)", text)
        prefix = {"_global_": "", None: group.replace("/", ".")}.get(package and package[1], package and package[1])
        above: list[tuple[int, str]] = []
        for line in text.splitlines():
            if parts := re.match(r"( *)(\w+):[^#]*(?:# (.*))?$", line):
                indent = len(parts[1])
                above = [*((depth, name) for depth, name in above if depth < indent), (indent, parts[2])]
                dotted = ".".join(filter(None, [prefix, *(name for _, name in above)]))
                found |= {dotted: parts[3]} if parts[3] else {}
    return found


# All tries ------------------------------------------------------------------------------------------------------------


def write_digits(root: Path) -> None:
    """Write 600 training and 100 test digits in MNIST's format."""
    images, labels = (part[torch.randperm(5000, generator=torch.Generator().manual_seed(0))] for part in files.subset())
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for split, part in (("train", slice(0, 600)), ("t10k", slice(600, 700))):
        for kind, values in (("images-idx3", images[part, 0]), ("labels-idx1", labels[part].byte())):
            header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + values.numpy().tobytes())


def warm_up() -> None:
    """Import what a run imports, so that the tries need not."""
    import hydra.utils  # noqa: F401
    import lightning  # noqa: F401
    import torch.utils.tensorboard
    import zuko  # noqa: F401

    import vaelab.extensions.graphed
    import vaelab.models
    import vaelab.objectives
    import vaelab.training  # noqa: F401

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="time limit for all tries")
    parser.add_argument("--seconds", type=float, default=20, help="time limit for each try")
    parser.add_argument("--gib", type=int, default=4, help="memory limit for each try, above that of the imports")
    parser.add_argument("--out", type=Path, help="a file that gets a line for each try")
    parser.add_argument("--try", nargs="+", dest="changes", help="try these arguments of train.py only")
    o = parser.parse_args()
    warm_up()
    counts: collections.Counter[str] = collections.Counter()
    causes: collections.Counter[str] = collections.Counter()
    deadline = time.monotonic() + 60 * o.minutes
    with tempfile.TemporaryDirectory() as folder:
        o.folder, o.bases = Path(folder), {}
        write_digits(o.folder / "data")
        tries: Iterable[tuple[list[str], list[str]]] = Draws(o.seed, lambda base: sound(base, o))
        if o.changes and sound([], o):
            tries = [([], o.changes)]
        for base, changes in itertools.islice(tries, o.tries):
            if time.monotonic() > deadline:
                break
            kind, message = attempt(base, changes, o)
            counts[kind] += 1
            cause = f"{kind} {re.sub(QUOTED, '...', message)}"
            causes[cause] += 1
            found = f"{kind}  {' '.join(map(repr, [*base, *changes]))}\n    {message[:400]}"
            if (kind not in GOOD and causes[cause] == 1) or o.changes:
                print(found, flush=True)
            if o.out:
                with o.out.open("a") as file:
                    file.write(found + "\n")
    print(f"\n{sum(counts.values())} tries, seed {o.seed}\n\n| kind | tries | causes |\n|---|---|---|")
    for kind, count in counts.most_common():
        print(f"| {kind} | {count} | {'' if kind in GOOD else sum(cause.startswith(kind) for cause in causes)} |")


if __name__ == "__main__":
    main()
