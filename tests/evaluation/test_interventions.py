"""Scores from images that share one factor, on constructed codes."""

import numpy as np
import pytest

from vaelab.evaluation.interventions import beta_vae_score, factor_vae_score, partners

FACTORS = np.tile(np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2), (10, 1))
IDENTITY = FACTORS.astype(float)
TURNED = np.column_stack([IDENTITY.sum(1), IDENTITY[:, 0] - IDENTITY[:, 1]]) / 2**0.5
SCORES = (beta_vae_score, factor_vae_score)


def test_partners_share_the_factor_that_is_held_and_no_other() -> None:
    random = np.random.default_rng(0)
    held, images = random.integers(2, size=200), random.integers(len(FACTORS), size=(200, 8))
    found = partners(FACTORS, held, images, random)
    rows = np.arange(200)[:, None]
    assert np.array_equal(FACTORS[found, held[rows]], FACTORS[images, held[rows]])
    other = FACTORS[found, 1 - held[rows]]
    assert np.bincount(other.ravel()) == pytest.approx(400, rel=0.15)


@pytest.mark.parametrize("score", SCORES)
def test_a_code_of_the_factors_is_perfect(score) -> None:
    assert score(IDENTITY, FACTORS, 400, 32) == 1
    assert score(IDENTITY[:, ::-1] * [5, -0.5], FACTORS, 400, 32) == 1


@pytest.mark.parametrize("score", SCORES)
def test_a_rotation_and_noise_are_guesses(score) -> None:
    """Both dimensions vary as much, whichever factor is held: three standard errors of 1,000 guesses."""
    noise = np.random.default_rng(1).normal(size=IDENTITY.shape)
    for codes in (TURNED, noise):
        assert score(codes, FACTORS, 2000, 32) == pytest.approx(0.5, abs=3 * 0.5 / 1000**0.5)


def test_the_scale_of_a_whole_code_does_not_change_the_score_of_the_beta_vae() -> None:
    noisy = IDENTITY + np.random.default_rng(0).normal(size=IDENTITY.shape)
    first, *others = (beta_vae_score(scale * noisy, FACTORS, 400, 8) for scale in (1, 1e-3, 1e3))
    assert 0.6 < first < 0.95
    assert others == [first, first]
    assert beta_vae_score(0 * noisy, FACTORS, 400, 8) == pytest.approx(0.5, abs=0.1)


def test_a_missing_factor_is_never_named_by_the_vote() -> None:
    assert factor_vae_score(IDENTITY[:, :1], FACTORS, 400, 32) == pytest.approx(0.5, abs=0.1)


def test_collapsed_dimensions_are_left_out() -> None:
    tiny = 0.02 * IDENTITY  # standard deviation 0.022
    assert factor_vae_score(tiny, FACTORS, 400, 32) == 0
    assert factor_vae_score(5 * tiny, FACTORS, 400, 32) == 1
    both = np.column_stack([tiny[:, 0], IDENTITY[:, 1]])
    assert factor_vae_score(both, FACTORS, 400, 32) == factor_vae_score(IDENTITY[:, 1:], FACTORS, 400, 32)
