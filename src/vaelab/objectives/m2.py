"""The objective of semi-supervised learning and of clustering: the exact sum over the class y of an image."""

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from vaelab import checks
from vaelab.classes import WithClasses, kl_of_each_class
from vaelab.errors import PartsError
from vaelab.interfaces import UNSEEN, GenerativeModel
from vaelab.objectives.objective import Objective


class M2(Objective):
    """loss = -U(x) for an image without a label, and -L(x, y) - alpha N / M log q(y | x) for one of M with a label y.
        L(x, y) = E_q[log p(x | z, y)] - KL(q(z | x, y) || p(z | y)) + log p(y)  <=  log p(x, y)
        U(x)    = sum_y q(y | x) [L(x, y) - log q(y | x)]  <=  log p(x)

    N is the number of training images, and M = `num_labels` that of the labels, which data.num_labels chooses. None is
    M = N, and with M = 0 labels are not used at all. The expectations have one sample of z for each class. Kingma et
    al. 2014, https://arxiv.org/abs/1406.5298

    * elbo = U(x) = -(distortion + rate), for each image, and `class_rate` = KL(q(y | x) || p(y)) is a part of the rate
    * classification = -log q(y | x), in training times N / M for the images with a label and 0 for the others, so that
      the mean over an epoch is the mean over the labels
    * accuracy, in evaluation mode: 1 if y is the most probable class, otherwise 0

    In evaluation mode, loss = -U(x) for all images: labels serve `classification` and `accuracy` alone. Raises
    PartsError unless the codes of the model have a class, the same in the posterior and in the prior.
    """

    takes_labels = True

    alpha: Tensor
    num_images: Tensor

    def __init__(self, alpha: float = 0.1, num_labels: int | None = None) -> None:
        super().__init__()
        checks.number(alpha=alpha)
        checks.whole(0, num_labels=0 if num_labels is None else num_labels)
        self.hold(alpha=alpha)
        self.num_labels = num_labels
        self.register_buffer("num_images", torch.zeros(()))

    def initialize(self, images: Tensor) -> None:
        """Set N to the number of training images (N, C, H, W)."""
        self.num_images.fill_(len(images))

    def forward(
        self, model: GenerativeModel, x: Tensor, y: Tensor | None = None, step: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of images x (B, C, H, W) with labels y (B,), where -1 is a label that is not given."""
        q, p = model.infer(x), model.prior(model.infer)
        if not (isinstance(q, WithClasses) and isinstance(p, WithClasses)):
            raise PartsError("M2 needs codes that have a class: use model/posterior=classes model/prior=classes")
        if _form(q) != _form(p):
            own = "classes and of dimensions, and the same in_code"
            raise PartsError(f"M2 needs a posterior and a prior with the same number of {own}")
        log_q, log_p = q.mixture_distribution.logits.T, p.mixture_distribution.logits.unsqueeze(1)  # (C, B), (C, 1)
        distortions = -model.decode(q.of_each_class()).log_prob(x)  # (C, B)
        rates = kl_of_each_class(q, p).T  # (C, B)
        weights = log_q.exp()
        distortion, class_rate = (weights * distortions).sum(0), (weights * (log_q - log_p)).sum(0)
        rate = (weights * rates).sum(0) + class_rate
        terms = {"elbo": -(distortion + rate), "rate": rate, "class_rate": class_rate, "distortion": distortion}
        loss = distortion + rate
        if y is None or self.num_labels == 0:
            return {"loss": loss, **terms}
        classification = F.cross_entropy(log_q.T, y, ignore_index=UNSEEN, reduction="none")  # (B,), 0 without a label
        if not self.training:
            accuracy = (log_q.argmax(0) == y).to(loss.dtype)
            return {"loss": loss, **terms, "classification": classification, "accuracy": accuracy}
        index = y.clamp(min=0).unsqueeze(0)
        labelled = (distortions + rates - log_p).gather(0, index).squeeze(0)  # -L(x, y)
        classification = classification * self._share()
        loss = torch.where(y == UNSEEN, loss, labelled + self.alpha * classification)
        return {"loss": loss, **terms, "classification": classification}

    def _share(self) -> Tensor | float:
        """N / M. Until `initialize` sets N, it is 1."""
        return 1.0 if self.num_labels is None else (self.num_images / self.num_labels).clamp(min=1.0)


def _form(density: WithClasses) -> tuple[type, Size, int]:
    """What q and p have in common if their classes are the same: the type, the event shape and C."""
    return type(density), density.event_shape, density.mixture_distribution.logits.shape[-1]
