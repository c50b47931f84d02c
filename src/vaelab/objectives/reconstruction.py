"""What an autoencoder optimises: loss = -log p(x | z) + penalties on code and decoder. It bounds nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vaelab import checks
from vaelab.interfaces import GenerativeModel
from vaelab.objectives.objective import Objective


class Reconstruction(Objective):
    """loss = distortion + weighted penalties, in nats per image: distortion is -log p(x | z).

    Reported beside them are `squared_error`, ||x - E[x | z]||^2 in squared pixel values, and each penalty that is
    switched on, without its weight; neither elbo nor rate, which a point mass has not.

    * code_weight, l2 and gradient_penalty weigh 1/2 ||z||^2 (`code`), the decoder's squared weights without biases, and
      ||d E[x | z] / dz||_F^2, which one random probe an image estimates, in training alone, because validation runs
      without gradients: Ghosh et al. 2020, https://arxiv.org/abs/1903.12436
    * spectral weighs the squared largest singular values of the decoder's matrices, kernels flattened to (first axis,
      rest): Yoshida & Miyato 2017, https://arxiv.org/abs/1705.10941
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
    """Codes (1, B, D) of all layers -> (B,)."""
    return torch.stack([z.square().sum((0, 2)) for z in codes]).sum(0)


def _probe_jacobian(mean: Tensor, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """J'v of J = d mean / dz and independent signs v, for which E ||J'v||^2 = ||J||_F^2: Hutchinson's estimator."""
    probe = torch.randn_like(mean).sign()
    return torch.autograd.grad((mean * probe).sum(), codes, create_graph=True)


def _spectral_norm(matrix: Tensor) -> Tensor:
    """u'Wv at the leading singular vectors u and v; held fixed, they leave its gradient uv' exact."""
    with torch.autocast(matrix.device.type, enabled=False):  # bfloat16 has no singular vectors
        with torch.no_grad():
            u, _, v = torch.svd_lowrank(matrix, q=min(6, *matrix.shape), niter=4)
        return u[:, 0] @ matrix @ v[:, 0]
