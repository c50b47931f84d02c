"""Each caveat appears if it applies, and otherwise does not appear."""

from pathlib import Path
from typing import Any

import pytest
from conftest import compose_config
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vaelab.runs.caveats import boxed, find_caveats

GREY, BINARY = "entropy", "binary pixels"
SUBSET, PRIOR, CODES, FEW, GAP = "MNIST-5k", "no prior", "autoencoder", "effective samples", "by AIS"
LIMIT = "limit log N"
ALL = (GREY, BINARY, SUBSET, PRIOR, CODES, FEW, GAP, LIMIT)


def found(*overrides: str, used: str = "MNIST", metrics: Any = None) -> list[str]:
    cfg = compose_config(Path("data"), *overrides)
    cfg.data.used = used
    return find_caveats(instantiate(cfg.model, _convert_="all"), OmegaConf.to_container(cfg, resolve=True), metrics)


@pytest.mark.parametrize(
    ("overrides", "settings", "expected"),
    [
        ([], {}, []),
        (["data.binarization=none"], {}, [GREY]),
        (["data.binarization=none", "model/likelihood=bernoulli_at_mean"], {}, [GREY]),
        (["data.binarization=none", "model/likelihood=gaussian"], {}, []),
        (["data.binarization=none", "model/likelihood=discretized_logistic"], {}, []),
        (["model/likelihood=gaussian"], {}, [BINARY]),
        (["model/likelihood=continuous_bernoulli", "data.binarization=static"], {}, [BINARY]),
        (["model/likelihood=bernoulli_at_mean"], {}, []),
        ([], {"used": "MNIST-5k"}, [SUBSET]),
        (["experiment=vq_vae"], {}, [PRIOR]),
        (["experiment=fsq_vae"], {}, [PRIOR]),
        (["experiment=lossy_vae"], {}, []),
        (["experiment=autoencoder"], {}, [CODES]),
        ([], {"metrics": {"low_ess_share": 0.01}}, []),
        ([], {"metrics": {"low_ess_share": 0.011}}, [FEW]),
        ([], {"metrics": {"mutual_information": 8.2, "information_limit": 9.21}}, []),
        ([], {"metrics": {"mutual_information": 8.22, "information_limit": 9.21}}, [LIMIT]),
        ([], {"metrics": {"drawn_gap": 0.5}}, []),
        ([], {"metrics": {"drawn_gap": 0.51}}, [GAP]),
    ],
    ids=str,
)
def test_caveats(overrides: list[str], settings: dict, expected: list[str]) -> None:
    texts = found(*overrides, **settings)
    assert len(texts) == len(expected)
    for word in ALL:
        assert any(word in text for text in texts) == (word in expected), word


def test_a_data_set_that_replaced_another_says_so() -> None:
    (text,) = found(used="MNIST-5k")
    assert "data.allow_subset=false" in text
    (text,) = found("data=mnist_5k", used="MNIST-5k")
    assert "data.allow_subset=false" not in text


def test_few_effective_samples_are_compared_with_the_closest_bound() -> None:
    gains = {"low_ess_share": 0.4, "gain_10x": 0.25}
    texts = [found(metrics=gains), found(metrics={**gains, "refined_gain": 0.5, "ais_gain": 1.25})]
    assert "a tenfold number of samples raises its mean by 0.25 nats. A larger num_samples" in texts[0][0]
    assert "40% of the images" in texts[1][0]
    assert "annealed importance sampling raises its mean by 1.25 nats" in texts[1][0]
    (text,) = found(metrics={**gains, "refined_gain": -0.4})  # refined on too few images, or from too few samples
    assert "a tenfold number of samples raises its mean by 0.25 nats" in text


def test_a_classifier_that_is_often_wrong_is_named() -> None:
    assert found(metrics={"classifier_accuracy": 0.95}) == []
    (text,) = found(metrics={"classifier_accuracy": 0.721})
    assert "is right on 72% of the test images only" in text


def test_a_frame_holds_the_text() -> None:
    text = "word " * 60
    top, *lines, bottom = boxed(text, 40).splitlines()
    assert top == bottom == "+" + "-" * (len(top) - 2) + "+"
    assert {len(line) for line in lines} == {len(top)}
    assert " ".join(line.strip("| ") for line in lines) == text.strip()


def test_only_a_quantised_model_is_sent_to_train_prior() -> None:
    cfg = compose_config(Path("data"))
    cfg.data.used = "MNIST"
    model = instantiate(cfg.model, _convert_="all")
    model.prior = None
    (text,) = find_caveats(model, OmegaConf.to_container(cfg, resolve=True))
    assert text == "This model has no prior over its codes, so it cannot draw samples."
