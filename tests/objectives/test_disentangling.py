import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracle import LinearGaussian
from torch import Size, Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from vaelab.likelihoods import Gaussian
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import DIP, ELBO, BetaTC, Objective
from vaelab.posteriors import DiagonalGaussian, FullCovarianceGaussian, PointMass
from vaelab.priors import StandardNormal, VampPrior
from vaelab.trace import Trace, draw

PARTS = ("mutual_information", "total_correlation", "dimension_wise_kl")
ESTIMATORS = ("stratified", "weighted")


def gaussian(mean: Tensor, scale: Tensor | float) -> Independent:
    return Independent(Normal(mean, scale), 1)


def trace_of(q: Distribution, p: Distribution | None = None, z: Tensor | None = None) -> Trace:
    """A trace of the posteriors q of B images with one pixel each; no test depends on the likelihood."""
    (latent,) = draw(q, p or gaussian(torch.zeros(q.event_shape), 1.0), Size((1,)))
    pixels = torch.zeros(1, *q.batch_shape, 1, 1, 1)
    return Trace((latent if z is None else latent._replace(z=z),), Independent(Normal(pixels, 1.0), 3))


def random_posteriors(count: int, dim: int = 3) -> Independent:
    return gaussian(torch.randn(count, dim), torch.rand(count, dim) + 0.3)


def score(objective: Objective, trace: Trace) -> dict[str, Tensor]:
    return objective.terms(trace, torch.zeros(trace.latents[0].z.shape[1], 1, 1, 1), None)


def learned(objective: BetaTC, num_images: int) -> BetaTC:
    objective.initialize(torch.empty(num_images, 1, 1, 1))
    return objective


def log_aggregate(objective: BetaTC, trace: Trace) -> Tensor:
    """The estimate of log q(z_i), computed from the mutual information: (B,)."""
    return trace.latents[0].log_q[0] - score(objective, trace)["mutual_information"]


# BetaTC ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_images", [7, 1000])
def test_parts_add_up_to_the_sampled_kl(estimator: str, num_images: int) -> None:
    trace = trace_of(random_posteriors(7))
    latent = trace.latents[0]
    t = score(learned(BetaTC(estimator=estimator), num_images), trace)
    assert all(t[part].shape == (7,) for part in PARTS)
    torch.testing.assert_close(sum(t[part] for part in PARTS), (latent.log_q - latent.p.log_prob(latent.z))[0])
    assert (sum(t[part] for part in PARTS) - t["rate"]).abs().max() > 0.1  # the rate is the closed form


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_with_weights_of_one_the_loss_is_the_sampled_elbo_s_on_the_same_noise(estimator: str) -> None:
    oracle = LinearGaussian()
    x, vae = oracle.images(8), oracle.vae(exact=False)
    losses = []
    for objective in (BetaTC(beta=1.0, estimator=estimator), BetaTC(beta=2.0), ELBO(kl="sample")):
        torch.manual_seed(5)
        losses.append(objective(vae, x)["loss"])
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=1e-4)
    assert (losses[1] - losses[2]).abs().max() > 0.1


def test_each_weight_is_its_part_s() -> None:
    trace = trace_of(random_posteriors(7))
    t = score(BetaTC(alpha=2.0, beta=3.0, gamma=5.0), trace)
    expected = t["distortion"] + 2 * t[PARTS[0]] + 3 * t[PARTS[1]] + 5 * t[PARTS[2]]
    torch.testing.assert_close(t["loss"], expected)
    torch.testing.assert_close(t["elbo"], -(t["distortion"] + t["rate"]))
    torch.testing.assert_close(t["rate"], trace.latents[0].kl()[0])


@pytest.mark.parametrize(("estimator", "offset"), [("stratified", 0.0), ("weighted", math.log(7))])
def test_a_batch_of_all_the_data_gives_the_mixture_of_all_posteriors(estimator: str, offset: float) -> None:
    q = random_posteriors(7)
    trace = trace_of(q)
    z = trace.latents[0].z[0]
    t = score(learned(BetaTC(estimator=estimator), 7), trace)

    joint = MixtureSameFamily(Categorical(torch.ones(7)), q).log_prob(z) - offset
    by_dim = Independent(Normal(q.mean.T, q.stddev.T), 0)  # batch (D, B)
    marginals = MixtureSameFamily(Categorical(torch.ones(3, 7)), by_dim).log_prob(z) - offset
    torch.testing.assert_close(t["mutual_information"], q.log_prob(z) - joint)
    torch.testing.assert_close(t["total_correlation"], joint - marginals.sum(-1))
    torch.testing.assert_close(t["dimension_wise_kl"], (marginals - Normal(0.0, 1.0).log_prob(z)).sum(-1))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_stratified_estimate_is_unbiased_over_all_batches_that_contain_the_image(size: int) -> None:
    count, image = 6, 2
    q = random_posteriors(count)
    z = q.sample()  # a code for each image, the same in every batch
    truth = q.log_prob(z[image]).exp().mean()

    def average(objective: BetaTC) -> Tensor:
        estimates = []
        for others in itertools.combinations(sorted({*range(count)} - {image}), size - 1):
            batch = torch.tensor([image, *others])
            trace = trace_of(gaussian(q.mean[batch], q.stddev[batch]), z=z[batch].unsqueeze(0))
            estimates.append(log_aggregate(objective, trace)[0].exp())
        assert len(estimates) == math.comb(count - 1, size - 1)
        return torch.stack(estimates).mean()

    torch.testing.assert_close(average(learned(BetaTC(), count)), truth)
    weighted = average(learned(BetaTC(estimator="weighted"), count)) * count  # without the constant
    assert (weighted / truth - 1).abs() > 0.01


@pytest.mark.parametrize(("size", "n"), [(2, 2), (2, 9), (5, 5), (5, 9), (128, 60_000)])
def test_stratified_weights_are_the_paper_s_averaged_over_which_image_is_last(size: int, n: int) -> None:
    """With M = B - 1, the weights are 1/N for the image, (N - M) / (N M) for one other and 1/M for the rest."""
    m = size - 1
    paper = torch.full((m, size, size), 1 / m, dtype=torch.float64)  # (choices of the last, B, B)
    for i in range(size):
        others = [j for j in range(size) if j != i]
        paper[:, i, i] = 1 / n
        paper[range(m), i, others] = (n - m) / (n * m)
    torch.testing.assert_close(paper.sum(-1), torch.ones(m, size, dtype=torch.float64))
    weights = learned(BetaTC(), n)._log_weights(size).exp()
    torch.testing.assert_close(weights.double(), paper.mean(0), rtol=1e-5, atol=1e-9)


def test_weighted_estimate_by_hand() -> None:
    """log q(z) = log 1/(N B) sum_j q(z | x_j), for the whole code and for each dimension."""
    q = random_posteriors(7)
    trace = trace_of(q)
    z = trace.latents[0].z[0]
    t = score(learned(BetaTC(estimator="weighted"), 60_000), trace)
    by_dim = q.base_dist.log_prob(z.unsqueeze(1)).exp()  # (B, B, D)
    joint = (by_dim.prod(-1).sum(1) / (60_000 * 7)).log()
    marginals = (by_dim.sum(1) / (60_000 * 7)).log()
    torch.testing.assert_close(t["mutual_information"], q.log_prob(z) - joint, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(t["total_correlation"], joint - marginals.sum(-1), rtol=1e-4, atol=1e-4)


def test_the_number_of_images_is_learned_and_saved() -> None:
    objective, fresh = learned(BetaTC(), 60_000), BetaTC()
    assert objective.state_dict()["num_images"] == 60_000
    fresh.load_state_dict(objective.state_dict())
    trace = trace_of(random_posteriors(7))
    assert torch.equal(log_aggregate(fresh, trace), log_aggregate(objective, trace))
    unlearned = log_aggregate(BetaTC(), trace)
    assert (unlearned - log_aggregate(objective, trace)).abs().max() > 0.01
    assert torch.equal(unlearned, log_aggregate(learned(BetaTC(), 7), trace))  # the batch is all the data


def test_a_posterior_that_ignores_the_image_tells_nothing_of_it() -> None:
    same = trace_of(gaussian(torch.tensor([0.5, -1.0, 2.0]).expand(7, 3), torch.tensor([0.5, 1.0, 0.2]).expand(7, 3)))
    t = score(learned(BetaTC(), 7), same)
    for part in PARTS[:2]:
        torch.testing.assert_close(t[part], torch.zeros(7), atol=1e-5, rtol=0)
    assert score(learned(BetaTC(), 7), trace_of(random_posteriors(7)))[PARTS[0]].mean() > 0.1


@pytest.mark.parametrize(
    ("means", "information", "correlation"),
    [
        ([[9, 9, 0], [-9, -9, 0]], math.log(2), math.log(2)),
        ([[9, 9, 9], [-9, -9, -9]], math.log(2), 2 * math.log(2)),
        ([[9, 9, 0], [9, -9, 0], [-9, 9, 0], [-9, -9, 0]], math.log(4), 0.0),
    ],
    ids=["two dimensions agree", "three dimensions agree", "a full grid is independent"],
)
def test_information_and_correlation_of_posteriors_far_apart(
    means: list[list[int]], information: float, correlation: float
) -> None:
    """Codes identify their image and dimensions their value, so both statistics are logarithms of counts."""
    count = len(means)
    t = score(learned(BetaTC(), count), trace_of(gaussian(torch.tensor(means).float(), torch.ones(count, 3))))
    torch.testing.assert_close(t["mutual_information"], torch.full((count,), information), atol=1e-4, rtol=0)
    torch.testing.assert_close(t["total_correlation"], torch.full((count,), correlation), atol=1e-4, rtol=0)


def test_a_single_image_and_gradients_are_finite() -> None:
    for size, estimator in itertools.product((1, 4), ESTIMATORS):
        mean = torch.randn(size, 3, requires_grad=True)
        t = score(learned(BetaTC(estimator=estimator), 100), trace_of(gaussian(mean, torch.full((size, 3), 1e-3))))
        (gradient,) = torch.autograd.grad(t["loss"].sum(), mean)
        assert gradient.isfinite().all()
        assert t["loss"].isfinite().all()


# DIP ------------------------------------------------------------------------------------------------------------------


def covariance_by_hand(q: Independent, kind: str) -> Tensor:
    centred = q.mean - q.mean.mean(0)
    covariance = torch.stack([torch.outer(row, row) for row in centred]).mean(0)
    return covariance + (kind == "II") * q.variance.mean(0).diag()


@pytest.mark.parametrize("kind", ["I", "II"])
def test_penalty_by_hand(kind: str) -> None:
    q = random_posteriors(7)
    t = score(DIP(kind, off_diagonal=2.0, diagonal=3.0), trace_of(q))
    c = covariance_by_hand(q, kind)
    off = sum(c[i, j] ** 2 for i in range(3) for j in range(3) if i != j)
    on = sum((c[i, i] - 1) ** 2 for i in range(3))
    torch.testing.assert_close(t["covariance_penalty"], (2 * off + 3 * on).expand(7))
    torch.testing.assert_close(t["loss"], t["distortion"] + t["rate"] + t["covariance_penalty"])
    torch.testing.assert_close(torch.cov(q.mean.T, correction=0), covariance_by_hand(q, "I"))


@pytest.mark.parametrize(("kind", "scale"), [("I", 0.6), ("II", 0.6)])
def test_penalty_is_zero_where_the_covariance_is_the_identity(kind: str, scale: float) -> None:
    """The means are corners of a square with side 2, or a smaller one if the posterior's variance counts too."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    side = 1.0 if kind == "I" else math.sqrt(1 - scale**2)
    trace = trace_of(gaussian(side * corners, torch.full((4, 2), scale)))
    torch.testing.assert_close(score(DIP(kind), trace)["covariance_penalty"], torch.zeros(4), atol=1e-5, rtol=0)
    other = "II" if kind == "I" else "I"
    assert score(DIP(other), trace)["covariance_penalty"].min() > 1


def test_weights_of_dip_are_separate() -> None:
    turned = trace_of(gaussian(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2)))  # C = [[1, 1], [1, 1]]
    torch.testing.assert_close(score(DIP("I", 5.0, 0.0), turned)["covariance_penalty"], torch.full((2,), 10.0))
    torch.testing.assert_close(score(DIP("I", 0.0, 5.0), turned)["covariance_penalty"], torch.zeros(2))
    torch.testing.assert_close(score(DIP("II", 0.0, 5.0), turned)["covariance_penalty"], torch.full((2,), 10.0))


def test_dip_with_one_dimension_or_one_image() -> None:
    one = score(DIP("I", diagonal=1.0), trace_of(gaussian(torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1))))
    torch.testing.assert_close(one["covariance_penalty"], torch.zeros(2))
    assert score(DIP("I", diagonal=1.0), trace_of(random_posteriors(1)))["covariance_penalty"] == 3  # C = 0


@pytest.mark.parametrize("kind", ["I", "II"])
def test_covariance_under_autocast(kind: str) -> None:
    trace = trace_of(random_posteriors(7))
    expected = score(DIP(kind), trace)["covariance_penalty"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(DIP(kind), trace)["covariance_penalty"], expected)


# Both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [BetaTC(), DIP()], ids=["BetaTC", "DIP"])
@pytest.mark.parametrize(
    ("posterior", "prior", "sentence"),
    [
        (PointMass, StandardNormal, "needs factorised Gaussians, got q = Delta"),
        (FullCovarianceGaussian, StandardNormal, "needs factorised Gaussians, got q = MultivariateNormal"),
        (DiagonalGaussian, partial(VampPrior, image_shape=(1, 2, 3), num_components=3), "and p = MixtureSameFamily"),
    ],
)
def test_they_need_factorised_gaussians(
    objective: Objective, posterior: Callable, prior: Callable, sentence: str
) -> None:
    vae = VAE(
        2, (1, 2, 3), partial(MLPEncoder, hidden=[]), posterior, prior,
        partial(MLPDecoder, hidden=[]), Gaussian(),
    )  # fmt: skip
    with pytest.raises(TypeError, match=sentence):
        objective(vae, torch.rand(4, 1, 2, 3))


@pytest.mark.parametrize("objective", [BetaTC(), DIP()], ids=["BetaTC", "DIP"])
def test_they_need_a_single_code(objective: Objective) -> None:
    trace = trace_of(random_posteriors(4))
    two = Trace((*trace.latents, *trace.latents), trace.likelihood)
    with pytest.raises(TypeError, match=f"{type(objective).__name__} is defined for one code, and this model has 2"):
        score(objective, two)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: BetaTC(estimator="mss"), "estimator=mss: choose one of stratified, weighted"),
        (lambda: BetaTC(beta=-1), "beta=-1: a number, at least zero"),
        (lambda: DIP(kind="III"), "kind=III: choose one of I, II"),
        (lambda: DIP(diagonal="big"), "diagonal=big: a number, at least zero"),
    ],
)
def test_settings_out_of_range(build: Callable[[], Objective], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()
