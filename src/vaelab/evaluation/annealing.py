"""Annealed importance sampling (AIS): bounds on log p(x) that are close even if q(z | x) is far from the posterior.

A path of densities leads from r(z), which is q(z | x) or the prior p(z), to the joint density p(x, z):

    log f_t(z) = (1 - beta_t) log r(z) + beta_t log p(x, z),     0 = beta_0 < beta_1 < ... < beta_T = 1
    log g(z) = log p(x, z) - log r(z)

    forward:  z_0 ~ r(z),       z_t ~ K_t( . | z_{t-1}),   log w =  sum_t (beta_t - beta_{t-1}) log g(z_{t-1})
    reverse:  z_T ~ p(z | x),   z_{t-1} ~ K_t( . | z_t),   log v = -sum_t (beta_t - beta_{t-1}) log g(z_{t-1})

K_t is a transition of Hamiltonian Monte Carlo that leaves f_t unchanged and is reversible. So E[w] = p(x) and
E[v] = 1 / p(x), and C chains give bounds on both sides:

    E[log 1/C sum_c w_c]  <=  log p(x)  <=  E[-log 1/C sum_c v_c]

The reverse starts at an exact sample of the posterior. It is known for an image that the model has drawn, z ~ p(z) and
x ~ p(x | z). The distance of the two bounds there tells how close they are (bidirectional Monte Carlo). The step sizes
of K_t come from a run before, because a step size that depends on its own chain would break the equations above.

Neal 2001, https://arxiv.org/abs/physics/9803008; Wu et al. 2017, https://arxiv.org/abs/1611.04273; Grosse et al. 2015,
https://arxiv.org/abs/1511.02543; Hamiltonian Monte Carlo: Neal 2011, https://arxiv.org/abs/1206.1901
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from vaelab import checks
from vaelab.distributions import Delta
from vaelab.errors import UserError
from vaelab.evaluation.likelihood import rows_at_once
from vaelab.interfaces import GenerativeModel, device_of, lies_on_vectors, space
from vaelab.noise import fixed_noise
from vaelab.trace import Trace

FIRST, ACCEPTED, RATE = 0.1, 0.65, 0.1  # the first step size; the acceptance that it is led to; how fast
PILOTS = 4  # chains of each image that find the step sizes
STEEPNESS = 4.0  # of the sigmoid schedule, as in Wu et al. 2017


class Annealing(NamedTuple):
    """The settings of annealed importance sampling."""

    chains: int = 16  # C, for each image
    temperatures: int = 200  # T
    leapfrog: int = 5  # leapfrog steps of a transition
    start: str = "q"  # r(z): "q" for q(z | x), or "prior"
    schedule: str = "linear"  # beta_t = t / T, or "sigmoid": short steps at both ends of the path

    def check(self) -> None:
        """Raise UserError for a setting out of its range."""
        for name in ("chains", "temperatures", "leapfrog"):
            checks.whole(**{f"annealing.{name}": getattr(self, name)})
        checks.one_of(("q", "prior"), **{"annealing.start": self.start})
        checks.one_of(("linear", "sigmoid"), **{"annealing.schedule": self.schedule})

    def betas(self) -> list[float]:
        """beta_0, ..., beta_T. The sigmoid schedule is sigmoid(4 (2 t/T - 1)), scaled to the range 0 to 1."""
        line = torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64)
        if self.schedule == "linear":
            return line.tolist()
        curve = torch.sigmoid(STEEPNESS * (2 * line - 1))
        return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


DEFAULT = Annealing()


class Sandwich(NamedTuple):
    """Images that the model has drawn, and bounds on log p(x) from both sides, in nats, float64."""

    images: Tensor  # (N, C, H, W)
    lower: Tensor  # (N,)
    upper: Tensor  # (N,)


def check_model(model: GenerativeModel) -> None:
    """Raise UserError unless the model has one code in R^D, with a density q(z | x)."""
    x = torch.zeros(1, *model.image_shape, device=device_of(model))
    with fixed_noise(x.device), torch.no_grad():
        trace = model(x, torch.zeros(1, dtype=torch.long, device=x.device) if model.num_classes else None)
    latents = trace.latents if isinstance(trace, Trace) else ()
    found = f"{len(latents)} latents" if latents else "a code without a density"
    if len(latents) == 1:
        q = latents[0].q
        if lies_on_vectors(q) and not isinstance(q, Delta):
            return
        found = "a point as its code" if isinstance(q, Delta) else f"codes on {space(q)}"
    raise UserError(f"ais=true needs one code in R^D with a density q(z | x), but this model has {found}: leave it out")


@torch.no_grad()
def lower_bound(
    model: GenerativeModel,
    x: Tensor,  # (N, C, H, W)
    y: Tensor | None = None,  # (N,) for a model with classes
    settings: Annealing = DEFAULT,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda _: None,  # called 2 T times for each chunk, with its number of images
) -> Tensor:
    """The lower bound on log p(x) of each image, (N,) float64, in nats.

    The noise depends on the seed and the size of the chunks alone, and torch's random state does not change. Raises
    UserError for a model without one code in R^D, and for settings out of their range.
    """
    with fixed_noise(x.device, seed):
        return _bounds(model, x, y, None, settings, progress)[0]


@torch.no_grad()
def sandwich(
    model: GenerativeModel,
    count: int,  # N, images to draw
    y: Tensor | None = None,  # (N,) for a model with classes
    settings: Annealing = DEFAULT,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda _: None,  # called 3 T times for each chunk, with its number of images
) -> Sandwich:
    """Draw images from the model, and bound their log p(x) from both sides. Noise and errors are as in `lower_bound`.

    All chains of the reverse start at the code that the image was drawn from.
    """
    with fixed_noise(device_of(model), seed):
        z = model.prior(model.infer).sample(Size((count,)))
        x = model.decode(z, y).sample()
        return Sandwich(x, *_bounds(model, x, y, z, settings, progress))


def _bounds(
    model: GenerativeModel,
    x: Tensor,
    y: Tensor | None,
    exact: Tensor | None,  # (N, D), a sample of p(z | x) for each image, or None for the lower bound alone
    settings: Annealing,
    progress: Callable[[int], Any],
) -> list[Tensor]:
    """The lower bound and, with exact samples, the upper bound of each image, (N,) each."""
    settings.check()
    check_model(model)
    chains, betas = settings.chains, settings.betas()
    size = max(1, rows_at_once(model, x[:1], None if y is None else y[:1]) // chains)
    found = []
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        path = _Path(model, x[part], None if y is None else y[part], settings)

        def done(images: int = len(x[part])) -> None:
            progress(images)

        steps = _step_sizes(path, betas, min(PILOTS, chains), done)
        bounds = [_forward(path, betas, steps, chains, done)]
        if exact is not None:
            bounds.append(_reverse(path, betas, steps, exact[part].expand(chains, -1, -1), done))
        found.append(torch.stack(bounds))
    return list(torch.cat(found, dim=1))


class _Point(NamedTuple):
    """Codes of C chains and B images, with log r and log g there, and the gradients of both."""

    z: Tensor  # (C, B, D)
    log_r: Tensor  # (C, B)
    log_g: Tensor  # (C, B)
    slope_r: Tensor  # (C, B, D)
    slope_g: Tensor  # (C, B, D)

    def log_f(self, beta: float) -> Tensor:
        return self.log_r + beta * self.log_g

    def slope(self, beta: float) -> Tensor:
        return self.slope_r + beta * self.slope_g


class _Path:
    """The densities f_t of a chunk of images (B, C, H, W)."""

    def __init__(self, model: GenerativeModel, x: Tensor, y: Tensor | None, settings: Annealing) -> None:
        self.model, self.x, self.y, self.leapfrog = model, x, y, settings.leapfrog
        self.prior = model.prior(model.infer)
        self.r: Distribution = model.infer(x, y) if settings.start == "q" else self.prior

    def first(self, chains: int) -> _Point:
        """The start of C chains, z ~ r(z)."""
        images = () if self.r.batch_shape else (len(self.x),)  # q has one density for each image, the prior one for all
        return self.point(self.r.sample(Size((chains, *images))))

    @torch.enable_grad()
    def point(self, z: Tensor) -> _Point:
        """The densities and their gradients at codes (C, B, D)."""
        z = z.detach().requires_grad_()
        log_r = self.r.log_prob(z)
        log_g = self.model.decode(z, self.y).log_prob(self.x)
        if self.r is not self.prior:
            log_g = log_g + self.prior.log_prob(z) - log_r
        slope_r, slope_g = (torch.autograd.grad(log.sum(), z, retain_graph=True)[0] for log in (log_r, log_g))
        return _Point(z.detach(), log_r.detach(), log_g.detach(), slope_r, slope_g)

    def transition(self, point: _Point, beta: float, step: Tensor) -> tuple[_Point, Tensor]:
        """One transition of every chain with step sizes (B,), and the probability of its acceptance (C, B)."""
        step = step.unsqueeze(-1)
        momentum = torch.randn_like(point.z)
        new, velocity = point, momentum
        for _ in range(self.leapfrog):
            velocity = velocity + step / 2 * new.slope(beta)
            new = self.point(new.z + step * velocity)
            velocity = velocity + step / 2 * new.slope(beta)
        kinetic = 0.5 * (velocity.square() - momentum.square()).sum(-1)
        log_ratio = new.log_f(beta) - point.log_f(beta) - kinetic  # not a number after an overflow: rejected
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        chosen = [
            torch.where(accepted if old.dim() == 2 else accepted.unsqueeze(-1), proposed, old)
            for proposed, old in zip(new, point, strict=True)
        ]
        return _Point(*chosen), log_ratio.exp().clamp(max=1).nan_to_num(0)


def _step_sizes(path: _Path, betas: list[float], chains: int, done: Callable[[], None]) -> list[Tensor]:
    """A step size (B,) for each of the T transitions: log step rises by RATE (acceptance - ACCEPTED) after each."""
    point, steps = path.first(chains), []
    step = torch.full_like(point.log_r[0], FIRST)
    for beta in betas[1:]:
        steps.append(step)
        point, acceptance = path.transition(point, beta, step)
        step = step * (RATE * (acceptance.mean(0) - ACCEPTED)).exp()
        done()
    return steps


def _forward(path: _Path, betas: list[float], steps: list[Tensor], chains: int, done: Callable[[], None]) -> Tensor:
    """The lower bound, (B,)."""
    point = path.first(chains)
    log_w = torch.zeros_like(point.log_g, dtype=torch.float64)
    for (before, beta), step in zip(pairwise(betas), steps, strict=True):
        log_w += (beta - before) * point.log_g
        point, _ = path.transition(point, beta, step)
        done()
    return log_w.logsumexp(0) - math.log(chains)


def _reverse(path: _Path, betas: list[float], steps: list[Tensor], exact: Tensor, done: Callable[[], None]) -> Tensor:
    """The upper bound, (B,), from exact samples (C, B, D)."""
    point = path.point(exact)
    log_v = torch.zeros_like(point.log_g, dtype=torch.float64)
    for (before, beta), step in reversed(list(zip(pairwise(betas), steps, strict=True))):
        point, _ = path.transition(point, beta, step)
        log_v -= (beta - before) * point.log_g
        done()
    return math.log(len(exact)) - log_v.logsumexp(0)
