"""A stack computes the terms of its members, and the members' weights are views of its weights."""

from functools import partial
from typing import Any

import pytest
import torch

from vaelab.errors import UserError
from vaelab.extensions.stack import Member, Stack
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal
from vaelab.training import VAEModule


def member(seed: int, beta: float = 1.0, hidden: int = 8) -> Member:
    torch.manual_seed(seed)
    encoder, decoder = (partial(network, hidden=[hidden]) for network in (MLPEncoder, MLPDecoder))
    vae = VAE(2, (1, 4, 3), encoder, DiagonalGaussian, StandardNormal, decoder, Bernoulli())
    return Member(vae, ELBO(beta=beta), torch.optim.Adam)


def test_terms_are_those_of_each_member_by_itself() -> None:
    members = [member(0), member(1, beta=4.0)]
    batch = (torch.rand(5, 1, 4, 3) < 0.5).float(), torch.zeros(5, dtype=torch.long)
    torch.manual_seed(7)
    losses, terms = Stack(members)(batch, torch.zeros(()))
    torch.testing.assert_close(losses, terms["loss"].mean(1))
    for i, each in enumerate(members):
        torch.manual_seed(7)
        for name, term in each.terms(batch, torch.zeros(())).items():
            torch.testing.assert_close(terms[name][i], term)
    torch.testing.assert_close(terms["loss"][1], terms["distortion"][1] + 4 * terms["rate"][1])


def test_weights_are_views_and_gradients_are_handed_on() -> None:
    members = [member(0), member(1)]
    stack = Stack(members)
    stack.share(members)
    name, weight = next(members[1].named_parameters())
    with torch.no_grad():
        weight.fill_(3)
    assert (stack.weights[name][1] == 3).all()
    for weights in stack.weights.values():
        weights.grad = torch.arange(2.0).view(-1, *[1] * (weights.dim() - 1)).expand_as(weights)
    stack.split_gradients(members)
    assert all((weight.grad == 1).all() for weight in members[1].parameters())
    assert all((weight.grad == 0).all() for weight in members[0].parameters())


def test_members_of_different_shapes_make_no_stack() -> None:
    with pytest.raises(UserError, match=r"model.encoder.layers.1.weight has shapes \(8, 12\) and \(9, 12\)"):
        Stack([member(0), member(0, hidden=9)])


def test_an_edited_training_step_takes_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edited loss becomes each member's loss, and metrics that the edit adds become terms."""
    original = VAEModule.training_step

    def training_step(self: VAEModule, batch: Any, batch_idx: int) -> torch.Tensor:
        self.metrics.add("train", {"steps": self.step.expand(len(batch[0]))}, self.step)
        return original(self, batch, batch_idx) + sum(p.square().sum() for p in self.parameters())

    monkeypatch.setattr(VAEModule, "training_step", training_step)
    members = [member(0), member(1)]
    norms = torch.stack([sum(p.detach().square().sum() for p in each.parameters()) for each in members])
    batch = (torch.rand(5, 1, 4, 3) < 0.5).float(), torch.zeros(5, dtype=torch.long)
    losses, terms = Stack(members)(batch, torch.tensor(7.0))
    torch.testing.assert_close(losses, terms["loss"].mean(1) + norms)
    assert (terms["steps"] == 7).all()
    assert Stack(members)(batch, None)[1].keys() == terms.keys() - {"steps"}
