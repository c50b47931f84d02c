"""A model that cannot fit into the memory of this machine is refused before it takes any."""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Size
from torch.overrides import TorchFunctionMode

from vaelab.errors import UserError

# Bytes. Windows has no sysconf
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
MOST_TENSORS = 20_000  # of a model: ten thousand layers


class Fits(TorchFunctionMode):
    """A context in which a model is built. It counts the bytes of weights before torch takes them.

    Layers make their weights with torch.empty, and their sizes are added up. Raises UserError for weights, or for any
    other tensor, of more bytes than the machine has, and for a model of very many layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.tensors = 0, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            asked = _bytes(args, kwargs)
            if func is torch.empty:
                self.weights, self.tensors = self.weights + asked, self.tensors + 1
            needed = max(self.weights, asked)
            if 2 * needed > MEMORY:  # the gradients, or the weights that are read, take as much again
                sizes = f"{2 * needed / 1e9:.6g} GB or more, but this machine has {MEMORY / 1e9:.3g} GB of memory"
                raise UserError(f"the model takes {sizes}: choose smaller sizes")
            if self.tensors > MOST_TENSORS:
                raise UserError(f"the model has more than {MOST_TENSORS:,} weights and biases: choose fewer layers")
        return func(*args, **kwargs)


def _bytes(args: Any, kwargs: dict[str, Any]) -> int:
    """The bytes of the tensor that a factory of torch would make, or 0 for sizes that torch refuses itself."""
    sizes = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple | Size) else args)
    if not all(type(size) is int and size >= 0 for size in sizes):
        return 0
    kind = kwargs.get("dtype") or torch.get_default_dtype()
    return math.prod(sizes) * getattr(kind, "itemsize", 1)  # a type of Python has none
