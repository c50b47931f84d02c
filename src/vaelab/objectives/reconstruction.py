"""What an autoencoder optimises: loss = -log p(x | z) + penalties on code and decoder. It bounds nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaelab.objectives.objective import Objective
from vaelab.trace import GenerativeModel, Trace


def code(model: GenerativeModel, trace: Trace) -> Tensor:  # noqa: ARG001
    """1/2 ||z||^2, (B,)."""
    return 0.5 * torch.stack([latent.z.square().sum(-1).mean(0) for latent in trace.latents]).sum(0)


def l2(model: GenerativeModel, trace: Trace) -> Tensor:  # noqa: ARG001
    """Sum of the decoder's squared weights, biases left out: 0-dim."""
    return torch.stack([weight.square().sum() for weight in _weights(model)]).sum()


def gradient_penalty(model: GenerativeModel, trace: Trace) -> Tensor:  # noqa: ARG001
    """||J||_F^2 of J = d E[x | z] / dz, (B,), by one Hutchinson probe: E ||J'v||^2 over v of independent signs."""
    mean = trace.likelihood.mean
    probe = torch.randn_like(mean).sign()
    gradients = torch.autograd.grad((mean * probe).sum(), [latent.z for latent in trace.latents], create_graph=True)
    return torch.stack([gradient.square().sum(-1).mean(0) for gradient in gradients]).sum(0)


def spectral(model: GenerativeModel, trace: Trace) -> Tensor:  # noqa: ARG001
    """sum over the decoder's weight matrices of sigma_max^2: 0-dim; kernels are flattened to (first axis, rest)."""
    weights = _weights(model)
    with torch.autocast(weights[0].device.type, enabled=False):  # the singular vectors need float32
        return torch.stack([_largest_singular_value(weight).square() for weight in weights]).sum()


PENALTIES: dict[str, Callable[[GenerativeModel, Trace], Tensor]] = {
    penalty.__name__: penalty for penalty in (code, l2, gradient_penalty, spectral)
}


class Reconstruction(Objective):
    """loss = distortion + weighted penalties, in nats per image: distortion is -log p(x | z).

    Reported beside them are `squared_error`, ||x - E[x | z]||^2 in squared pixel values, and each penalty that is
    switched on, without its weight; neither elbo nor rate, which a point mass has not.

    Args:
        code_weight, l2, gradient_penalty: weights of the regularised autoencoder's 1/2 ||z||^2, squared decoder
            weights and ||d E[x | z] / dz||_F^2, the last one estimated, and in training alone, since validation has
            no gradients: Ghosh et al. 2020, https://arxiv.org/abs/1903.12436
        spectral: weight of the decoder matrices' squared spectral norms: Yoshida & Miyato 2017,
            https://arxiv.org/abs/1705.10941

    Raises:
        ValueError: a weight is no number, at least zero.
    """

    def __init__(
        self, code_weight: float = 0.0, l2: float = 0.0, gradient_penalty: float = 0.0, spectral: float = 0.0
    ) -> None:
        super().__init__()
        weights = {"code_weight": code_weight, "l2": l2, "gradient_penalty": gradient_penalty, "spectral": spectral}
        for name, weight in weights.items():
            if type(weight) not in (int, float) or not 0 <= weight < float("inf"):
                raise ValueError(f"{name}={weight}: the weight of a penalty is a number, at least zero")
        self.weights = {name: weight for name, weight in zip(PENALTIES, weights.values(), strict=True) if weight}

    def forward(
        self,
        model: GenerativeModel,
        x: Tensor,
        y: Tensor | None = None,
        step: Tensor | None = None,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        trace = model(x, y)
        weights = dict(self.weights)
        if not trace.latents[0].z.requires_grad:
            weights.pop("gradient_penalty", None)
        penalties = {name: PENALTIES[name](model, trace).expand(len(x)) for name in weights}  # (B,) each
        distortion = -trace.likelihood.log_prob(x).mean(0)  # (B,)
        squared_error = (x - trace.likelihood.mean).square().flatten(2).sum(2).mean(0)  # (B,)
        loss = distortion + sum(weight * penalties[name] for name, weight in weights.items())
        return {"loss": loss, "distortion": distortion, "squared_error": squared_error, **penalties}


def _weights(model: GenerativeModel) -> list[Tensor]:
    """The decoder's weight matrices and kernels."""
    return [parameter for parameter in model.decoder.parameters() if parameter.dim() > 1]


def _largest_singular_value(weight: Tensor) -> Tensor:
    """u'Wv at the leading singular vectors, held fixed: by the envelope theorem its gradient u v' is the exact one."""
    matrix = weight.flatten(1)
    with torch.no_grad():
        u, _, v = torch.svd_lowrank(matrix, q=min(6, *matrix.shape), niter=4)
    return u[:, 0] @ matrix @ v[:, 0]
