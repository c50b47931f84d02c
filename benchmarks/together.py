"""Milliseconds for a step of M models together, of one model, and of M models in turn: medians of interleaved rounds.

    python benchmarks/together.py [--members 16] [--hidden 32 400] [--device cuda]

A step is loss, gradient and Adam's update of models 784-hidden-20 for 128 binary images, without Lightning.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from vaelab import runs
from vaelab.extensions.stack import Member, Stack
from vaelab.extensions.together import Together
from vaelab.training import threads
from vaelab.training.rehearsal import build_optimizer

CONFIGS = Path(__file__).parent.parent / "configs"


def build(together: bool, count: int, hidden: int, x: Tensor) -> tuple[Callable[[], None], list[Member]]:
    """A step on images x (B, 1, 28, 28), and its members, which differ in beta and learning rate."""
    members = []
    for i in range(1, 1 + count):
        own = [f"objective.beta={i}", f"optimizer.lr={1e-3 / i}", f"model.encoder.hidden=[{hidden}]"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", [*own, f"model.decoder.hidden=[{hidden}]"])
        members.append(runs.build(cfg, Member))
    module = Together(members).to(x.device)  # it rehearses on the CPU, as in a sweep
    optimizers = [build_optimizer(member.optimizer, member.model, member.objective) for member in members]
    batch = (x, torch.zeros(len(x)))
    module.stack = Stack(members)
    if together:
        module.stack.share(members)

    def in_turn() -> None:
        for member, optimizer in zip(members, optimizers, strict=True):
            optimizer.zero_grad()
            member(batch, module.step)[0].backward()
            optimizer.step()

    def at_once() -> None:
        for weight in module.stack.weights.values():
            weight.grad = None
        module.stack(batch, module.step)[0].sum().backward()
        module.stack.split_gradients(members)
        for optimizer in optimizers:
            optimizer.step()

    return at_once if together else in_turn, members


def milliseconds(step: Callable[[], None], steps: int, wait: Callable[[], None]) -> float:
    step()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - started) / steps * 1e3


def compare(members: int, hidden: int, device: str, steps: int, rounds: int) -> str:
    """Measure one row of the table."""
    x = (torch.rand(128, 1, 28, 28, device=device) < 0.13).float()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    ways = [build(together, count, hidden, x)[0] for together, count in ((False, 1), (False, members), (True, members))]
    times = [[milliseconds(way, steps, wait) for way in ways] for _ in range(rounds)]
    one, turn, batched = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [round_[1] / round_[2] for round_ in times]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {members} | {hidden} | {one:.2f} | {turn:.2f} | {batched:.2f} | {batched / one:.1f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 400])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    o = parser.parse_args()
    if min(o.members, o.steps, o.rounds, *o.hidden) < 1:
        parser.error("whole numbers above zero are needed")
    if o.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda, but torch {torch.__version__} finds no GPU on this machine")
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_flush_denormal(True)
    threads.tune(torch.device(o.device))  # as train.py does
    name = torch.cuda.get_device_name() if o.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; ms per step\n")
    print("| members | hidden | one | in turn | together | together / one | in turn / together (range over rounds) |")
    print("|---|---|---|---|---|---|---|")
    for hidden in o.hidden:
        print(compare(o.members, hidden, o.device, o.steps, o.rounds), flush=True)


if __name__ == "__main__":
    main()
