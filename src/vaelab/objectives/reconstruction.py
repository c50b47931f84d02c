"""The objective of an autoencoder, which is not a bound on log p(x). The distortion is its reconstruction term."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaelab import checks
from vaelab.interfaces import GenerativeModel
from vaelab.objectives.objective import Objective


class Reconstruction(Objective):
    """The loss of an autoencoder, in nats per image: distortion + weighted penalties, with distortion = -log p(x | z).

    Each argument is the weight of one penalty, and 0 switches it off. The first three are from Ghosh et al. 2020,
    https://arxiv.org/abs/1903.12436, the last is from Yoshida & Miyato 2017, https://arxiv.org/abs/1705.10941.
    Penalties are reported without their weights, and so is `squared_error`, ||x - E[x | z]||^2 in squared pixel values.

    * code_weight: 1/2 ||z||^2, reported as `code`
    * l2: the sum of the decoder's squared weights, without biases
    * gradient_penalty: ||d E[x | z] / dz||_F^2, estimated with one random probe per image, only where gradients exist
    * spectral: the squared largest singular values of the decoder's matrices, kernels flattened to (first axis, rest)
    """

    def __init__(
        self, code_weight: float = 0.0, l2: float = 0.0, gradient_penalty: float = 0.0, spectral: float = 0.0
    ) -> None:
        super().__init__()
        weights = {"code_weight": code_weight, "l2": l2, "gradient_penalty": gradient_penalty, "spectral": spectral}
        checks.number(**weights)
        self.hold(**weights)
        self.penalties = [name for name, weight in weights.items() if weight]  # those that are switched on

    def forward(
        self, model: GenerativeModel, x: Tensor, y: Tensor | None = None, step: Tensor | None = None
    ) -> dict[str, Tensor]:
        trace = self.trace(model, x, y)
        mean, codes = trace.likelihood.mean, [latent.z for latent in trace.latents]  # (1, B, C, H, W), (1, B, D) each
        matrices = [weight.flatten(1) for weight in model.decoder.parameters() if weight.dim() > 1]
        penalty = {
            "code_weight": lambda: 0.5 * _squared_norm(codes),
            "l2": lambda: torch.stack([matrix.square().sum() for matrix in matrices]).sum(),
            "gradient_penalty": lambda: _squared_norm(_probe_jacobian(mean, codes)),
            "spectral": lambda: torch.stack([_spectral_norm(matrix).square() for matrix in matrices]).sum(),
        }
        active = [name for name in self.penalties if name != "gradient_penalty" or codes[0].requires_grad]
        penalties = {name: penalty[name]().expand(len(x)) for name in active}  # (B,) each
        distortion = -trace.likelihood.log_prob(x).mean(0)  # (B,)
        squared_error = (x - mean).square().flatten(2).sum(2).mean(0)  # (B,)
        loss = distortion + sum(getattr(self, name) * value for name, value in penalties.items())
        named = {name.removesuffix("_weight"): value for name, value in penalties.items()}
        return {"loss": loss, "distortion": distortion, "squared_error": squared_error, **named}


def _squared_norm(codes: Sequence[Tensor]) -> Tensor:
    """||z||^2 of each image, (B,), summed over the codes (1, B, D) of all layers."""
    return torch.stack([z.square().sum((0, 2)) for z in codes]).sum(0)


def _probe_jacobian(mean: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """J'v for J = d mean / dz and random signs v. Hutchinson's estimator is E ||J'v||^2 = ||J||_F^2."""
    probe = torch.randn_like(mean).sign()
    return torch.autograd.grad((mean * probe).sum(), codes, create_graph=True)


def _spectral_norm(matrix: Tensor) -> Tensor:
    """The largest singular value u'Wv. Its gradient uv' is exact although the vectors u and v are held fixed."""
    with torch.autocast(matrix.device.type, enabled=False):  # torch has no singular vectors in bfloat16
        with torch.no_grad():
            u, _, v = torch.svd_lowrank(matrix, q=min(6, *matrix.shape), niter=4)
        return u[:, 0] @ matrix @ v[:, 0]
