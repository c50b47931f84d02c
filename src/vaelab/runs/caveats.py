"""Caveats: what a reader of a run's metrics must know. The log, the tables and the model card print this one list."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaelab.interfaces import GenerativeModel

MOST_LOW_ESS = 0.01  # share of the images that may have few effective samples


def find_caveats(
    model: "GenerativeModel",
    cfg: Mapping[str, Any],  # the config of the run, with data.used
    metrics: Mapping[str, float] | None = None,  # of an evaluation
) -> list[str]:
    """The caveats of a run, one or two sentences each. The list is empty if there is nothing to know."""
    from vaelab.interfaces import levels, likelihood_name

    data: Any = cfg["data"]
    found = []
    if data["used"] == "MNIST-5k":
        text = (
            "This is not the full MNIST but MNIST-5k, 5,000 digits of its training set: no published figure compares."
        )
        if data["dataset"] != data["used"]:
            folder = Path(data["root"]) / data["dataset"] / "raw"
            text += (
                f" MNIST cannot be downloaded, and its files are not in {folder}; data.allow_subset=false forbids this."
            )
        found.append(text)
    name, grey = likelihood_name(model.likelihood), data["binarization"] == "none"
    if grey and name == "Bernoulli":
        found.append(
            "A Bernoulli likelihood on grey levels is no density. Its nats have an entropy floor (45.5 per MNIST test "
            "image) and compare with no other likelihood's; data.binarization=dynamic makes it a density."
        )
    if not grey and name != "Bernoulli" and levels(model.likelihood) is None:
        found.append(
            f"A {name} density on binary pixels measures nothing: it can become as high as one likes at 0 and 1, and "
            "its nats compare with no other likelihood's; data.binarization=none keeps grey levels."
        )
    if model.prior is None:
        found.append("This model has no prior over its codes, so that there is nothing to sample from.")
    elif cfg["objective"]["_target_"] == "vaelab.objectives.Reconstruction":
        found.append(
            "Nothing fits the codes of an autoencoder to the prior, so that samples from the prior are noise: "
            "generate.py kind=samples density=gmm or density=flow fits a density to the codes."
        )
    share = (metrics or {}).get("low_ess_share", 0.0)
    if share > MOST_LOW_ESS:
        found.append(
            f"{share:.0%} of the images have few effective samples, and their log p(x) may be some nats too low: "
            "raise num_samples."
        )
    return found


def boxed(text: str, width: int = 100) -> str:
    """A text in a frame, which nobody overlooks in a log."""
    lines = textwrap.wrap(text, width, break_long_words=False)
    width = max(map(len, lines))
    rule = "+" + "-" * (width + 2) + "+"
    return "\n".join([rule, *(f"| {line:<{width}} |" for line in lines), rule])
