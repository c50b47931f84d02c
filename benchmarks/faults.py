"""Kills runs of `python train.py` at random moments, resumes them, and compares them with runs that were never stopped.

    python benchmarks/faults.py                                       # all variants, half an hour
    python benchmarks/faults.py --minutes 5 --variants default,ddp    # the minutes are shared by the variants
    python benchmarks/faults.py --seed 1 --keep logs/faults           # keep the folders of runs that are not equal

For each variant, one run is the reference. Then the same run starts in other folders, on 4,000 digits, and gets one to
three signals: SIGKILL, or SIGINT or SIGTERM once or twice, to the first process or to all processes of the run. The
moment is random: in the whole run, during start-up, while a file is written, or after the last step, while the run is
tested. After each signal, all files must be readable, and `python train.py resume=FOLDER` continues the run, until it
ends. A run that was killed before its first checkpoint starts again in an empty folder. Linux is required.

    seconds      duration of the reference run
    kills        signals that ended a process
    equal        runs whose weights, checkpoints and metrics are equal to those of the reference bit for bit, but for
                 times; curves have the same steps, and values within a millionth
    unequal      runs that differ from the reference
    lost         runs that cannot be resumed, or that hang, or whose files are damaged
    again        starts in an empty folder
    traceback    kills that made a process print a traceback
    leftover     temporary files and processes that remain at the end
"""

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vaelab.errors import UserError
from vaelab.files import read_plain

ROOT = Path(__file__).parent.parent
SMALL = (
    "data=mnist_5k", "data.batch_size=100", "data.eval_batch_size=50", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=7", "callbacks.pictures.count=4",
)  # fmt: skip
NARROW = "model.encoder.hidden=[32] model.decoder.hidden=[32] "
VARIANTS = {
    "default": NARROW + "trainer.max_epochs=30",
    "conv": "model/network=conv model.encoder.channels=[4,8] model.decoder.channels=[8,4] model.encoder.hidden=[32] "
    "model.decoder.hidden=[32] trainer.max_epochs=8 trainer.val_check_interval=0.25",
    "iwae": NARROW + "objective=iwae objective.num_samples=5 trainer.accumulate_grad_batches=2 trainer.max_epochs=20",
    "adversarial": "experiment=adversarial_autoencoder trainer.max_epochs=15 trainer.val_check_interval=0.5",
    "vampprior": NARROW + "model/prior=vampprior model.prior.num_components=50 trainer.max_epochs=15",
    "early_stopping": NARROW + "scheduler=plateau scheduler.scheduler.patience=1 callbacks=early_stopping "
    "callbacks.early_stopping.patience=3 optimizer.lr=0.02 trainer.max_epochs=40",
    "cosine": NARROW + "scheduler=cosine objective/beta=linear objective.beta.steps=500 trainer.max_epochs=20",
    "ema": NARROW + "callbacks=ema callbacks.ema.decay=0.99 trainer.max_epochs=25",
    "windows": NARROW + "trainer=gpu_fast trainer.accelerator=cpu scheduler=cosine trainer.max_epochs=30",
    "static": NARROW + "data.binarization=static trainer.gradient_clip_val=100 trainer.val_check_interval=0.5 "
    "trainer.max_epochs=20",
    "longer": NARROW + "trainer.max_epochs=20",
    "ddp": NARROW + "trainer=ddp trainer.accelerator=cpu trainer.max_epochs=20",
}  # fmt: skip
SHORTER = {"longer": "trainer.max_epochs=8"}  # these runs are complete at first, and are killed when they go on
MOMENTS = ("any", "any", "start", "write", "write", "test")


class LostError(Exception):
    """A run that cannot go on."""


# Processes ------------------------------------------------------------------------------------------------------------


class Run:
    """A process of train.py and the processes that it starts, in a session of their own. Output goes to a file."""

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self.output, environment = output, {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True, cwd=output.parent
            )

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        return " / ".join(self.said.splitlines()[-3:])

    def until(self, due: Callable[[], bool]) -> bool:
        """Wait until something is due. False if the process ends before."""
        while not due():
            if self.process.poll() is not None:
                return False
            time.sleep(0.0005)
        return True

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process, and return its exit code. Raises LostError for a process that hangs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LostError(f"it hangs: {self.last_words}") from None

    def members(self) -> list[int]:
        """The processes that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def end(self, patience: float) -> int:
        """End all processes. Return how many there still are after `patience` seconds."""
        deadline = time.monotonic() + patience
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return len(left)


class Reference:
    """A run that is never stopped: its files, and the seconds of its start, of its test and of the whole."""

    def __init__(self, overrides: Sequence[str], folder: Path) -> None:
        began, self.folder = time.monotonic(), folder
        run = Run([*overrides, f"hydra.run.dir={folder}"], folder.with_suffix(".txt"))
        run.until((folder / "run.json").is_file)
        self.start = time.monotonic() - began
        if run.wait(600):
            raise SystemExit(f"the reference run failed:\n{run.said}")
        self.seconds = time.monotonic() - began
        metrics = json.loads((folder / "metrics.json").read_text())
        self.steps, self.test = metrics["steps"], max(self.seconds - self.start - metrics["fit_seconds"], 0.5)


# Kills ----------------------------------------------------------------------------------------------------------------


def moment(run: Run, kind: str, folder: Path, reference: Reference, draw: random.Random) -> bool:
    """Wait for a random moment. False if the process ends before."""

    def writing() -> bool:
        return any(folder.glob(".*.new")) or any(folder.glob("checkpoints/.*.new"))

    if kind == "write":  # just after a file is begun, or just after it is in its place
        for _ in range(draw.randint(0, 12)):
            if not (run.until(writing) and run.until(lambda: not writing())):
                return False
        return draw.random() < 0.5 or run.until(writing)
    log = folder / "train.log"
    if kind == "test" and not run.until(lambda: log.is_file() and f"step {reference.steps:,}:" in log.read_text()):
        return False
    most = {"any": reference.seconds, "start": 1.1 * reference.start, "test": 1.1 * reference.test}[kind]
    deadline = time.monotonic() + draw.uniform(0, most)
    return run.until(lambda: time.monotonic() > deadline)


def strike(run: Run, draw: random.Random) -> str:
    """Send one or two signals to the first process or to all. Return their names."""
    number, to_all = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)), draw.random() < 0.5
    twice = number != signal.SIGKILL and draw.random() < 0.5
    for i in range(1 + twice):
        time.sleep(i * draw.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, number) if to_all else run.process.send_signal(number)
    return number.name + " twice" * twice + " to all" * to_all


def trial(
    variant: str,
    overrides: Sequence[str],
    folder: Path,
    reference: Reference,
    draw: random.Random,
    counts: Counter[str],
) -> list[str]:
    """Run once, with kills. Return what was done. Raises LostError for a run that cannot go on."""
    done, kills, output = list[str](), draw.randint(1, 3), folder.with_suffix(".txt")
    begin = [*overrides, f"hydra.run.dir={folder}"]
    resume = [f"resume={folder}"]
    if variant in SHORTER:
        first = Run([*begin, SHORTER[variant]], output)
        if first.wait(600):
            raise SystemExit(f"the shorter run failed:\n{first.said}")
        resume += [override for override in overrides if override.startswith("trainer.max_epochs=")]
        begin = resume
    command = begin
    while True:
        run, struck = Run(command, output), False
        try:
            if kills:
                kills, kind = kills - 1, draw.choice(MOMENTS)
                if struck := moment(run, kind, folder, reference, draw):
                    done.append(f"{kind}: {strike(run, draw)}")
            code = run.wait(60 + 5 * reference.seconds)
        finally:
            left = run.end(15)
        if left:
            counts["leftover"] += left
            done.append(f"{left} processes are left")
        if code == 0 or "is complete" in run.said:
            if not (folder / "metrics.json").is_file():
                raise LostError(f"{', '.join(done)}: no metrics.json, but exit code {code}: {run.last_words}")
            return done
        if not struck:
            raise LostError(f"{', '.join(done)}: exit code {code}: {run.last_words}")
        counts["kills"] += 1
        if "Traceback" in run.said:
            counts["traceback"] += 1
            done.append(f"a traceback ({run.last_words})")
        check(folder)
        if (folder / "checkpoints/last.ckpt").is_file():
            command = resume
            done.append("resumed")
            continue
        log = folder / "train.log"
        if log.is_file() and "epoch 3," in log.read_text():
            raise LostError(f"{', '.join(done)}: there is no checkpoint after two epochs")
        shutil.rmtree(folder, ignore_errors=True)
        command = begin
        counts["again"] += 1
        done.append("begun again")


def check(folder: Path) -> None:
    """Raises LostError for a damaged file."""
    for path in folder.rglob("*"):
        try:
            if path.suffix in (".ckpt", ".pt"):
                read_plain(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (UserError, ValueError) as error:
            raise LostError(f"{path.name} is damaged: {error}") from error


def differences(ours: Path, theirs: Path) -> Iterator[str]:
    """What differs between the files of two finished runs."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports each restart
    check(ours)
    for name in ("weights.pt", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        a, b = (read_plain(folder / name) if (folder / name).is_file() else None for folder in (ours, theirs))
        yield from (f"{name}: {what}" for what in unequal(a, b))
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs))
    yield from (f"metrics.json: {what}" for what in unequal(a, b))
    for path in ours.glob("pictures/*.png"):
        try:
            Image.open(path).load()
        except (OSError, SyntaxError) as error:  # PIL raises both
            yield f"{path.name} is damaged: {error}"
    a, b = (EventAccumulator(str(folder), {"scalars": 0}).Reload() for folder in (ours, theirs))
    tags = [set(each.Tags()["scalars"]) for each in (a, b)]
    if tags[0] != tags[1]:
        yield f"curves: {sorted(tags[0] ^ tags[1])} are in one run only"
    for tag in sorted(tags[0] & tags[1]):
        points, expected = ([(event.step, event.value) for event in each.Scalars(tag)] for each in (a, b))
        if not tag.startswith(("train/", "val/")):  # one point for each time that the run was complete
            points, expected = points[-1:], expected[-1:]
        if [step for step, _ in points] != [step for step, _ in expected]:
            yield f"curve {tag}: steps {sorted({step for step, _ in points} ^ {step for step, _ in expected})} differ"
        elif "second" not in tag and any(
            abs(x - y) > 1e-6 * abs(y) for (_, x), (_, y) in zip(points, expected, strict=True)
        ):
            yield f"curve {tag}: values differ"


def unequal(ours: Any, theirs: Any, name: str = "") -> Iterator[str]:
    """The names of what differs in two nested containers, without times."""
    if "second" in name or "Timer" in name:
        return
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield name
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from unequal(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from unequal(*pair, f"{name}.{i}")
    elif ours != theirs:
        yield f"{name} ({str(ours)[:40]} instead of {str(theirs)[:40]})"


# All variants ---------------------------------------------------------------------------------------------------------


def measure(variant: str, seconds: float, o: argparse.Namespace) -> Counter[str]:
    """Run trials of one variant until its time is over, at least one."""
    counts: Counter[str] = Counter()
    draw, deadline = random.Random(f"{o.seed} {variant}"), time.monotonic() + seconds
    overrides = [*SMALL, *VARIANTS[variant].split()]
    with tempfile.TemporaryDirectory() as name:
        reference = Reference(overrides, Path(name) / "reference")
        counts["seconds"] = round(reference.seconds)
        while not counts["runs"] or time.monotonic() < deadline:
            folder = Path(name) / str(counts["runs"])
            counts["runs"] += 1
            fault, done = "", []
            try:
                done = trial(variant, overrides, folder, reference, draw, counts)
                found = list(differences(folder, reference.folder))
                counts["unequal" if found else "equal"] += 1
                fault = f"unequal after {', '.join(done)}: {'; '.join(found[:6])}" if found else ""
                left = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
                counts["leftover"] += len(left)
                fault += f" leftover {left}" if left else ""
            except LostError as error:
                counts["lost"] += 1
                fault = f"lost: {error}"
            if fault:
                print(f"{variant} {counts['runs']}: {fault}", file=sys.stderr, flush=True)
                if o.keep:
                    shutil.copytree(folder, o.keep / f"{variant}-{counts['runs']}", dirs_exist_ok=True)
            elif o.verbose:
                print(f"{variant} {counts['runs']}: {', '.join(done)}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return counts


def named(text: str) -> list[str]:
    """Parse the names of variants, with commas between them."""
    variants = text.split(",")
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(VARIANTS)}")
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="time for all variants together")
    parser.add_argument("--variants", type=named, default=list(VARIANTS), help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--keep", type=Path, help="a folder for runs that are lost or not equal")
    parser.add_argument("--verbose", action="store_true", help="also print the kills of equal runs")
    o = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background processes ignore it, and so would runs
    columns = ("seconds", "runs", "kills", "equal", "unequal", "lost", "again", "traceback", "leftover")
    print(f"| variant | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|", flush=True)
    for variant in o.variants:
        counts = measure(variant, 60 * o.minutes / len(o.variants), o)
        print(f"| `{variant}` | {' | '.join(str(counts[name]) for name in columns)} |", flush=True)


if __name__ == "__main__":
    main()
