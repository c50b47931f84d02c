"""The loss of a vector-quantised autoencoder, where sg is the stop-gradient:

    -log p(x | z_q) + ||sg(z_e) - z_q||^2 + commitment ||z_e - sg(z_q)||^2

If the codebook learns by moving averages, or if codes are rounded numbers, the middle term is absent. The first term
is the distortion.
"""

import torch
from torch import Tensor

from vaelab import checks
from vaelab.objectives.objective import Objective
from vaelab.trace import Quantized


class VQ(Objective):
    """Distortion and quantisation errors, summed over pixels, dimensions and places.

    `perplexity` is exp(entropy of the code usage in the batch): J if J codes are used equally often. Without a prior
    there is no rate (KL term) and no bound. Raises PartsError unless the model returns a Quantized.
    van den Oord et al. 2017, https://arxiv.org/abs/1711.00937
    """

    scores = Quantized

    commitment: Tensor

    def __init__(self, commitment: float = 0.25) -> None:
        super().__init__()
        checks.number(commitment=commitment)
        self.hold(commitment=commitment)

    def terms(self, trace: Quantized, x: Tensor, step: Tensor | None) -> dict[str, Tensor]:
        z_e, z_q, indices, likelihood, codebook = trace
        distortion = -likelihood.log_prob(x)  # (B,)
        commitment = (z_e - z_q.detach()).square().flatten(1).sum(1)
        loss = distortion + self.commitment * commitment
        if codebook.requires_grad:
            loss = loss + (z_e.detach() - z_q).square().flatten(1).sum(1)
        count = codebook.new_zeros(len(codebook)).index_add(0, indices.flatten(), codebook.new_ones(indices.numel()))
        frequency = count / indices.numel()
        perplexity = torch.xlogy(frequency, frequency).sum().neg().exp().expand(len(x))
        return {"loss": loss, "distortion": distortion, "commitment": commitment, "perplexity": perplexity}
