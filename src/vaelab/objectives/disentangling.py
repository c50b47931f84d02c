"""Objectives that part the rate, or add to it, so that each dimension of the code means one thing.

    E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d))

with the aggregate posterior q(z) = E_x q(z | x): mutual information, total correlation, dimension-wise KL.
"""

import math

import torch
from torch import Tensor

from vaelab import checks
from vaelab.objectives.objective import Objective, elbo_terms, only_latent
from vaelab.trace import Trace


class BetaTC(Objective):
    """loss = distortion + alpha * mutual information + beta * total correlation + gamma * dimension-wise KL.

    Chen et al. 2018, https://arxiv.org/abs/1802.04942. The three are estimated at one sample an image from a batch of
    B out of N images, log q(z_i) = log sum_j w_ij q(z_i | x_j):

    * weighted: w_ij = 1 / (N B). Biased; adds nothing but a constant to each logarithm if the batch is all the data.
    * stratified: w_ii = 1 / N and w_ij = (N - 1) / (N (B - 1)), which is unbiased for q(z_i): the paper's estimator,
      averaged over which image of the batch it treats as the last.

    N counts the training images. Raises TypeError unless posterior and prior are factorised Gaussians.
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
        """Learn N from the training images (N, C, H, W)."""
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
        """log w_ij, (B, B). Until N is known, the batch is taken for all the data."""
        n = self.num_images.clamp(min=size)
        if self.estimator == "weighted":
            return -(n * size).log().expand(size, size)
        others = (n - 1).log() - n.log() - math.log(max(size - 1, 1))
        return torch.where(torch.eye(size, dtype=torch.bool, device=n.device), -n.log(), others)


class DIP(Objective):
    """loss = -elbo + off_diagonal * sum_{i != j} C_ij^2 + diagonal * sum_i (C_ii - 1)^2.

    The disentangled inferred prior: C is the batch's covariance of the posterior means, Cov[mu] (kind I), or of the
    code, Cov[mu] + E[diag sigma^2] (kind II). Kumar et al. 2018, https://arxiv.org/abs/1711.00848
    Raises TypeError unless posterior and prior are factorised Gaussians.
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
        with torch.autocast(x.device.type, enabled=False):  # a covariance is a matrix product inside
            covariance = torch.atleast_2d(torch.cov(q.mean.T, correction=0))  # (D, D)
        if self.kind == "II":
            covariance = covariance + torch.diag(q.variance.mean(0))
        variances = covariance.diagonal()
        correlation = covariance.square().sum() - variances.square().sum()
        penalty = self.off_diagonal * correlation + self.diagonal * (variances - 1).square().sum()
        terms = elbo_terms(trace, x)
        return {"loss": penalty - terms["elbo"], **terms, "covariance_penalty": penalty.expand(len(x))}
