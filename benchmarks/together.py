"""A step of M models trained together, of one, and of M in turn: milliseconds, medians of interleaved rounds.

    python benchmarks/together.py [--members 16] [--hidden 32 400] [--device cuda]

A step is loss, gradient and Adam's update of 784-hidden-20 at batches of 128 binary images, without Lightning.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal
from vaelab.training.together import Member, Stack, Together


def build(count: int, hidden: int, device: str) -> tuple[list[Member], list[torch.optim.Optimizer]]:
    """Members that differ in beta and learning rate, and their optimisers."""
    networks = [partial(network, hidden=[hidden]) for network in (MLPEncoder, MLPDecoder)]
    members = []
    for i in range(count):
        model = VAE(20, (1, 28, 28), networks[0], DiagonalGaussian, StandardNormal, networks[1], Bernoulli())
        adam = partial(torch.optim.Adam, lr=1e-3 / (1 + i), fused=True)
        members.append(Member(model, ELBO(beta=1.0 + i), adam).to(device))
    return members, [member._build_optimizer() for member in members]


def in_turn(count: int, hidden: int, device: str, x: torch.Tensor) -> Callable[[], None]:
    members, optimizers = build(count, hidden, device)

    def step() -> None:
        for member, optimizer in zip(members, optimizers, strict=True):
            optimizer.zero_grad()
            member((x, None), None)["loss"].mean().backward()
            optimizer.step()

    return step


def together(count: int, hidden: int, device: str, x: torch.Tensor) -> Callable[[], None]:
    members, optimizers = build(count, hidden, device)
    module = Together(members)
    module.stack = Stack(members)
    module.stack.share(members)

    def step() -> None:
        for weight in module.stack.weights.values():
            weight.grad = None
        module.stack((x, None), None)["loss"].mean(1).sum().backward()
        module.on_before_optimizer_step(None)
        for optimizer in optimizers:
            optimizer.step()

    return step


def milliseconds(step: Callable[[], None], steps: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    step()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - started) / steps * 1e3


def compare(members: int, hidden: int, device: str, steps: int, rounds: int) -> str:
    """One row of the table."""
    x = (torch.rand(128, 1, 28, 28, device=device) < 0.13).float()
    ways = [in_turn(1, hidden, device, x), in_turn(members, hidden, device, x), together(members, hidden, device, x)]
    times = [[milliseconds(way, steps, device) for way in ways] for _ in range(rounds)]
    one, turn, batched = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [round_[1] / round_[2] for round_ in times]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    return f"| {members} | {hidden} | {one:.2f} | {turn:.2f} | {batched:.2f} | {batched / one:.1f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 400])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    o = parser.parse_args()
    torch.distributions.Distribution.set_default_validate_args(False)
    name = torch.cuda.get_device_name() if o.device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; ms a step\n")
    print("| members | hidden | one | in turn | together | together / one | in turn / together (over rounds) |")
    print("|---|---|---|---|---|---|---|")
    for hidden in o.hidden:
        print(compare(o.members, hidden, o.device, o.steps, o.rounds), flush=True)


if __name__ == "__main__":
    main()
