"""Likelihoods: decoder parameters (..., P*C, H, W) -> p(x | z) with batch shape (...) and event shape (C, H, W).

`num_parameters` is P. Log-probabilities are summed over pixels and computed in float32, under autocast too.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent, Normal


class Bernoulli(nn.Module):
    """p(x | z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i), with p = sigmoid(parameters).

    A density for binary pixels only. On grey levels its "nats" have an entropy floor (45.5 per MNIST test image) and
    compare with no other likelihood's.
    """

    num_parameters = 1

    def forward(self, parameters: Tensor) -> Distribution:
        return Independent(TorchBernoulli(logits=parameters.float()), 3)


class Gaussian(nn.Module):
    """p(x | z) = N(x; mean, scale^2 I), with mean = parameters or sigmoid(parameters).

    With scale = sqrt(1/2), -log p(x | z) is the summed squared error plus (n/2) log pi for n pixels.

    Args:
        scale: the standard deviation in units of x, or "learned" for one trained scalar that starts at 1.
        mean: "identity" or "sigmoid".

    Raises:
        ValueError: scale is not above zero, or mean is neither of the two.
    """

    num_parameters = 1

    def __init__(self, scale: float | str = 1.0, mean: str = "identity") -> None:
        super().__init__()
        if mean not in ("identity", "sigmoid"):
            raise ValueError(f"the Gaussian likelihood's mean is identity or sigmoid, not {mean}")
        if scale != "learned" and not (isinstance(scale, int | float) and scale > 0):
            raise ValueError(f"the Gaussian likelihood's scale is a number above zero or learned, not {scale}")
        self.mean = mean
        log_scale = torch.zeros(()) if isinstance(scale, str) else torch.tensor(float(scale)).log()
        if scale == "learned":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale, persistent=False)

    def forward(self, parameters: Tensor) -> Distribution:
        parameters = parameters.float()
        mean = parameters if self.mean == "identity" else torch.sigmoid(parameters)
        return Independent(Normal(mean, self.log_scale.exp()), 3)
