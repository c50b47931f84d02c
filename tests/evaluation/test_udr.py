"""The unsupervised ranking of constructed codes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vaelab.evaluation.udr import compare_seeds, udr

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


def test_a_dimension_whose_mean_is_constant_agrees_with_none() -> None:
    """Its rate can be above zero, because the variance of q(z | x) has information, too."""
    constant = np.column_stack([CODES[:, :1], np.ones(len(CODES))])
    assert udr([CODES[:, :1], constant], [KL[:1], KL[:2]]) == pytest.approx([2 / 3] * 2)
    assert udr([constant[:, 1:], constant[:, 1:]], [KL[:1]] * 2) == [0, 0]


def test_models_get_their_scores_from_the_same_images() -> None:
    """Their codes are the pixels, in another order and with other scales. One dimension of the last has no rate."""
    images = torch.from_numpy(CODES[:, :2].copy())[:, None, None]
    orders = ([0, 1], [1, 0], [0, 1])
    models = [
        SimpleNamespace(num_classes=0, encode=lambda x, _, order=order: x.flatten(1)[:, order] * 3) for order in orders
    ]
    sizes = {"checked": 1, "refined": 1, "probed": 1}
    protocol = {"test_images": 2000, "train_images": 1, "num_samples": 1, "checked_samples": 1, "ais": None}
    records: list[dict] = [
        {"protocol": {**protocol, "sizes": sizes}, "metrics": {}, "meanings": {}, "rate_per_dim": rate}
        for rate in ([1.0, 2.0], [1.0, 2.0], [1.0, 0.0])
    ]
    compare_seeds(models, [(images, None)] * 3, records)
    assert [record["udr_runs"] for record in records] == [3] * 3
    expected = udr([CODES[:, :2], CODES[:, [1, 0]], CODES[:, :2]], [KL[:2], KL[:2], np.array([1, 0])])
    assert [record["metrics"]["udr"] for record in records] == pytest.approx(expected)
    assert records[0]["meanings"]["udr"].endswith("N = 2,000 images")

    unknown = [{**record, "metrics": {}, "rate_per_dim": None} for record in records]
    compare_seeds(models, [(images, None)] * 3, unknown)
    assert [record["metrics"] for record in unknown] == [{}] * 3
