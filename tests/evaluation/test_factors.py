"""The metrics of codes with known factors."""

from types import SimpleNamespace

import pytest
import torch
from conftest import refused
from torch import Tensor

from vaelab.evaluation import report
from vaelab.evaluation.factors import MOST, NAMES, check_factors, factor_metrics

FACTORS = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(10, 1)
IDENTITY = FACTORS.float()
DATA = SimpleNamespace(factors={"train": FACTORS, "test": FACTORS.flip(0)})


def test_a_code_of_the_factors_is_perfect() -> None:
    found = factor_metrics(DATA, IDENTITY, IDENTITY.flip(0))
    assert found.metrics.keys() == {*NAMES}
    sap = found.metrics.pop("sap")  # one threshold for each of four values cannot be linear
    assert 0.1 < sap < 1
    assert found.metrics == pytest.approx(dict.fromkeys(found.metrics, 1))
    assert found.standard_errors == dict.fromkeys(["dci_informativeness", "beta_vae_score", "factor_vae_score"], 0)
    assert found.absent == {}
    assert {*NAMES} < report.METRICS["factors of variation"].keys()


def test_a_code_of_noise_is_a_guess_with_its_error() -> None:
    noise, other = torch.randn(2, *IDENTITY.shape)
    found = factor_metrics(DATA, noise, other)
    assert found.metrics["beta_vae_score"] == pytest.approx(0.5, abs=0.1)
    assert found.standard_errors["beta_vae_score"] == pytest.approx(0.01, rel=0.05)  # sqrt(0.5 * 0.5 / 2500)
    hits = found.metrics["dci_informativeness"]
    assert hits == pytest.approx(0.25, abs=0.1)
    assert found.standard_errors["dci_informativeness"] == pytest.approx((hits * (1 - hits) / 320) ** 0.5, rel=0.3)
    assert max(found.metrics[name] for name in ("mig", "sap", "dci_disentanglement", "dci_completeness")) < 0.2


def test_the_first_images_have_the_first_factors() -> None:
    few = factor_metrics(DATA, IDENTITY[:64], IDENTITY.flip(0)[:48])
    assert few.metrics["mig"] == pytest.approx(1)
    wrong = factor_metrics(DATA, IDENTITY, IDENTITY)  # the test codes are in another order than their factors
    assert wrong.metrics["dci_informativeness"] < 0.5


def test_a_factor_of_one_value_does_not_count() -> None:
    more = {split: torch.cat([part, torch.ones(len(part), 1).long()], 1) for split, part in DATA.factors.items()}
    data = SimpleNamespace(factors=more)
    assert factor_metrics(data, IDENTITY, IDENTITY.flip(0)) == factor_metrics(DATA, IDENTITY, IDENTITY.flip(0))
    one = SimpleNamespace(factors={split: part[:, 1:] for split, part in more.items()})
    assert factor_metrics(one, IDENTITY, IDENTITY).absent == dict.fromkeys(
        NAMES, "fewer than two factors vary among the images"
    )


def test_a_long_code_is_absent_with_the_reason() -> None:
    long: Tensor = torch.zeros(len(FACTORS), MOST + 1)
    found = factor_metrics(DATA, long, long)
    assert found.metrics == {}
    assert found.absent["mig"] == "the code has 101 dimensions, more than 100"


def test_other_factors_are_refused() -> None:
    images = {split: (torch.zeros(len(FACTORS), 1, 2, 2), None) for split in ("train", "test")}

    def check(train: object, test: object = FACTORS) -> None:
        check_factors(SimpleNamespace(name="mine", splits=images, factors={"train": train, "test": test}))

    check(FACTORS)
    check_factors(SimpleNamespace(name="mine", splits=images, factors={}))
    for wrong, kind, shape in (
        (FACTORS.float(), "torch.float32", "(160, 2)"),
        (FACTORS[:159], "torch.int64", "(159, 2)"),
        (FACTORS[:, 0], "torch.int64", "(160,)"),
        ([1, 2], "list", "()"),
    ):
        message = f"factors['train'] of mine has the type {kind} and the shape {shape}, but a tensor of whole numbers"
        assert refused(check, wrong).startswith(f"{message} (160, F) is needed")
    assert "factors['test'] of mine" in refused(check, FACTORS, FACTORS[:, [0, 1, 1]])


def test_data_without_factors_have_none_of_the_metrics() -> None:
    for data in (SimpleNamespace(), SimpleNamespace(factors={})):
        assert factor_metrics(data, IDENTITY, IDENTITY) == ({}, {}, {})
