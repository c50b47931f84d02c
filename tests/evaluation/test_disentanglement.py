"""Metrics of disentanglement on constructed codes, whose values are known."""

import numpy as np
import pytest

from vaelab.evaluation import disentanglement as metrics

GRID = np.stack(np.meshgrid(np.arange(4), np.arange(5), np.arange(3), indexing="ij"), -1).reshape(-1, 3)
FACTORS = np.tile(GRID, (20, 1))  # each combination equally often, so that the factors are independent
IDENTITY = FACTORS.astype(float)
NOISE = np.random.default_rng(0).normal(size=IDENTITY.shape)


def turned(codes: np.ndarray) -> np.ndarray:
    """The plane of the first two dimensions, turned by 45 degrees."""
    return np.column_stack([codes[:, 0] + codes[:, 1], codes[:, 0] - codes[:, 1]]) / 2**0.5


def test_the_information_of_a_factor_about_itself_is_its_entropy() -> None:
    found = metrics.information(IDENTITY, FACTORS)
    np.testing.assert_allclose(found, np.diag(np.log([4, 5, 3])), atol=1e-12)


def test_a_code_of_the_factors_is_perfect() -> None:
    assert metrics.mig(IDENTITY, FACTORS) == pytest.approx(1)
    assert metrics.modularity(IDENTITY, FACTORS) == pytest.approx(1)
    found = metrics.dci(IDENTITY, FACTORS, IDENTITY, FACTORS)
    assert found.hits.tolist() == [1] * len(FACTORS)
    assert found.disentanglement == pytest.approx(1)
    assert found.completeness == pytest.approx(1)


def test_order_sign_and_scale_do_not_matter() -> None:
    other = IDENTITY[:, [2, 0, 1]] * [-3, 0.1, 7]
    assert metrics.mig(other, FACTORS) == pytest.approx(1)
    assert metrics.modularity(other, FACTORS) == pytest.approx(1)


def test_a_rotation_has_no_gap_and_no_modularity() -> None:
    square = np.tile(np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2), (20, 1))
    codes = turned(square.astype(float))
    assert metrics.mig(codes, square) == pytest.approx(0, abs=1e-12)
    assert metrics.modularity(codes, square) == pytest.approx(0, abs=1e-12)
    found = metrics.dci(codes, square, codes, square)
    assert found.hits.mean() == 1
    assert found.disentanglement < 0.05
    assert found.completeness < 0.05


def test_a_copy_of_a_dimension_is_modular_but_has_no_gap() -> None:
    codes = IDENTITY[:, [0, 0, 1, 2]]
    assert metrics.mig(codes, FACTORS) == pytest.approx(2 / 3)
    assert metrics.modularity(codes, FACTORS) == pytest.approx(1)


def test_a_factor_that_is_missing_costs_its_share() -> None:
    assert metrics.mig(IDENTITY[:, :2], FACTORS) == pytest.approx(2 / 3)
    assert metrics.mig(IDENTITY[:, :1], FACTORS) == pytest.approx(1 / 3)


def test_noise_and_constants() -> None:
    assert metrics.mig(NOISE, FACTORS) < 0.02
    constant = np.ones_like(IDENTITY)
    assert metrics.mig(constant, FACTORS) == 0
    assert metrics.modularity(constant, FACTORS) == 0
    found = metrics.dci(constant, FACTORS, constant, FACTORS)
    assert (found.disentanglement, found.completeness) == (0, 0)
    found = metrics.dci(NOISE, FACTORS, np.random.default_rng(1).normal(size=IDENTITY.shape), FACTORS)
    assert found.hits.mean() == pytest.approx((1 / 4 + 1 / 5 + 1 / 3) / 3, abs=0.05)
    assert found.disentanglement < 0.05


def test_independent_dimensions_seem_to_have_information_if_there_are_few_images() -> None:
    uniform = np.random.default_rng(0).uniform(size=(len(FACTORS), 200))
    bias = (metrics.BINS - 1) * (np.array([4, 5, 3]) - 1) / (2 * len(FACTORS))
    np.testing.assert_allclose(metrics.information(uniform, FACTORS).mean(0), bias, rtol=0.1)


def test_a_dimension_of_two_factors_is_complete_but_not_disentangled() -> None:
    """The first dimension has both factors of four values, and the second one has nothing."""
    square = np.tile(np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2), (20, 1))
    codes = np.column_stack([4 * square[:, 0] + square[:, 1], np.zeros(len(square))]).astype(float)
    found = metrics.dci(codes, square, codes, square)
    assert found.hits.mean() == 1
    assert found.completeness == pytest.approx(1)
    assert found.disentanglement == pytest.approx(0)
    assert metrics.modularity(codes, square) == pytest.approx(0)  # both factors in one, and no information in the other


def test_sap_of_binary_factors() -> None:
    """One dimension predicts its factor always, and the second best one guesses."""
    factors = np.tile(np.stack(np.meshgrid([0, 1], [0, 1]), -1).reshape(-1, 2), (50, 1))
    codes = factors - 0.5
    assert metrics.sap(codes, factors, codes, factors) == pytest.approx(0.5)
    assert metrics.sap(codes[:, [0, 0, 1]], factors, codes[:, [0, 0, 1]], factors) == pytest.approx(0.25)
    assert metrics.sap(codes[:, :1], factors, codes[:, :1], factors) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        (np.eye(3), 1),
        (np.ones((3, 4)), 0),
        ([[1, 0], [1, 1]], (1 * 1 + 2 * 0) / 3),  # the second row has two thirds of the importance
        ([[1, 0], [0, 0]], 1),  # a row without importance has no weight
        (np.zeros((2, 3)), 0),
        ([[3, 1]], 1 + (0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))),
    ],
)
def test_concentration(importance: list[list[float]], expected: float) -> None:
    assert metrics.concentration(np.array(importance, dtype=float)) == pytest.approx(expected)
