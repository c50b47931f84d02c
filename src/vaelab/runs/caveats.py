"""Caveats for readers of a run's metrics. The log, the tables and the model card print the same list."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaelab.interfaces import GenerativeModel

MOST_LOW_ESS = 0.01  # the share of images with few effective samples that needs no caveat
CLOSER = {  # the gains of closer bounds over the IW bound of the same images, the closest first
    "ais_gain": "annealed importance sampling",
    "refined_gain": "a q(z|x) refined for each image",
    "gain_10x": "a tenfold number of samples",
}
NEAR_LIMIT = 1.0  # nats below log N; a Gaussian channel of 10 dimensions is there if it carries log N nats
LEAST_RIGHT = 0.9  # the accuracy of the classifier of the features that needs no caveat
MOST_GAP = 0.5  # nats between the bounds by annealed importance sampling that need no caveat


def find_caveats(
    model: "GenerativeModel",
    cfg: Mapping[str, Any],  # the config of the run, with data.used
    metrics: Mapping[str, float] | None = None,  # the metrics of an evaluation
) -> list[str]:
    """The caveats of a run, one or two sentences each. The list is empty if there are none."""
    from vaelab.interfaces import draws_samples, levels, likelihood_name, quantises

    data: Any = cfg["data"]
    found = []
    if data["used"] == "MNIST-5k":
        text = (
            "This is not the full MNIST but MNIST-5k, 5,000 digits of its training set. Its metrics do not compare "
            "with published ones."
        )
        if data["dataset"] != data["used"]:
            folder = Path(data["root"]) / data["dataset"] / "raw"
            text += (
                f" MNIST cannot be downloaded, and its files are not in {folder}. data=binarized_mnist has all 70,000 "
                "digits without a download; data.allow_subset=false forbids MNIST-5k."
            )
        found.append(text)
    name, grey = likelihood_name(model.likelihood), data["binarization"] == "none"
    if grey and name == "Bernoulli":
        found.append(
            "A Bernoulli likelihood on grey levels is not a density. Its nats are never below the pixels' entropy "
            "(45.5 per MNIST test image) and do not compare with other likelihoods: set data.binarization=dynamic."
        )
    if not grey and name != "Bernoulli" and levels(model.likelihood) is None:
        found.append(
            f"A {name} density on binary pixels has no meaning, because it can grow without limit at 0 and 1. Its "
            "nats do not compare with other likelihoods: set data.binarization=none to keep grey levels."
        )
    if not draws_samples(model):
        found.append(
            "This model has no prior over its codes, so it cannot draw samples"
            + (": python train_prior.py run=logs/RUN trains one." if quantises(model) else ".")
        )
    elif (cfg.get("objective") or {}).get("_target_") == "vaelab.objectives.Reconstruction":
        found.append(
            "Training does not fit the codes of an autoencoder to the prior, so samples of the prior are noise: "
            "generate.py kind=samples density=gmm (or flow, two_stage) fits a density to the codes."
        )
    measured = metrics or {}
    if (share := measured.get("low_ess_share", 0.0)) > MOST_LOW_ESS:
        gains = [
            f"{what} raises its mean by {measured[key]:.2f} nats"
            for key, what in CLOSER.items()
            if measured.get(key, 0) > 0
        ]
        gain = f": on the first images, {gains[0]}" if gains else ""
        found.append(
            f"{share:.0%} of the images have few effective samples, so the IW bound may be nats below their log p(x)"
            f"{gain}. A larger num_samples or ais=true gives closer bounds."
        )
    information, limit = measured.get("mutual_information", 0.0), measured.get("information_limit", math.inf)
    if information > limit - NEAR_LIMIT:
        found.append(
            f"mutual_information, {information:.2f} nats, is near its limit log N = {limit:.2f}, so it is too low, and "
            "aggregate_kl and total_correlation are too high, by an unknown amount: more test images raise the limit."
        )
    if (gap := measured.get("drawn_gap", 0.0)) > MOST_GAP:
        found.append(
            f"On images that the model draws, the bounds of log p(x) by AIS are {gap:.1f} nats apart, and ais_bound "
            "may be as much too low: raise annealing.temperatures."
        )
    if (right := measured.get("classifier_accuracy", 1.0)) < LEAST_RIGHT:
        found.append(
            f"The classifier of the features is right on {right:.0%} of the test images only, so these features may "
            "not tell good samples from bad ones. Train it for longer: classify.py prints its path, and "
            "classify.py epochs=30 output=PATH replaces it."
        )
    return found


def boxed(text: str, width: int = 100) -> str:
    """A text in a frame, which is easy to see in a log."""
    lines = textwrap.wrap(text, width, break_long_words=False)
    width = max(map(len, lines))
    rule = "+" + "-" * (width + 2) + "+"
    return "\n".join([rule, *(f"| {line:<{width}} |" for line in lines), rule])
