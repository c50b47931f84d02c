"""The bounds of M2: sums over classes by hand, quadrature over z, and what a label may change."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Compose, checkpoint
from torch import Tensor, nn
from torch.distributions import Bernoulli as Coin
from torch.distributions import Normal, kl_divergence

from train import train
from vaelab.data import ImageDataModule
from vaelab.errors import PartsError
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO, M2
from vaelab.posteriors import ClassPosterior, DiagonalGaussian
from vaelab.priors import ClassPrior, StandardNormal

C, SHAPE = 3, (1, 1, 4)


def tiny(in_code: bool = True, learned: bool = False, num_classes: int = C, dim: int = 1) -> VAE:
    """A model of four binary pixels, with `dim` dimensions of z."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"num_classes": num_classes, "in_code": in_code}
    vae = VAE(
        dim + in_code * num_classes, SHAPE, partial(MLPEncoder, hidden=[]), partial(ClassPosterior, width=5, **sizes),
        partial(ClassPrior, learned=learned, **sizes), partial(MLPDecoder, hidden=[6]), Bernoulli(),
    )  # fmt: skip
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(2).add_(0.1)
    return vae


def images() -> Tensor:
    """All sixteen images of four binary pixels."""
    return torch.cartesian_prod(*4 * [torch.tensor([0.0, 1.0])]).view(16, *SHAPE)


def by_hand(model: VAE, x: Tensor, noise: Tensor, in_code: bool) -> tuple[Tensor, Tensor]:
    """log q(y | x) and L(x, y) of each class, (C, B) each, one class and one image at a time; noise (B, C, D)."""
    posterior, prior = model.posterior, model.prior
    bounds, log_q = torch.zeros(C, len(x)), torch.zeros(C, len(x))
    for b, image in enumerate(x.flatten(1)):
        log_q[:, b] = posterior.classifier(image).log_softmax(0)
        for c in range(C):
            one_hot = torch.eye(C)[c]
            features = F.softplus(posterior.hidden(torch.cat([image, one_hot])))
            mean, log_variance = posterior.gaussian.linear(features).chunk(2)
            z = mean + (0.5 * log_variance).exp() * noise[b, c]
            logits = model.decoder.layers[:-1](torch.cat([z, one_hot]) if in_code else z)
            rate = kl_divergence(
                Normal(mean, (0.5 * log_variance).exp()), Normal(prior.mean[c], prior.log_std[c].exp())
            )
            bounds[c, b] = Coin(logits=logits).log_prob(image).sum() - rate.sum() - math.log(C)
    return log_q, bounds


@pytest.mark.parametrize("in_code", [True, False])
@torch.no_grad()
def test_both_bounds_are_sums_by_hand(in_code: bool) -> None:
    model, x, y = tiny(in_code, learned=not in_code, dim=2), images()[3:8], torch.tensor([0, -1, 2, -1, 1])
    objective = M2(alpha=0.3, num_labels=4)
    objective.initialize(torch.zeros(20, *SHAPE))
    torch.manual_seed(4)
    terms = objective(model, x, y, torch.zeros(()))
    torch.manual_seed(4)
    log_q, bounds = by_hand(model, x, torch.randn(5, C, 2), in_code)
    unlabelled = (log_q.exp() * (bounds - log_q)).sum(0)
    torch.testing.assert_close(terms["elbo"], unlabelled)
    torch.testing.assert_close(terms["elbo"], -terms["rate"] - terms["distortion"])
    torch.testing.assert_close(terms["class_rate"], (log_q.exp() * (log_q + math.log(C))).sum(0))
    for b, label in enumerate(y.tolist()):
        entropy = -5 * log_q[label, b] if label >= 0 else torch.tensor(0.0)  # 5 = 20 images / 4 labels
        loss = -bounds[label, b] + 0.3 * entropy if label >= 0 else -unlabelled[b]
        torch.testing.assert_close(terms["classification"][b], entropy)
        torch.testing.assert_close(terms["loss"][b], loss)


def exact(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x), (B,), and log p(z, y | x) at each point of an axis and for each class, (4001, C, B)."""
    axis = torch.linspace(-12, 12, 4001)
    codes = torch.cat([axis.view(-1, 1, 1).expand(-1, C, 1), torch.eye(C).expand(4001, C, C)], -1)
    log_p = model.prior(model.infer).log_prob(codes)[..., None] + model.decode(codes.unsqueeze(2)).log_prob(x)
    log_evidence = (log_p.logsumexp((0, 1))) + math.log(24 / 4000)
    return log_evidence, log_p - log_evidence


@torch.no_grad()
def test_the_bound_lacks_the_divergence_from_the_exact_posterior() -> None:
    """log p(x) - E[U(x)] = KL(q(z, y | x) || p(z, y | x)), by quadrature over z and a sum over y."""
    model, x = tiny(), images()
    log_evidence, log_posterior = exact(model, x)
    assert log_evidence.exp().sum().item() == pytest.approx(1, abs=1e-4)  # over all images that exist
    axis = torch.linspace(-12, 12, 4001)
    codes = torch.cat([axis.view(-1, 1, 1).expand(-1, C, 1), torch.eye(C).expand(4001, C, C)], -1)
    log_q = model.infer(x).log_prob(codes.unsqueeze(2))  # (4001, C, B)
    gap = (log_q.exp() * (log_q - log_posterior)).sum((0, 1)) * 24 / 4000
    torch.manual_seed(0)
    bounds = M2()(model, x.repeat(4000, 1, 1, 1))["elbo"].view(4000, 16)
    error = bounds.std(0) / 4000**0.5
    assert (bounds.mean(0) < log_evidence + 4 * error).all()
    assert ((bounds.mean(0) + gap - log_evidence).abs() < 4 * error + 1e-4).all()
    assert gap.min() > 0.01


@torch.no_grad()
def test_the_bounds_are_tight_at_the_exact_posterior() -> None:
    """A decoder that reads the class alone: p(z | x, y) is the prior, and p(y | x) has a closed form."""
    model, x = tiny(), images()
    model.decoder.layers[0].weight[:, 0] = 0
    model.posterior.gaussian.linear.weight.zero_()
    model.posterior.gaussian.linear.bias.zero_()
    log_joint = model.decode(torch.cat([torch.zeros(C, 1), torch.eye(C)], -1).unsqueeze(1)).log_prob(x) - math.log(C)
    terms = M2().train()(model, x, torch.full((16,), 2), torch.zeros(()))
    torch.testing.assert_close(terms["loss"] - 0.1 * terms["classification"], -log_joint[2])

    class Exact(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return (
                model.decode(torch.cat([torch.zeros(C, 1), torch.eye(C)], -1).unsqueeze(1))
                .log_prob(h.view(-1, *SHAPE))
                .T
            )

    model.posterior.classifier = Exact()
    torch.testing.assert_close(M2()(model, x)["elbo"], log_joint.logsumexp(0))


def test_one_component_is_the_plain_vae_on_the_same_noise() -> None:
    mixture, x = tiny(in_code=False, learned=True, num_classes=1, dim=2), images()
    with torch.no_grad():
        mixture.prior.mean.zero_()
        mixture.prior.log_std.zero_()
    parts = (partial(MLPEncoder, hidden=[5], activation="softplus"), DiagonalGaussian, StandardNormal)
    plain = VAE(2, SHAPE, *parts, partial(MLPDecoder, hidden=[6]), Bernoulli())
    hidden = mixture.posterior.hidden
    with torch.no_grad():
        plain.encoder.layers[1].weight.copy_(hidden.weight[:, :4])
        plain.encoder.layers[1].bias.copy_(hidden.bias + hidden.weight[:, 4])
    plain.posterior.load_state_dict(mixture.posterior.gaussian.state_dict())
    plain.decoder.load_state_dict(mixture.decoder.state_dict())
    found, gradients = [], []
    for model, objective in ((mixture, M2(num_labels=0)), (plain, ELBO())):
        torch.manual_seed(3)
        terms = objective(model, x)
        terms["loss"].sum().backward()
        found.append([terms[name] for name in ("loss", "elbo", "rate", "distortion")])
        gradients.append([weight.grad for weight in model.decoder.parameters()])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("prior", [(True, 1), (True, 4), (False, C)], ids=str)
@pytest.mark.parametrize("swapped", [True, False])
def test_classes_of_the_posterior_that_are_not_those_of_the_prior(prior: tuple[bool, int], swapped: bool) -> None:
    in_code, num_classes = prior
    model = tiny(in_code=not swapped, dim=5 + C * swapped)
    model.prior = ClassPrior(5 + C, num_classes, in_code=in_code != swapped)
    with pytest.raises(PartsError, match="M2 needs a posterior and a prior with the same number of classes and"):
        M2()(model, images())


def test_labels_serve_the_metrics_alone_in_evaluation_mode() -> None:
    model, x = tiny(), images()
    objective = M2(num_labels=C).eval()
    best = model.infer(x).mixture_distribution.logits.argmax(-1)
    wrong = (best + 1) % C
    scored = []
    for y in (None, best, wrong, torch.where(torch.arange(16) < 4, best, wrong)):
        torch.manual_seed(0)
        scored.append(objective(model, x, y))
    assert all(torch.equal(terms["loss"], scored[0]["loss"]) for terms in scored)
    assert "accuracy" not in scored[0]
    assert [terms["accuracy"].mean().item() for terms in scored[1:]] == [1, 0, 0.25]
    assert (scored[2]["classification"] > scored[1]["classification"]).all()
    assert "accuracy" not in M2(num_labels=0).eval()(model, x, best)  # clusters have no names


@pytest.fixture
def permute(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes all data modules permute the labels of the training images that training sees, or does not see."""
    original = ImageDataModule.setup

    def choose(seen: bool) -> None:
        def setup(self: ImageDataModule, stage: str | None = None) -> None:
            if not self.splits:
                original(self, stage)
                images, labels = self.splits["train"]
                rows = (self.seen == seen).nonzero().squeeze(1)
                labels = labels.clone()
                labels[rows] = labels[rows].roll(7)
                self.splits["train"] = images, labels

        monkeypatch.setattr(ImageDataModule, "setup", setup)

    return choose


def test_labels_that_are_not_seen_change_nothing(config: Compose, tmp_path: Path, permute: Any) -> None:
    """Training is the same bit for bit if they are permuted, and not if those that are seen are."""
    weights = []
    for name, seen in (("as they are", None), ("unseen", False), ("seen", True)):
        if seen is not None:
            permute(seen)
        (tmp_path / name).mkdir()
        small = ["model.posterior.width=8", "model.decoder.hidden=[8]", "callbacks.pictures=null", "logger=none"]
        train(config("experiment=semi_supervised", *small, "trainer.max_epochs=1"), tmp_path / name)
        weights.append(checkpoint(tmp_path / name)["state_dict"])
    first, unseen, seen_ = weights
    assert all(torch.equal(first[name], unseen[name]) for name in first)
    assert not all(torch.equal(first[name], seen_[name]) for name in first)
