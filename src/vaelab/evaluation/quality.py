"""How good samples are: their features f compared with those of test images, in the feature space of a classifier.

The Fréchet distance compares means m and covariances S of features, and the kernel distance is the squared maximum mean
discrepancy (MMD) with the kernel k:

    |m_s - m_t|^2 + tr(S_s + S_t - 2 (S_s S_t)^(1/2)),      k(f, g) = (f'g / D + 1)^3

Precision, recall, density and coverage take a ball around each feature vector, which reaches to its k-th nearest
neighbour of the same set. With balls B(t) of test images and B(s) of samples, k = 3:

    precision = share of samples in some B(t)           recall = share of test images in some B(s)

and with k = 5:

    density = mean over samples of 1/k #{t: s in B(t)}    coverage = share of test images whose B(t) has a sample

The classes of the samples and of the test images are compared by KL(samples || test images) of their shares, as the
classifier names them. A class without a test image counts as half of one there, so the divergence is finite.

Heusel et al. 2017, https://arxiv.org/abs/1706.08500; Binkowski et al. 2018, https://arxiv.org/abs/1801.01401;
Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991; Naeem et al. 2020, https://arxiv.org/abs/2002.09797
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from vaelab.evaluation.batches import batches
from vaelab.evaluation.classifier import Classifier
from vaelab.noise import fixed_noise

SUBSETS, MOST = 10, 1000  # at least so many subsets for the kernel distance, with at most so many images each
IN_BALL, IN_DENSITY = 3, 5  # k of precision and recall, and of density and coverage
LEAST = 20  # images of each set, for two in each subset
RARE, EXPECTED = 0.1, 20  # a class is missing if samples have less than this part of its share, of at least so many
CHUNK = 1000  # rows of distances in memory


class Quality(NamedTuple):
    """The metrics of samples, and the same metrics of images whose quality is known."""

    metrics: dict[str, float]
    errors: dict[str, float]  # standard errors of some metrics
    real: dict[str, float]  # of training images: what a perfect model has
    noise: dict[str, float]  # of pixels that are drawn independently: what a model without any structure has
    missing: list[int]  # the classes that are missing among the samples
    classes: int  # of the classifier

    def sentence(self) -> str | None:
        """A sentence that names the missing classes, or None."""
        if not self.missing:
            return None
        names = ", ".join(map(str, self.missing[:10])) + ", ..." * (len(self.missing) > 10)
        return (
            f"The samples lack {len(self.missing)} of {self.classes} classes ({names}): by the classifier, each has "
            "less than a tenth of its share among the test images."
        )


@torch.no_grad()
def quality(samples: Tensor, test: Tensor, training: Tensor, classifier: Classifier, seed: int = 0) -> Quality:
    """Compare samples (N, C, H, W) with test images (M, C, H, W), both in [0, 1], and N training images as well.

    The noise images take each pixel from the same place of a random training image of its own. For binary images these
    are Bernoulli draws of the mean. At least LEAST images of each kind are needed.
    """
    with fixed_noise(training.device, seed):
        noise = independent_pixels(training, len(samples))
    of_test = _Set(test, classifier)
    sets = {name: _Set(images, classifier) for name, images in
            (("samples", samples), ("training", training), ("noise", noise))}  # fmt: skip
    metrics = {name: _compare(each, of_test) for name, each in sets.items()}
    distances = kernel_distances(sets["samples"].features, of_test.features)
    errors = {"kernel_distance": distances, "confidence": sets["samples"].probabilities.amax(1)}
    missing = _missing(sets["samples"], of_test)
    return Quality(
        metrics["samples"],
        {name: (values.std() / len(values) ** 0.5).item() for name, values in errors.items()},
        metrics["training"],
        metrics["noise"],
        missing.nonzero().flatten().tolist(),
        len(missing),
    )


class _Set:
    """Features (N, D), class probabilities (N, classes) and counts of the classes (classes,) of images, in float64.

    The images are in a fixed random order, because images of a file can be sorted by class, and subsets must not be.
    """

    def __init__(self, images: Tensor, classifier: Classifier) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
        parts = [classifier.features(x) for x, _ in batches(images[order], None)]
        self.features = torch.cat(parts).double()
        self.probabilities = torch.cat([classifier.linear(part) for part in parts]).double().softmax(1)
        self.counts = self.probabilities.argmax(1).bincount(minlength=self.probabilities.shape[1]).double()


def _compare(samples: _Set, test: _Set) -> dict[str, float]:
    """All metrics of samples against test images."""
    return {
        "frechet_distance": frechet_distance(samples.features, test.features),
        "kernel_distance": kernel_distances(samples.features, test.features).mean().item(),
        **neighbourhoods(samples.features, test.features),
        "confidence": samples.probabilities.amax(1).mean().item(),
        "class_kl": kl_divergence(Categorical(samples.counts), Categorical(test.counts.clamp(min=0.5))).item(),
        "missing_classes": int(_missing(samples, test).sum()),
    }


def _missing(samples: _Set, test: _Set) -> Tensor:
    """Whether samples have less than a tenth of the expected number of a class, if this number is 20 or more."""
    expected = test.counts * (len(samples.features) / len(test.features))
    return (expected >= EXPECTED) & (samples.counts < RARE * expected)


def independent_pixels(images: Tensor, count: int) -> Tensor:
    """Images (count, C, H, W), each pixel from the same place of a random one of the images (N, C, H, W)."""
    flat = images.flatten(1)
    index = torch.randint(len(flat), (count, flat.shape[1]), device=flat.device)
    return flat.gather(0, index).view(count, *images.shape[1:])


class _Known(nn.Identity):
    """Features that are known already, for a metric of torchmetrics that takes a module."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """The Fréchet distance of the Gaussians with the means and covariances of features (N, D) and others (M, D)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Known(features.shape[1])).to(features.device)
    metric.update(others, real=True)
    metric.update(features, real=False)
    return metric.compute().item()


def kernel_distances(features: Tensor, others: Tensor) -> Tensor:
    """Unbiased estimates of MMD^2 between features (N, D) and others (M, D), one for each of disjoint subsets.

    There are at least ten subsets of at most 1,000 features of either kind, so that their mean has a standard error.
    """
    count = min(len(features), len(others))
    size = min(MOST, count // SUBSETS)
    pairs = zip(features.split(size), others.split(size), strict=False)
    return torch.stack([_mmd(f, g) for f, g in pairs if len(f) == len(g) == size])


def _mmd(f: Tensor, g: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(f) + within(g) - 2 * kernel(f, g).mean()


def neighbourhoods(features: Tensor, others: Tensor) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of features (N, D) of samples, with others (M, D) of images."""
    own, radii, wider = radii_of(features, IN_BALL), radii_of(others, IN_BALL), radii_of(others, IN_DENSITY)
    inside, balls, near = 0, 0, torch.zeros(2, len(others), dtype=torch.bool, device=others.device)
    for part, radius in zip(features.split(CHUNK), own.split(CHUNK), strict=True):
        distances = torch.cdist(part, others)  # (samples of the part, M)
        inside += int((distances <= radii).any(1).sum())
        balls += int((distances <= wider).sum())
        near |= torch.stack([(distances <= radius[:, None]).any(0), (distances <= wider).any(0)])
    recall, coverage = near.double().mean(1).tolist()
    count = min(IN_DENSITY, len(others) - 1) * len(features)
    return {
        "precision": inside / len(features),
        "recall": recall,
        "density": balls / count,
        "coverage": coverage,
    }


def radii_of(features: Tensor, k: int) -> Tensor:
    """The distance of each of the features (N, D) to its k-th nearest other one, (N,)."""
    k = min(k, len(features) - 1)
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(CHUNK)])
