"""The speed of `python train.py`, compared with hand-written loops and with the matrix products that all of them need.

    python benchmarks/speed.py                                      # 784-400-20, batches of 128, on the CPU
    python benchmarks/speed.py --batch-size 512 --rounds 3          # also --model conv, iwae or ladder
    python benchmarks/speed.py --images 6144 --loops train,bare     # a rough result
    python benchmarks/speed.py --precision bf16 --compile           # for train.py, the bare loop, the products
    python benchmarks/speed.py device=cuda                          # options of this script also work this way
    python benchmarks/speed.py trainer.log_every_n_steps=200        # settings of train.py come last

Each loop (benchmarks/loops.py) runs in its own process and terminal, as a user would run it. Linux is required. In each
round, every loop runs once: one epoch to warm up, then `--epochs` timed epochs, with the validation, checkpoints,
pictures and curves of the loop. All loops get the same digits: those of data/MNIST, or else 5,000 digits, repeated.

    train      python train.py with its defaults: it trains on 11/12 of the images and validates on the rest. With
               --precision bf16 it uses trainer=mixed_precision, which compiles
    fast       as train, but each step is one CUDA graph (trainer=gpu_fast); needs --device cuda
    bare       plain torch: images in memory as thresholds for random bits, the likelihood on logits, fused Adam, no
               log. It binarises like train.py. For all models but mlp it uses the model and objective of VAE Lab
    tuned      as bare, with the CPU settings of train.py (src/vaelab/training/threads.py)
    graph      as tuned, but each step is one CUDA graph; needs --device cuda
    parts      as tuned, with the model and objective of VAE Lab, for mlp only: it shows their cost without the Trainer
    tutorial   torchvision's data set, ToTensor, DataLoader, sigmoid and binary_cross_entropy, Adam, .item() each step
    lightning  as tutorial, in a LightningModule with three self.log and a default Trainer
    pythae     pythae's trainer and VAE, for mlp only, if it is installed
    products   only the model's matrix products and convolutions, forward and backward: a lower limit
    imports    import torch, lightning

Train, fast, tuned, graph, parts and products use the CPU settings of train.py; the other loops use torch's defaults.
Tutorial, lightning and pythae train on grey levels in 32 bits; the other loops binarise. Start-up ends with the first
step, and the first epoch includes compilation. Memory is the peak of the process until training ends, or with cuda that
of torch on the GPU. A ratio is to the seconds of the bare loop in the same round. Values are medians over rounds, and
brackets hold the range.
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
EPOCH = 60_000  # images, for which seconds are reported
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
    "lightning": "the tutorials' loop under Lightning, three `self.log`",
    "pythae": "pythae",
    "products": "matrix products alone",
    "imports": "`import torch, lightning`",
}


def choose(o: argparse.Namespace) -> list[str]:
    """The requested loops that can run. Print why the others cannot."""
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
    """Write `images` digits in MNIST's format to the folder's data/, repeated if necessary. Return their name."""
    from vaelab.data import MNISTDataModule

    dataset = "MNIST" if (o.root / "MNIST/raw").is_dir() else "MNIST-5k"
    data = MNISTDataModule(str(o.root), dataset, val_size=0, binarization="none")
    data.setup()
    images, labels = data.splits["train"]
    assert labels is not None
    raw = o.folder / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for split, count in (("train", o.images), ("t10k", o.images // 6)):
        rows = torch.arange(count) % len(labels)
        for kind, part in (("images-idx3", images[rows, 0]), ("labels-idx1", labels[rows].byte())):
            header = bytes((0, 0, 8, part.dim())) + b"".join(size.to_bytes(4, "big") for size in part.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + part.numpy().tobytes())
    return data.protocol["dataset"]


def command(o: argparse.Namespace) -> list[str]:
    """The arguments of python that start a loop: benchmarks/loops.py, or train.py with a stopwatch as a callback."""
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
    """Run one loop in one process, and return its measurements."""
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    started, said = time.time(), b""
    with subprocess.Popen([sys.executable, *command(o)], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
                          env={**os.environ, "PYTHONPATH": path}) as process:  # fmt: skip
        os.close(terminal)
        with contextlib.suppress(OSError):  # Linux raises it when all is read
            while chunk := os.read(ours, 2**16):
                said = (said + chunk)[-5000:]
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{o.loop} failed:\n{said.decode(errors='replace')}")
    times = json.loads((o.folder / "times.json").read_text())
    measured = {"startup": times["first"] - started, "memory": times["memory"], "threads": times["threads"]}
    if len(times["laps"]) > 1:
        images = o.epochs * (o.images * 11 // 12 if o.loop in ("train", "fast") else o.images)
        measured["images_per_second"] = images / (times["laps"][-1] - times["laps"][1])
        measured["first_epoch"] = times["laps"][1] - times["laps"][0]
    return measured


def machine(o: argparse.Namespace) -> str:
    info = Path("/proc/cpuinfo").read_text().split("model name")
    cpu = info[1].split("\n")[0].strip("\t: ") if len(info) > 1 else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores" + (f", {torch.cuda.get_device_name()}" if o.device == "cuda" else "")


def columns(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """{loop: {measurement: one value per round}}, with seconds per epoch and their ratio to the bare loop's."""
    table: dict[str, dict[str, list[float]]] = {}
    for results in rounds:
        for loop, result in results.items():
            if rate := result.get("images_per_second"):
                result["seconds_per_epoch"] = EPOCH / rate
                if "bare" in results:
                    result["ratio"] = results["bare"]["images_per_second"] / rate
            for name, value in result.items():
                table.setdefault(loop, {}).setdefault(name, []).append(value)
    return table


def row(loop: str, values: dict[str, list[float]]) -> str:
    """One line of the table: medians, and the range in brackets."""

    def shown(name: str, form: str, unit: float = 1.0, spread: bool = False) -> str:
        if name not in values:
            return "–"
        ends = f" ({min(values[name]) / unit:{form}} to {max(values[name]) / unit:{form}})" if spread else ""
        return f"{median(values[name]) / unit:{form}}{ends}"

    seconds, ratio = (shown(name, ".3g", spread=True) for name in ("seconds_per_epoch", "ratio"))
    rest = f"{shown('startup', '.1f')} | {shown('first_epoch', '.1f')} | {shown('memory', ',.0f', 2**20)}"
    return f"| {LABELS[loop]} | {shown('images_per_second', ',.0f')} | {seconds} | {ratio} | {rest} |"


def draw(table: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """Draw the ratios as bars: medians, with lines for the range."""
    from matplotlib.figure import Figure

    bars = [(LABELS[loop].replace("`", ""), values["ratio"]) for loop, values in table.items() if "ratio" in values]
    names, ratios = zip(*reversed(bars), strict=True)
    middle = [median(values) for values in ratios]
    ends = [[m - min(v) for m, v in zip(middle, ratios, strict=True)],
            [max(v) - m for m, v in zip(middle, ratios, strict=True)]]  # fmt: skip
    figure = Figure(figsize=(8, 0.6 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colors = ["C1" if name.startswith("python train.py") else "C0" for name in names]
    axes.barh(names, middle, xerr=ends, capsize=3, color=colors)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("seconds per epoch, relative to the bare loop")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=96)


def named(text: str) -> list[str]:
    """Parse the names of loops, with commas between them."""
    loops = text.split(",")
    if unknown := [loop for loop in loops if loop not in LABELS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(LABELS)}")
    return loops


def count(text: str) -> int:
    """Parse a whole number above zero."""
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
    parser.add_argument("--compile", action="store_true", help="compile the bare loop's model, not that of train.py")
    parser.add_argument("--loops", type=named, default=list(LABELS), help=f"some of {','.join(LABELS)}")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--epochs", type=count, default=1, help="timed epochs of each round, after one to warm up")
    parser.add_argument("--images", type=count, default=EPOCH, help="per epoch, cut to a multiple of twelve batches")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="the folder that holds MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("logs/speed"), help="output files, without .json and .png")
    names = {action.dest: action.option_strings[0] for action in parser._actions if action.nargs is None}
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    o = parser.parse_intermixed_args([names.get(key, key) + equals + value for key, equals, value in pairs])
    if o.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"device=cuda, but torch {torch.__version__} finds no GPU on this machine")
    whole = 12 * o.batch_size  # so no loop has a smaller last batch, neither in training nor in validation
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
    print(*(row(loop, values) for loop, values in table.items()), sep="\n")
    if {"train", "imports"} <= table.keys():
        first, least = (median(table[loop]["startup"]) for loop in ("train", "imports"))
        print(f"\ntime to the first step: {first / least:.2f} times that of importing torch and lightning")
    if "bare" in table:
        draw(table, title, o.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
