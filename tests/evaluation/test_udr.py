"""The unsupervised ranking of constructed codes."""

import numpy as np
import pytest

from vaelab.evaluation.udr import udr

RANDOM = np.random.default_rng(0)
CODES = RANDOM.normal(size=(2000, 3))
KL = np.ones(3)


def test_the_same_dimensions_in_another_order_sign_and_scale() -> None:
    others = [CODES[:, [1, 2, 0]] * [2, -3, 0.5], np.exp(CODES)]  # ranks do not see a monotone map
    found = udr([CODES, *others], [KL] * 3)
    np.testing.assert_allclose(found, 1, atol=0.06)  # off the matches, |correlations| of 2,000 draws are near 0.02


def test_a_rotated_model_is_the_odd_one_out() -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    found = udr([CODES, CODES, CODES, CODES @ rotation], [KL] * 4)
    assert min(found[:3]) > found[3] + 0.3


def test_two_dimensions_turned_by_45_degrees() -> None:
    """All four rank correlations are rho, so that each sum is rho^2 / (2 rho), and the score is rho / 2."""
    turned = CODES[:, :2] @ np.array([[1, 1], [1, -1]]) / 2**0.5
    rho = 6 / np.pi * np.arcsin(0.5**0.5 / 2)  # Spearman's for a normal pair with correlation 1 / sqrt(2)
    assert udr([CODES[:, :2], turned], [KL[:2]] * 2) == pytest.approx([rho / 2] * 2, abs=0.02)


def test_dimensions_without_information_do_not_count() -> None:
    more = np.hstack([CODES, RANDOM.normal(size=(2000, 5))])
    assert udr([CODES, more], [KL, np.array([1, 1, 1, 0, 0, 0, 0, 0.009])]) == udr([CODES, CODES], [KL, KL])
    assert udr([CODES, CODES], [KL, 0 * KL]) == [0, 0]
