"""The loops that `python benchmarks/speed.py` compares. One process, `python benchmarks/loops.py JSON`, runs one loop.

Each loop trains on the images in FOLDER/data and writes its times to FOLDER/times.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIGS = Path(__file__).parent.parent / "configs"
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Stopwatch:
    """Records the time of the first step, of each start of an epoch and of the end, and the peak memory in bytes."""

    def __init__(self, folder: Path, device: str) -> None:
        self.file, self.cuda = folder / "times.json", device == "cuda"
        self.first = 0.0
        self.laps: list[float] = []

    def lap(self) -> None:
        """Record the time and write the file. Call this at the start of each epoch and at the end of the last one."""
        self._wait()
        self.laps.append(time.perf_counter())
        status = Path("/proc/self/status").read_text()  # ru_maxrss can be the parent's
        memory = torch.cuda.max_memory_allocated() if self.cuda else int(status.split("VmHWM:")[1].split()[0]) * 1024
        times = {"first": self.first, "laps": self.laps, "memory": memory, "threads": torch.get_num_threads()}
        self.file.write_text(json.dumps(times))

    def step(self) -> None:
        if not self.first:
            self._wait()
            self.first = time.time()

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def clock(folder: str, device: str) -> Any:
    """A stopwatch as a Lightning callback. It is also for train.py: callbacks.clock._target_=loops.clock."""
    from lightning.pytorch.callbacks import LambdaCallback

    watch = Stopwatch(Path(folder), device)

    def lap(*_: Any) -> None:
        watch.lap()

    def first(*_: Any) -> None:
        watch.step()
        del callback.on_train_batch_end

    callback = LambdaCallback(on_train_epoch_start=lap, on_train_batch_end=first, on_train_end=lap)
    return callback


class MLP(nn.Module):
    """A VAE in plain torch: images (B, 1, 28, 28) -> loss, distortion (reconstruction) and rate (KL), nats an image."""

    def __init__(self, logits: bool) -> None:
        super().__init__()
        self.logits = logits  # otherwise probabilities, as in tutorials
        self.hidden, self.moments = nn.Linear(784, 400), nn.Linear(400, 40)
        self.code, self.pixels = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images.flatten(1)
        mean, log_variance = self.moments(F.relu(self.hidden(x))).float().chunk(2, 1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        pixels = self.pixels(F.relu(self.code(z))).float()
        if self.logits:
            distortion = F.binary_cross_entropy_with_logits(pixels, x, reduction="sum") / len(x)
        else:
            distortion = F.binary_cross_entropy(torch.sigmoid(pixels), x, reduction="sum") / len(x)
        rate = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp()) / len(x)
        return distortion + rate, distortion, rate


class Parts(nn.Module):
    """The model and objective of VAE Lab: images (B, 1, 28, 28) -> mean loss, and the other terms of each image."""

    def __init__(self, overrides: list[str]) -> None:
        from hydra import compose, initialize_config_dir
        from hydra.utils import instantiate

        super().__init__()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", overrides)
        self.model, self.objective = (instantiate(part, _convert_="all") for part in (cfg.model, cfg.objective))
        torch.distributions.Distribution.set_default_validate_args(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        terms = self.objective(self.model, x)
        return terms.pop("loss").mean(), *terms.values()


def network(o: argparse.Namespace, logits: bool = True) -> nn.Module:
    return (MLP(logits) if o.model == "mlp" and o.loop != "parts" else Parts(o.overrides)).to(o.device)


def autocast(o: argparse.Namespace) -> torch.autocast:
    return torch.autocast(o.device, torch.bfloat16, enabled=o.precision == "bf16")


def digits(o: argparse.Namespace) -> Tensor:
    """The training images, uint8 (N, 1, 28, 28)."""
    content = bytearray((o.folder / "data/MNIST/raw/train-images-idx3-ubyte").read_bytes())
    return torch.frombuffer(content, dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)


def train(o: argparse.Namespace, watch: Stopwatch, epoch: Callable[[], Iterable], step: Callable[[Any], None]) -> None:
    """Call `step` on each batch of the epochs: one to warm up, then those that are timed."""
    for _ in range(o.epochs + 1):
        watch.lap()
        for batch in epoch():
            step(batch)
            watch.step()
    watch.lap()


def bare(o: argparse.Namespace, watch: Stopwatch) -> None:
    net = network(o)
    score = torch.compile(net) if o.compile else net
    thresholds = digits(o).to(o.device, torch.int16).mul_(257).sub_(2**15)  # it wraps to -2^15 ... 2^15 - 1
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True, capturable=o.loop == "graph")

    def step(index: Tensor) -> None:
        pixels = thresholds.index_select(0, index)
        noise = torch.empty(pixels.numel() // 4, dtype=torch.int64, device=o.device).random_(-(2**63), None)
        x = (noise.view(torch.int16).view_as(pixels) < pixels).float()  # 64 bits give four draws, the fastest way
        with autocast(o):
            loss = score(x)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    task = captured(step, torch.arange(o.batch_size, device=o.device)) if o.loop == "graph" else step
    train(o, watch, lambda: torch.randperm(o.images, device=o.device).split(o.batch_size), task)


def captured(step: Callable[[Tensor], None], index: Tensor) -> Callable[[Tensor], None]:
    """The step as one CUDA graph, captured after three steps to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(index)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(index)

    def replay(batch: Tensor) -> None:
        index.copy_(batch)
        graph.replay()

    return replay


def products(o: argparse.Namespace, watch: Stopwatch) -> None:
    net, tasks = network(o), list[Callable[[], object]]()

    def add(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        needed = inputs[0].requires_grad  # the first layer's input needs no gradient
        x, w, g = (part.detach().to(torch.bfloat16 if o.precision == "bf16" else torch.float32)
                   for part in (inputs[0], layer.weight, output))  # fmt: skip
        if isinstance(layer, nn.Linear):
            x, g = x.flatten(0, -2), g.flatten(0, -2)
            tasks.extend([lambda: x @ w.T, lambda: g.T @ x] + [lambda: g @ w] * needed)
            return
        transposed = isinstance(layer, nn.ConvTranspose2d)
        how = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups)
        forward, backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
        tasks.append(lambda: forward(x, w, None, *how))
        tasks.append(lambda: backward(g, x, w, None, *how, [needed, True, False]))

    for layer in net.modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_hook(add)
    net((torch.rand(o.batch_size, 1, 28, 28, device=o.device) < 0.13).float())

    @torch.inference_mode()
    def step(_: Tensor) -> None:
        for product in tasks:
            product()

    nothing = torch.zeros((), device=o.device)
    task = captured(step, nothing) if o.device == "cuda" else step
    train(o, watch, lambda: [nothing] * (o.images // o.batch_size), task)


def loader(o: argparse.Namespace) -> Any:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    images = datasets.MNIST(str(o.folder / "data"), train=True, transform=transforms.ToTensor())
    return DataLoader(images, batch_size=o.batch_size, shuffle=True)


def tutorial(o: argparse.Namespace, watch: Stopwatch) -> None:
    net, batches, total = network(o, logits=False), loader(o), 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(batch: list[Tensor]) -> None:
        nonlocal total
        optimizer.zero_grad()
        loss = net(batch[0].to(o.device))[0]
        loss.backward()
        total += loss.item()
        optimizer.step()

    train(o, watch, lambda: batches, step)


def lightning(o: argparse.Namespace, _: Stopwatch) -> None:
    import lightning as L

    class Tutorial(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(o, logits=False)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss, first, second, *_ = self.net(batch[0])
            self.log("train_loss", loss)
            self.log("train_reconstruction", first.mean())
            self.log("train_kl", second.mean())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    where: dict[str, Any] = {"accelerator": "gpu" if o.device == "cuda" else "cpu", "devices": 1}
    trainer = L.Trainer(max_epochs=o.epochs + 1, callbacks=[clock(str(o.folder), o.device)],
                        default_root_dir=o.folder, **where)  # fmt: skip
    trainer.fit(Tutorial(), loader(o))


def pythae(o: argparse.Namespace, watch: Stopwatch) -> None:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Clock(TrainingCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.lap()

        on_epoch_end = on_train_begin  # the next epoch begins at once

        def on_train_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce"))
    encoder, decoder = model.encoder, model.decoder  # 784-512-20 by default
    encoder.layers[0][0], decoder.layers[0][0] = nn.Linear(784, 400), nn.Linear(20, 400)
    encoder.embedding, encoder.log_var, decoder.layers[1][0] = (nn.Linear(400, size) for size in (20, 20, 784))
    x = digits(o).float() / 255
    config = BaseTrainerConfig(
        output_dir=str(o.folder), num_epochs=o.epochs + 1, per_device_train_batch_size=o.batch_size, learning_rate=1e-3,
        no_cuda=o.device == "cpu", keep_best_on_train=True,
    )  # fmt: skip
    BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config, callbacks=[Clock()]).train()


def imports(_: argparse.Namespace, watch: Stopwatch) -> None:
    import lightning  # noqa: F401

    watch.step()
    watch.lap()


LOOPS = {"bare": bare, "tuned": bare, "graph": bare, "parts": bare, "tutorial": tutorial, "lightning": lightning,
         "pythae": pythae, "products": products, "imports": imports}  # fmt: skip


if __name__ == "__main__":
    options = argparse.Namespace(**json.loads(sys.argv[1]))
    options.folder = Path(options.folder)
    if options.loop in ("tuned", "graph", "parts", "products"):
        from vaelab.training import threads

        torch.set_flush_denormal(True)
        threads.tune(torch.device(options.device))  # as train.py does
    LOOPS[options.loop](options, Stopwatch(options.folder, options.device))
