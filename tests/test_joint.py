"""The densities of independent blocks multiply, and their sizes and rates add up."""

from functools import partial

import pytest
import torch
from torch.distributions import kl_divergence

from vaelab.distributions import Product
from vaelab.errors import UserError
from vaelab.joint import Joint
from vaelab.posteriors import Categorical, DiagonalGaussian
from vaelab.priors import StandardNormal, UniformCategorical
from vaelab.trace import draw


def test_blocks_are_independent_and_their_rates_add_up() -> None:
    posterior = Joint(7, 10, blocks=[DiagonalGaussian, partial(Categorical, num_categories=3)], dims=[4, 6])
    prior = Joint(10, blocks=[StandardNormal, partial(UniformCategorical, num_categories=3)], dims=[4, 6])
    q, p = posterior.eval()(torch.randn(5, 7)), prior(lambda: None)
    assert isinstance(q, Product)
    assert (q.batch_shape, q.event_shape) == ((5,), (10,))
    assert (p.batch_shape, p.event_shape) == ((), (10,))
    z = p.sample((5,))
    each = [factor.log_prob(part) for factor, part in zip(q.factors, z.split([4, 6], -1), strict=True)]
    torch.testing.assert_close(q.log_prob(z), each[0] + each[1])
    gaussian, categorical = draw(q, p, torch.Size((1,)))
    torch.testing.assert_close(gaussian.kl()[0], kl_divergence(q.factors[0], p.factors[0]))
    torch.testing.assert_close(categorical.kl()[0], kl_divergence(q.factors[1], p.factors[1]))


@pytest.mark.parametrize("dims", [[4], [4, 5], [4, 6, 1]])
def test_sizes_have_to_add_up(dims: list[int]) -> None:
    with pytest.raises(UserError, match=r"2 sizes are needed that add up to latent_dim=10"):
        Joint(10, blocks=[StandardNormal, StandardNormal], dims=dims)
