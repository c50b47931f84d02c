"""The strangeness of images, with a model whose log p(x) is known."""

import torch
from oracle import LinearGaussian

from vaelab.evaluation.strangeness import strangeness


def test_the_percentile_is_the_share_of_test_images_below() -> None:
    torch.manual_seed(0)
    oracle = LinearGaussian()
    model, test, x = oracle.vae(exact=True).eval(), oracle.images(200), oracle.images(9)
    x[4] += 3  # far from all images
    found = strangeness(model, x, test, num_samples=5)
    exact, others = oracle.log_prob(x), oracle.log_prob(test)
    torch.testing.assert_close(found.bound.float(), exact.float(), rtol=0, atol=1e-3)  # the exact posterior
    torch.testing.assert_close(found.elbo, found.bound, rtol=0, atol=1e-3)
    wanted = [100 * (others <= each).double().mean() for each in exact]
    assert (found.percentile - torch.stack(wanted)).abs().max() < 0.51  # rounding can move one image of 200
    assert int(found.bound.argmin()) == 4
    assert found.percentile[4] == 0
    assert found.order[0] == 4
    head, first, *rest = found.table([f"{i}, a.png" for i in range(9)]).splitlines()
    assert head == "rank,name,elbo,bound,percentile"
    assert first == f'1,"4, a.png",{found.elbo[4]:.3f},{found.bound[4]:.3f},0.000'
    assert len(rest) == 8


def test_a_test_image_itself_counts_as_at_or_below() -> None:
    oracle = LinearGaussian()
    model, test = oracle.vae(exact=True).eval(), oracle.images(10)
    found = strangeness(model, test, test, num_samples=3)
    assert sorted(found.percentile.tolist()) == [10.0 * i for i in range(1, 11)]
