"""Objectives for independent latent dimensions: they weigh the parts of the rate (the KL term), or add a penalty.

    E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d))

The parts are mutual information, total correlation and dimension-wise KL; q(z) = E_x q(z | x) is the aggregate
posterior. The distortion is the reconstruction term. Both classes raise PartsError unless the model has one latent,
and its posterior and prior are factorised Gaussians.
"""

import math

import torch
from torch import Tensor

from vaelab import checks
from vaelab.objectives.objective import Objective, elbo_terms, only_latent
from vaelab.trace import Trace


class BetaTC(Objective):
    """beta-TC-VAE: distortion + alpha * mutual information + beta * total correlation + gamma * dimension-wise KL.

    The three parts are estimated with one sample per image, from a batch of B of the N training images, by
    log q(z_i) = log sum_j w_ij q(z_i | x_j): Chen et al. 2018, https://arxiv.org/abs/1802.04942

    * weighted: w_ij = 1 / (N B). It is biased. If the batch is the whole data set, the bias is a constant.
    * stratified: w_ii = 1 / N and w_ij = (N - 1) / (N (B - 1)). The estimate of q(z_i) is unbiased. The paper's
      estimator treats one image of the batch as the last, and this is the mean over that choice.
    """

    num_images: Tensor

    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def __init__(
        self, alpha: float = 1.0, beta: float = 6.0, gamma: float = 1.0, estimator: str = "stratified"
    ) -> None:
        super().__init__()
        checks.number(alpha=alpha, beta=beta, gamma=gamma)
        checks.one_of(("stratified", "weighted"), estimator=estimator)
        self.hold(alpha=alpha, beta=beta, gamma=gamma)
        self.estimator = estimator
        self.register_buffer("num_images", torch.zeros(()))

    def initialize(self, images: Tensor) -> None:
        """Set N to the number of training images (N, C, H, W)."""
        self.num_images.fill_(len(images))

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        latent = only_latent(trace, self)
        q, p = latent.gaussians()
        z = latent.z[0]  # (B, D)
        log_w = self._log_weights(len(z)).unsqueeze(-1)  # (B, B, 1)
        log_qz_given_x = q.log_prob(z.unsqueeze(1))  # (B, B, D): of z_i under x_j
        own = log_qz_given_x.diagonal().T  # (B, D)
        marginals = (log_w + log_qz_given_x).logsumexp(1)  # (B, D): log q(z_d)
        aggregate = (log_w.squeeze(-1) + log_qz_given_x.sum(-1)).logsumexp(1)  # (B,)
        parts = {
            "mutual_information": own.sum(-1) - aggregate,
            "total_correlation": aggregate - marginals.sum(-1),
            "dimension_wise_kl": (marginals - p.log_prob(z)).sum(-1),
        }
        terms = elbo_terms(trace, x)
        weighted = zip((self.alpha, self.beta, self.gamma), parts.values(), strict=True)
        return {"loss": terms["distortion"] + sum(weight * part for weight, part in weighted), **terms, **parts}

    def _log_weights(self, size: int) -> Tensor:
        """log w_ij, (B, B). Until `initialize` sets N, the batch size is used."""
        n = self.num_images.clamp(min=size)
        if self.estimator == "weighted":
            return -(n * size).log().expand(size, size)
        others = (n - 1).log() - n.log() - math.log(max(size - 1, 1))
        return torch.where(torch.eye(size, dtype=torch.bool, device=n.device), -n.log(), others)


class DIP(Objective):
    """The DIP-VAE: loss = -elbo + off_diagonal * sum_{i != j} C_ij^2 + diagonal * sum_i (C_ii - 1)^2.

    C is a covariance over the batch: Cov[mu] of the posterior means for kind I, Cov[mu] + E[diag sigma^2] of the code
    for kind II. Kumar et al. 2018, https://arxiv.org/abs/1711.00848
    """

    off_diagonal: Tensor
    diagonal: Tensor

    def __init__(self, kind: str = "II", off_diagonal: float = 10.0, diagonal: float = 10.0) -> None:
        super().__init__()
        checks.number(off_diagonal=off_diagonal, diagonal=diagonal)
        checks.one_of(("I", "II"), kind=kind)
        self.hold(off_diagonal=off_diagonal, diagonal=diagonal)
        self.kind = kind

    def terms(self, trace: Trace, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        q, _ = only_latent(trace, self).gaussians()
        with torch.autocast(x.device.type, enabled=False):  # keeps this matrix product in float32
            centred = q.mean - q.mean.mean(0)  # (B, D)
            covariance = centred.T @ centred / len(centred)  # (D, D); torch.cov cannot be part of a CUDA graph
        if self.kind == "II":
            covariance = covariance + torch.diag(q.variance.mean(0))
        variances = covariance.diagonal()
        correlation = covariance.square().sum() - variances.square().sum()
        penalty = self.off_diagonal * correlation + self.diagonal * (variances - 1).square().sum()
        terms = elbo_terms(trace, x)
        return {"loss": penalty - terms["elbo"], **terms, "covariance_penalty": penalty.expand(len(x))}
