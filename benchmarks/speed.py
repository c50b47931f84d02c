"""How fast `python train.py` trains, beside the loops that one could write instead and the products that all need.

    python benchmarks/speed.py                                      # 784-400-20, batches of 128, on the CPU
    python benchmarks/speed.py --batch-size 512 --rounds 3          # also --model conv, iwae or ladder
    python benchmarks/speed.py --images 6144 --loops train,bare     # a first impression
    python benchmarks/speed.py --precision bf16 --compile           # of train.py, the bare loop and the products
    python benchmarks/speed.py device=cuda                          # the script's options, in Hydra's manner, too
    python benchmarks/speed.py trainer.log_every_n_steps=200        # other settings are train.py's and stand last

Each loop (benchmarks/loops.py) is a process of its own with a terminal of its own, so that start-up, memory and the
progress bar are a user's; it takes Linux. In each round every loop runs once, in turn: an epoch to warm up, then
`--epochs` that are timed from start to start, with the validation, checkpoints, pictures and curves that the loop has.
All are served the same digits, those of data/MNIST or else 5,000 over and over.

    train      python train.py and its defaults: it trains on 11/12 of the images, and validates on the rest. With
               --precision bf16 it takes trainer=mixed_precision, which compiles
    fast       the same with each step as one CUDA graph, trainer=gpu_fast, with --device cuda alone
    bare       by hand: images in memory as thresholds for random bits, the likelihood on logits, fused Adam, no log. It
               binarises as train.py does, and for all but mlp takes the project's model and objective
    tuned      the same with the libraries and memory that train.py chooses (src/vaelab/training/threads.py)
    graph      the same with each step as one CUDA graph, with --device cuda alone
    parts      the tuned loop with the project's model and objective, for mlp, to tell them from the Trainer
    tutorial   torchvision's data set, ToTensor, DataLoader, sigmoid and binary_cross_entropy, Adam, .item() each step
    lightning  the same as a LightningModule with three self.log, and a Trainer as it comes
    pythae     its trainer and VAE, for mlp, if it is installed
    products   the model's matrix products and convolutions alone, forward and backward: the floor
    imports    import torch, lightning

Tuned, graph, parts and products are tuned, the others as torch comes. Only train.py and the loops by hand binarise; the
others, as everyone does, serve grey levels, in 32 bits and as they are. Start-up ends with the first step, and what is
compiled is in the first epoch. Memory is the process's peak until training ends, with cuda what torch allocated there.
Ratios are to the bare loop's seconds of the same round. Medians over rounds, and from least to most in brackets.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import pty
import subprocess
import sys
import tempfile
import termios
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parent.parent
EPOCH = 60_000  # images, whatever a process really trains on
MODELS: dict[str, list[str]] = {
    "mlp": [],
    "iwae": ["experiment=iwae", "scheduler=none"],
    "conv": ["experiment=conv_vae"],
    "ladder": ["experiment=ladder_vae"],
}
LABELS = {
    "train": "`python train.py`",
    "fast": "`python train.py trainer=gpu_fast`",
    "bare": "bare torch loop",
    "tuned": "bare loop, tuned as `train.py` is",
    "graph": "tuned loop as a CUDA graph",
    "parts": "tuned loop, the project's model and objective",
    "tutorial": "the tutorials' loop",
    "lightning": "that under Lightning, three `self.log`",
    "pythae": "pythae",
    "products": "matrix products alone",
    "imports": "`import torch, lightning`",
}


def choose(o: argparse.Namespace) -> list[str]:
    """The loops that can run, of those asked for; says why another cannot."""
    missing: dict[str, str] = {}
    if o.model != "mlp":
        missing["pythae"] = missing["parts"] = f"it is for --model mlp, not {o.model}"
    elif importlib.util.find_spec("pythae") is None:
        missing["pythae"] = "it is not installed: pip install pythae"
    if o.device != "cuda":
        missing["graph"] = missing["fast"] = "it needs --device cuda"
    for loop in missing.keys() & {*o.loops}:
        print(f"without {loop}: {missing[loop]}", file=sys.stderr)
    return [loop for loop in o.loops if loop not in missing]


def write_digits(o: argparse.Namespace) -> str:
    """Write `images` digits in MNIST's format to the folder's data/, those at hand over and over; their name."""
    from vaelab.data import MNISTDataModule

    dataset = "MNIST" if (o.root / "MNIST/raw").is_dir() else "MNIST-5k"
    data = MNISTDataModule(str(o.root), dataset, val_size=0, binarization="none")
    data.setup()
    images, labels = data.splits["train"]
    raw = o.folder / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for split, count in (("train", o.images), ("t10k", o.images // 6)):
        rows = torch.arange(count) % len(labels)
        for kind, part in (("images-idx3", images[rows, 0]), ("labels-idx1", labels[rows].byte())):
            header = bytes((0, 0, 8, part.dim())) + b"".join(size.to_bytes(4, "big") for size in part.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + part.numpy().tobytes())
    return data.protocol["dataset"]


def command(o: argparse.Namespace) -> list[str]:
    """The arguments of python that start a loop: benchmarks/loops.py, or train.py with a stopwatch."""
    if o.loop not in ("train", "fast"):
        return [str(ROOT / "benchmarks/loops.py"), json.dumps(vars(o), default=str)]
    mixed = o.precision == "bf16"
    if o.loop == "fast":
        trainer = ["trainer=gpu_fast", *["trainer.precision=bf16-mixed", "module.compile=true"][: 2 * mixed]]
    else:
        trainer = ["trainer=mixed_precision"] if mixed else []
    data = {"root": o.folder / "data", "md5": "null", "allow_subset": "false"}
    data |= {"batch_size": o.batch_size, "val_size": o.images // 12}
    return [
        str(ROOT / "train.py"), *o.overrides, *trainer, *(f"data.{key}={value}" for key, value in data.items()),
        f"trainer.accelerator={'gpu' if o.device == 'cuda' else 'cpu'}", f"trainer.max_epochs={o.epochs + 1}",
        f"hydra.run.dir={o.folder}/{time.time_ns()}", "+callbacks.clock._target_=loops.clock",
        f"+callbacks.clock.folder={o.folder}", f"+callbacks.clock.device={o.device}", *o.settings,
    ]  # fmt: skip


def run(o: argparse.Namespace) -> dict[str, float]:
    """One loop, one process: its figures."""
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    started, said = time.time(), b""
    with subprocess.Popen([sys.executable, *command(o)], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
                          env={**os.environ, "PYTHONPATH": path}) as process:  # fmt: skip
        os.close(terminal)
        with contextlib.suppress(OSError):  # Linux's way to say that all was read
            while chunk := os.read(ours, 2**16):
                said = (said + chunk)[-5000:]
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{o.loop} failed:\n{said.decode(errors='replace')}")
    times = json.loads((o.folder / "times.json").read_text())
    figures = {"startup": times["first"] - started, "memory": times["memory"], "threads": times["threads"]}
    if len(times["laps"]) > 1:
        images = o.epochs * (o.images * 11 // 12 if o.loop in ("train", "fast") else o.images)
        figures["images_per_second"] = images / (times["laps"][-1] - times["laps"][1])
        figures["first_epoch"] = times["laps"][1] - times["laps"][0]
    return figures


def machine(o: argparse.Namespace) -> str:
    info = Path("/proc/cpuinfo").read_text().split("model name")
    cpu = info[1].split("\n")[0].strip("\t: ") if len(info) > 1 else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores" + (f", {torch.cuda.get_device_name()}" if o.device == "cuda" else "")


def columns(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """{loop: {figure: one value a round}}, with seconds per epoch and their ratio to the bare loop's."""
    table: dict[str, dict[str, list[float]]] = {}
    for figures in rounds:
        for loop, figure in figures.items():
            if rate := figure.get("images_per_second"):
                figure["seconds_per_epoch"] = EPOCH / rate
                if "bare" in figures:
                    figure["ratio"] = figures["bare"]["images_per_second"] / rate
            for name, value in figure.items():
                table.setdefault(loop, {}).setdefault(name, []).append(value)
    return table


def row(loop: str, figures: dict[str, list[float]]) -> str:
    """One line of the table: medians, and from least to most in brackets."""

    def shown(name: str, form: str, unit: float = 1.0, spread: bool = False) -> str:
        if name not in figures:
            return "–"
        ends = f" ({min(figures[name]) / unit:{form}} to {max(figures[name]) / unit:{form}})" if spread else ""
        return f"{median(figures[name]) / unit:{form}}{ends}"

    seconds, ratio = (shown(name, ".3g", spread=True) for name in ("seconds_per_epoch", "ratio"))
    rest = f"{shown('startup', '.1f')} | {shown('first_epoch', '.1f')} | {shown('memory', ',.0f', 2**20)}"
    return f"| {LABELS[loop]} | {shown('images_per_second', ',.0f')} | {seconds} | {ratio} | {rest} |"


def draw(table: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """The ratios as bars: medians, with lines from the least to the most."""
    from matplotlib.figure import Figure

    bars = [(LABELS[loop].replace("`", ""), figures["ratio"]) for loop, figures in table.items() if "ratio" in figures]
    names, ratios = zip(*reversed(bars), strict=True)
    middle = [median(values) for values in ratios]
    ends = [[m - min(v) for m, v in zip(middle, ratios, strict=True)],
            [max(v) - m for m, v in zip(middle, ratios, strict=True)]]  # fmt: skip
    figure = Figure(figsize=(8, 0.6 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colors = ["C1" if name.startswith("python train.py") else "C0" for name in names]
    axes.barh(names, middle, xerr=ends, capsize=3, color=colors)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("seconds per epoch, the bare loop's being 1")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=96)


def named(text: str) -> list[str]:
    """Loops, with commas between them."""
    loops = text.split(",")
    if unknown := [loop for loop in loops if loop not in LABELS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(LABELS)}")
    return loops


def count(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: a whole number above zero is needed")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="settings for train.py, such as trainer.log_every_n_steps=200")
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--batch-size", type=count, default=128)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--compile", action="store_true", help="the bare loop's model; train.py has settings")
    parser.add_argument("--loops", type=named, default=list(LABELS), help=f"some of {','.join(LABELS)}")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--epochs", type=count, default=1, help="timed in each round, after one more")
    parser.add_argument("--images", type=count, default=EPOCH, help="of an epoch; down to a multiple of twelve batches")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="holds MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("logs/speed"), help="of the files .json and .png")
    names = {action.dest: action.option_strings[0] for action in parser._actions if action.nargs is None}
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    o = parser.parse_intermixed_args([names.get(key, key) + equals + value for key, equals, value in pairs])
    if o.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"device=cuda, but torch {torch.__version__} finds no GPU on this machine")
    whole = 12 * o.batch_size  # so that no loop has a smaller last batch, in training and validation alike
    o.images = max(1, o.images // whole) * whole
    o.overrides = MODELS[o.model]
    loops = choose(o)
    if not loops:
        parser.error("none of these loops can run here")
    print(f"{o.images:,} images an epoch", file=sys.stderr)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        o.folder = Path(folder)
        data = write_digits(o)
        for i in range(o.rounds):
            print(f"round {i + 1} of {o.rounds}", file=sys.stderr)
            rounds.append({loop: run(argparse.Namespace(**vars(o), loop=loop)) for loop in loops})
    table = columns(rounds)
    versions = {name: version(name) for name in ("torch", "lightning", "pythae") if name in loops or name != "pythae"}
    content = {"model": o.model, "batch_size": o.batch_size, "device": o.device, "precision": o.precision,
               "compiled": o.compile, "images": o.images, "data": data, "settings": o.settings, "machine": machine(o),
               "threads": table[loops[0]]["threads"][0], "versions": versions, "loops": table}  # fmt: skip
    o.out.parent.mkdir(parents=True, exist_ok=True)
    o.out.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    compiled = ", compiled" if o.compile else ""
    title = (
        f"{o.model}, batches of {o.batch_size}, {o.device}, {o.precision}{compiled}, {o.images:,} images of {data}, "
        f"{o.rounds} rounds {' '.join(o.settings)}\n{machine(o)}, {content['threads']:.0f} threads, "
        + ", ".join(" ".join(pair) for pair in versions.items())
    )
    print(f"{title}\n\n| | images / s | s / {EPOCH:,} images | ratio | start-up, s | first epoch, s | memory, MB |\n"
          + "|---" * 7 + "|")  # fmt: skip
    print(*(row(loop, figures) for loop, figures in table.items()), sep="\n")
    if {"train", "imports"} <= table.keys():
        first, least = (median(table[loop]["startup"]) for loop in ("train", "imports"))
        print(f"\nfirst step after {first / least:.2f} times what importing torch and lightning takes")
    if "bare" in table:
        draw(table, title, o.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
