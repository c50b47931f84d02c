import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracle import LinearGaussian
from torch import Tensor

from vaelab.joint import Joint
from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import MMD
from vaelab.objectives.mmd import KERNELS, imq, mmd, rbf
from vaelab.posteriors import DiagonalGaussian, PointMass
from vaelab.priors import StandardNormal

SHAPE = (1, 2, 3)


def vae(**parts: object) -> VAE:
    torch.manual_seed(2)
    networks = {"encoder": partial(MLPEncoder, hidden=[]), "decoder": partial(MLPDecoder, hidden=[])}
    return VAE(2, SHAPE, prior=StandardNormal, likelihood=Gaussian(scale=0.7), **networks, **parts)


def evaluate(objective: MMD, model: VAE | None = None, count: int = 8) -> dict[str, Tensor]:
    oracle = LinearGaussian()
    x = oracle.images(count)
    model = model or oracle.vae(exact=False)
    torch.manual_seed(5)
    return objective(model, x)


def by_hand(z: Tensor, w: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The statistic by loops over pairs, without the pairs of a point with itself."""
    b = len(z)
    k = [
        [[kernel((a - c).square().sum()) for c in second] for a in first] for first, second in ((z, z), (w, w), (z, w))
    ]
    within = sum(k[n][i][j] for n in (0, 1) for i in range(b) for j in range(b) if i != j)
    return within / (b * (b - 1)) - 2 * sum(map(sum, k[2])) / b**2


# The statistic --------------------------------------------------------------------------------------------------------


def test_kernels() -> None:
    """Both kernels are one at distance zero and fall with the distance; imq is a mean over seven scales."""
    d = torch.tensor([0.0, 1.0, 4.0, 100.0])
    torch.testing.assert_close(rbf(d, 2.0), torch.tensor([1.0, math.exp(-0.5), math.exp(-2), math.exp(-50)]))
    scales = [2.0 * c for c in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    torch.testing.assert_close(imq(d, 2.0), torch.tensor([sum(c / (c + v) for c in scales) / 7 for v in d.tolist()]))


@pytest.mark.parametrize("name", KERNELS)
def test_statistic_is_the_double_sum_over_pairs(name: str) -> None:
    z, w = torch.randn(6, 3) + 3, torch.randn(6, 3)
    statistic = mmd(z, w, KERNELS[name], 4.0)
    torch.testing.assert_close(statistic, by_hand(z, w, lambda d: KERNELS[name](d, 4.0)))
    assert statistic > 0.05


def rbf_between_gaussians(shift: Tensor, variance: float, bandwidth: float) -> float:
    """E exp(-|d|^2 / h) of a difference d ~ N(shift, v I): (1 + 2 v / h)^(-D/2) exp(-|shift|^2 / (h + 2 v))."""
    spread = (1 + 2 * variance / bandwidth) ** (-len(shift) / 2)
    return spread * math.exp(-shift.square().sum().item() / (bandwidth + 2 * variance))


def draws(z: Tensor, w: Tensor, kernel: Callable[[Tensor, float], Tensor], bandwidth: float) -> Tensor:
    """The statistic of each of N pairs of samples: (N, B, D) -> (N,)."""
    return torch.vmap(lambda z, w: mmd(z, w, kernel, bandwidth))(z, w)


def errors(values: Tensor, truth: float) -> float:
    """How many standard errors the mean of `values` is from the truth."""
    return ((values.mean() - truth).abs() / (values.std() / len(values) ** 0.5)).item()


def test_statistic_is_unbiased_for_gaussians() -> None:
    shift, scale, bandwidth, size = torch.tensor([0.8, -0.5, 0.0]), 0.6, 3.0, 4
    none = torch.zeros(3)
    truth = (
        rbf_between_gaussians(none, 2 * scale**2, bandwidth)
        + rbf_between_gaussians(none, 2.0, bandwidth)
        - 2 * rbf_between_gaussians(shift, 1 + scale**2, bandwidth)
    )
    values = draws(torch.randn(50_000, size, 3) * scale + shift, torch.randn(50_000, size, 3), rbf, bandwidth)
    assert errors(values, truth) < 4.5
    own = sum(1 - rbf_between_gaussians(none, variance, bandwidth) for variance in (2 * scale**2, 2.0))
    assert errors(values + own / size, truth) > 50  # the statistic with the pairs of a point with itself is biased


@pytest.mark.parametrize("name", KERNELS)
def test_statistic_has_mean_zero_for_equal_distributions(name: str) -> None:
    values = draws(torch.randn(20_000, 5, 2), torch.randn(20_000, 5, 2), KERNELS[name], 4.0)
    assert errors(values, 0.0) < 4.5
    assert (values < 0).float().mean() > 0.3  # an unbiased estimate of zero is often negative
    other = draws(1.3 * torch.randn(20_000, 5, 2), torch.randn(20_000, 5, 2), KERNELS[name], 4.0)
    assert errors(other, 0.0) > 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistic_under_autocast(dtype: torch.dtype) -> None:
    """Squares cancel if codes are far from the origin, and a 16-bit type loses all digits."""
    z, w = torch.randn(64, 10) + 30, torch.randn(64, 10) + 30.5
    expected = mmd(z, w, rbf, 20.0)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(mmd(z, w, rbf, 20.0), expected)
    torch.testing.assert_close(expected, mmd(z.double(), w.double(), rbf, 20.0).float(), atol=1e-5, rtol=1e-3)


def test_gradient_brings_codes_to_the_prior() -> None:
    z = (0.3 * torch.randn(200, 2) + 1.5).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        mmd(z, torch.randn(200, 2), rbf, 4.0).backward()
        optimizer.step()
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=0.3, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(2), atol=0.3, rtol=0)


# The objective --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "weight", "rate_weight", "mmd_weight"),
    [
        (0.0, 1000.0, 1.0, 999.0),
        (-3.0, 10.0, 4.0, 6.0),
        (0.5, 1.0, 0.5, 0.5),
        (1.0, 7.0, 0.0, 7.0),
        (0.0, 1.0, 1.0, 0.0),
    ],
)
def test_weights_of_the_infovae(alpha: float, weight: float, rate_weight: float, mmd_weight: float) -> None:
    t = evaluate(MMD(alpha, weight))
    expected = t["distortion"] + rate_weight * t["rate"] + mmd_weight * t["mmd"]
    torch.testing.assert_close(t["loss"], expected)
    torch.testing.assert_close(t["elbo"], -(t["distortion"] + t["rate"]))
    assert all(term.shape == (8,) for term in t.values())


@pytest.mark.parametrize("name", KERNELS)
def test_codes_are_compared_with_draws_of_the_prior(name: str) -> None:
    oracle = LinearGaussian()
    x, model = oracle.images(8), oracle.vae(exact=False)
    torch.manual_seed(5)
    z = model(x).latents[0].z[0]
    expected = mmd(z, torch.randn(8, 2), KERNELS[name], 4.0)  # a bandwidth of 2 D
    torch.testing.assert_close(evaluate(MMD(kernel=name))["mmd"], expected.expand(8))
    assert torch.equal(evaluate(MMD(kernel=name, bandwidth=4.0))["mmd"], evaluate(MMD(kernel=name))["mmd"])
    assert (evaluate(MMD(kernel=name, bandwidth=1.0))["mmd"] - expected).abs().max() > 1e-3


def test_wasserstein_autoencoder_of_a_point_mass_has_neither_rate_nor_elbo() -> None:
    t = evaluate(MMD(alpha=1.0, weight=10.0), vae(posterior=PointMass))
    assert set(t) == {"loss", "distortion", "mmd"}
    assert t["loss"].isfinite().all()
    torch.testing.assert_close(t["loss"], t["distortion"] + 10 * t["mmd"])


@pytest.mark.parametrize("alpha", [0.0, 0.99])
def test_any_share_of_the_rate_of_a_point_mass_is_infinite(alpha: float) -> None:
    assert (evaluate(MMD(alpha=alpha), vae(posterior=PointMass))["loss"] == math.inf).all()


@pytest.mark.parametrize("posterior", [None, PointMass])
def test_a_batch_of_one_image_is_finite(posterior: type | None) -> None:
    model = vae(posterior=posterior) if posterior else LinearGaussian().vae(exact=False)
    t = evaluate(MMD(alpha=1.0), model, count=1)
    assert t["loss"].isfinite().all()
    t["loss"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.posterior.parameters())


def test_several_codes_are_refused() -> None:
    model = VAE(
        4, SHAPE, partial(MLPEncoder, hidden=[]), partial(Joint, blocks=[DiagonalGaussian] * 2, dims=[1, 3]),
        partial(Joint, blocks=[StandardNormal] * 2, dims=[1, 3]), partial(MLPDecoder, hidden=[]), Gaussian(),
    )  # fmt: skip
    with pytest.raises(TypeError, match="MMD is defined for one code, and this model has 2"):
        evaluate(MMD(), model)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kernel": "linear"}, "kernel=linear: choose one of rbf, imq"),
        ({"weight": -1}, "weight=-1: a number, at least zero"),
        ({"bandwidth": 0}, "bandwidth=0: a number above zero"),
        ({"bandwidth": math.inf}, "bandwidth=inf: a number above zero"),
        ({"bandwidth": -2.0}, r"bandwidth=-2.0: a number above zero"),
        ({"bandwidth": "wide"}, "bandwidth=wide: a number above zero"),
        ({"alpha": 1.1}, "alpha=1.1 and weight=1000.0: alpha <= 1"),
        ({"alpha": math.nan}, "alpha=nan and weight"),
        ({"alpha": 0.5, "weight": 0.4}, r"alpha \+ weight >= 1 are needed"),
    ],
)
def test_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MMD(**settings)
