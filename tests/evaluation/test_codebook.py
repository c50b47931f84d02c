"""The use of codes, the bound of a quantised model, and the fit of a prior, against exact values."""

import math
from functools import partial

import pytest
import torch

from vaelab.evaluation import codebook
from vaelab.likelihoods import Gaussian
from vaelab.models import VQVAE
from vaelab.networks import ConvDecoder, ConvEncoder, PixelCNN


def build() -> VQVAE:
    parts = partial(ConvEncoder, channels=[4, 4], hidden=[]), partial(ConvDecoder, channels=[4, 4])
    return VQVAE(2, 3, (1, 8, 8), *parts, Gaussian(0.5)).eval()


def pixel_cnn(num_categories: int) -> PixelCNN:
    return PixelCNN(num_categories, channels=8, kernel_size=3, num_blocks=1)


def test_usage_of_codes_with_known_shares() -> None:
    maps = torch.tensor([[[0, 0], [0, 0]], [[1, 1], [3, 3]]])
    perplexity, used = codebook.usage(maps, 8)
    assert perplexity == pytest.approx(math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)))
    assert used == 3 / 8
    assert codebook.usage(torch.arange(6).view(1, 2, 3), 6) == (pytest.approx(6), 1)


def test_maps_of_whole_pixels_are_those_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "SIZE", 3)
    model, pixels = build(), torch.randint(256, (7, 1, 8, 8), dtype=torch.uint8)
    maps = codebook.code_maps(model, pixels)
    assert maps.shape == (7, 2, 2)
    assert torch.equal(maps, codebook.code_maps(model, pixels.float().div(255)))
    assert torch.equal(maps, model.indices(pixels.float().div(255)))


def test_no_more_numbers_at_a_time_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 codes at 2 x 2 places are 12 numbers, of which 30 hold two maps. At least one map is worked on."""
    model, prior, x = build(), pixel_cnn(3), torch.rand(5, 1, 8, 8)
    maps, sizes = codebook.code_maps(model, x), []
    nats = codebook.nats(prior, maps)
    monkeypatch.setattr(model, "indices", lambda x: sizes.append(len(x)) or VQVAE.indices(model, x))
    monkeypatch.setattr(prior, "log_prob", lambda k: sizes.append(len(k)) or PixelCNN.log_prob(prior, k))
    for most, expected in ((30, [2, 2, 1]), (5, [1] * 5)):
        monkeypatch.setattr(codebook, "MOST", most)
        assert torch.equal(codebook.code_maps(model, x), maps)
        torch.testing.assert_close(codebook.nats(prior, maps), nats)
        assert sizes == 2 * expected
        sizes.clear()


def test_the_bound_is_below_the_sum_over_all_maps_of_codes() -> None:
    """3^4 maps: log p(x) = log sum_k p(x | k) p(k) is exact."""
    torch.manual_seed(3)
    model, x = build(), torch.rand(5, 1, 8, 8)
    metrics, per_image = codebook.codebook_statistics(model, x, x)
    assert not per_image
    assert metrics["train_perplexity"] == metrics["test_perplexity"]
    model.code_prior = pixel_cnn(3)
    _, per_image = codebook.codebook_statistics(model, x, x)
    every = torch.cartesian_prod(*4 * [torch.arange(3)]).view(81, 2, 2)
    log_prior = model.code_prior.log_prob(every)
    log_likelihood = model.decode(model.codes(every).flatten(1)).log_prob(x.unsqueeze(1))  # (5, 81)
    joint = (log_likelihood + log_prior).double()
    place = (every == model.indices(x).unsqueeze(1)).all((-2, -1)).long().argmax(1)
    torch.testing.assert_close(per_image["code_nats"], -log_prior[place].double())
    torch.testing.assert_close(per_image["code_bound"], joint[torch.arange(5), place])
    assert (per_image["code_bound"] <= joint.logsumexp(1)).all()


def test_a_fitted_prior_reaches_the_entropy_of_the_maps() -> None:
    """Half of the maps are all 0. In the others, the first place is 1 or 2 with equal chance and repeats itself."""
    first = torch.tensor([0, 0, 1, 2])
    maps = first.view(-1, 1, 1).expand(-1, 2, 2).contiguous()
    state = torch.get_rng_state()
    prior = pixel_cnn(3)
    torch.set_rng_state(state)
    seen: list[tuple] = []
    fit = codebook.fit_prior(prior, maps, maps, 150, 4, 0.03, progress=lambda *each: seen.append(each))
    assert torch.equal(torch.get_rng_state(), state)
    entropy = 1.5 * math.log(2)
    assert fit.nats == pytest.approx(entropy, abs=0.02)
    assert fit.nats == min(val for _, _, val in seen) == codebook.nats(prior, maps).mean().item()
    assert [epoch for epoch, _, _ in seen] == list(range(1, 151))
    assert seen[0][1] > seen[-1][1]


def test_without_validation_maps_the_last_weights_are_kept() -> None:
    maps = torch.zeros(4, 2, 2, dtype=torch.long)
    fit = codebook.fit_prior(pixel_cnn(2), maps, None, epochs=3, batch_size=2)
    assert fit.epoch == 3


def test_a_loss_that_is_not_finite_is_refused() -> None:
    maps = torch.randint(3, (8, 2, 2))
    with pytest.raises(ValueError, match=r"the loss of the prior is not a finite number in epoch .: set a smaller lr"):
        codebook.fit_prior(pixel_cnn(3), maps, None, epochs=4, batch_size=1, lr=1e30)
