"""A small classifier of images. Its features are the space in which the samples of a model are compared with images.

    p(y | x) = softmax(W f(x) + b),   f(x) in R^64: the last maps of a convolutional network, averaged over places

The package has the weights of a classifier of MNIST's digits, `digits.safetensors`, and their record, `digits.json`.
For other images, classify.py trains one. It learns from grey levels and from binary draws of them, because a model's
samples can be of either kind.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaelab.errors import UserError
from vaelab.files import write_atomically
from vaelab.noise import fixed_noise

DIGITS = Path(__file__).with_name("digits.safetensors")
NAMES = ("MNIST", "MNIST-5k", "BinarizedMNIST", "QMNIST", "EMNIST-digits", "EMNIST-mnist")  # data sets of such digits
LEAST = 8  # pixels of height and width
ANGLE, SCALE, SHIFT = 0.2, 0.1, 0.15  # most rotation in radians, change of size, and shift in halves of the image
DRAWN = 0.5  # the share of training images that are binary draws


class Classifier(nn.Module):
    """Logits of p(y | x), (N, classes), of images x (N, C, H, W) in [0, 1], with H and W at least 8."""

    def __init__(self, channels: int = 1, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.layers = nn.Sequential(
            layer(channels, width, 5, 2), layer(width, width), nn.MaxPool2d(2),
            layer(width, 2 * width), layer(2 * width, 2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.linear = nn.Linear(2 * width, num_classes)
        self.name = ""  # in protocols: the data set that it was trained on, and the start of its file's SHA-256

    def features(self, x: Tensor) -> Tensor:
        """f(x) of images (N, C, H, W): (N, 2 width)."""
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


def augmented(x: Tensor) -> Tensor:
    """Images (N, C, H, W), slightly rotated, resized and shifted. A random half of them are binary draws."""
    count, device = len(x), x.device
    angle, size, right, down = (2 * torch.rand(4, count, device=device) - 1).unbind()
    angle, size = ANGLE * angle, 1 + SCALE * size
    rows = (torch.stack([angle.cos(), -angle.sin(), SHIFT * right], -1),
            torch.stack([angle.sin(), angle.cos(), SHIFT * down], -1))  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1) * size.view(-1, 1, 1), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False).clamp(0, 1)
    return torch.where(torch.rand(count, 1, 1, 1, device=device) < DRAWN, moved.bernoulli(), moved)


def fit(
    images: Tensor,  # uint8 (N, C, H, W)
    labels: Tensor,  # whole numbers from 0, (N,)
    epochs: int = 10,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda _: None,  # called after each step, with its number of images
    batch_size: int = 128,
) -> Classifier:
    """Train a classifier on the device of the images, by AdamW with one cycle of the learning rate.

    No image is held back: the last weights are the result. The seed alone decides the noise.
    """
    device = images.device
    with fixed_noise(device, seed):
        classifier = Classifier(images.shape[1], int(labels.max()) + 1).to(device)
        optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
        batch_size = min(batch_size, len(images))
        steps = epochs * (len(images) // batch_size)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps + 1)
        for _ in range(epochs):
            order = torch.randperm(len(images), device=device)
            for index in order.split(batch_size)[: len(images) // batch_size]:
                x = augmented(images[index].float() / 255)
                loss = F.cross_entropy(classifier(x), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                progress(len(index))
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    """The share of uint8 images (N, C, H, W) whose class is right: as grey levels, as binary draws, cut at one half."""
    right = {"grey levels": 0, "binary draws": 0, "threshold": 0}
    with fixed_noise(images.device, seed):
        for x, y in zip(images.split(1000), labels.split(1000), strict=True):
            x = x.float() / 255
            for kind, pixels in zip(right, (x, x.bernoulli(), (x > 0.5).float()), strict=True):
                right[kind] += int((classifier(pixels).argmax(1) == y).sum())
    return {kind: count / len(labels) for kind, count in right.items()}


def save(classifier: Classifier, path: Path, record: dict[str, Any]) -> None:
    """Write the weights, and beside them a record with their SHA-256. The record comes last."""
    from safetensors.torch import save

    content = save({name: weight.cpu().contiguous() for name, weight in classifier.state_dict().items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    whole = {**record, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(path.with_suffix(".json"), (json.dumps(whole, indent=2) + "\n").encode())


def load(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier in a file, in evaluation mode on the CPU, and its record.

    Raises UserError for a file that is damaged, and for a record that is damaged or missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    mend = f"{path} or the record beside it is damaged or missing: delete both, and classify.py trains it again"
    try:
        content, record = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise UserError(mend)
        weights = load(content)
        classes, width = weights["linear.weight"].shape
        classifier = Classifier(weights["layers.0.0.weight"].shape[1], classes, width // 2)
        classifier.load_state_dict(weights)
        classifier.name = f"{record['dataset']} {record['sha256'][:12]}"
    except (SafetensorError, FileNotFoundError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UserError(mend) from error
    return classifier.eval(), record


def lacking(data: Any) -> str | None:
    """What the images of a data module, which is set up, lack for a classifier, or None."""
    if any(data.splits[split][1] is None for split in ("train", "test")):
        return "the images have no labels"
    if min(data.image_shape[1:]) < LEAST:
        height, width = data.image_shape[1:]
        return f"the images have {height} x {width} pixels, fewer than {LEAST} x {LEAST}"
    return None


def place(data: Any, folder: Path) -> Path:
    """The file of the classifier of a data set: that of the package for digits like MNIST's, or one below `folder`.

    Its name there depends on the training images and labels, as the files of the data set give them. See `lacking`.
    """
    if data.name in NAMES and data.image_shape == (1, 28, 28):
        return DIGITS
    name, labelled, *_ = data.read()
    content = hashlib.sha256()
    for part in labelled:
        content.update(str(list(part.shape)).encode() + part.contiguous().numpy().tobytes())
    return folder / "classifiers" / f"{name}-{content.hexdigest()[:16]}.safetensors"
