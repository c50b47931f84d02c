"""Checks before any data are read: optimiser and schedule accept their settings, parts and objective go together."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from vaelab import checks
from vaelab.errors import UserError, refused_by_library
from vaelab.interfaces import labels
from vaelab.noise import fixed_noise
from vaelab.objectives import Objective

LARGEST = 1e10  # nats; a loss above it has an error of a thousand nats in 32 bits
SCHEDULE = ("scheduler", "interval", "frequency", "monitor", "strict", "name")  # the settings of a schedule


def build_optimizer(factory: Callable[..., Optimizer], model: Any, objective: Objective) -> Optimizer:
    """Build the optimiser for the objective's parameter groups. Raises UserError for a setting it does not accept."""
    groups = objective.parameter_groups(model)
    try:
        optimizer = factory(groups)
    except Exception as error:
        if not refused_by_library(error):
            raise
        given = ", ".join(f"{name}={value}" for name, value in getattr(factory, "keywords", {}).items())
        raise UserError(f"the optimizer cannot be built with {given}: {error}") from error
    unknown = {setting for group in groups for setting in group} - {"params", *optimizer.defaults}
    if unknown:
        own = f"{type(objective).__name__} sets its parameters' {', '.join(sorted(unknown))}"
        raise UserError(f"{own}, which optimizer {type(optimizer).__name__} does not have: choose optimizer=adam")
    return optimizer


def build_schedule(config: dict[str, Any], optimizer: Optimizer, total_steps: float = 1000) -> Any:
    """Build the learning-rate schedule of Lightning's configuration `config`. A class with `total_steps` gets them.

    Raises UserError for a setting that torch's class or Lightning does not accept.
    """
    factory, unknown = config.get("scheduler"), config.keys() - set(SCHEDULE)
    if not callable(factory):
        raise UserError(f"scheduler.scheduler={factory}: a class is needed, as in scheduler=cosine; or scheduler=none")
    if unknown:
        raise UserError(f"scheduler.{min(unknown)}: there is no such setting; there are {', '.join(SCHEDULE)}")
    checks.one_of(("step", "epoch"), **{"scheduler.interval": config.get("interval", "epoch")})
    checks.whole(**{"scheduler.frequency": config.get("frequency", 1)})
    takes_length = "total_steps" in inspect.signature(factory).parameters
    try:
        return factory(optimizer, **({"total_steps": total_steps} if takes_length else {}))
    except Exception as error:
        torchs = getattr(factory, "func", factory).__module__.startswith("torch.")
        if not torchs and not isinstance(error, UserError):  # a bug in a class of the user
            raise
        raise UserError(f"scheduler.scheduler cannot be built: {error}") from error


def rehearse(model: Any, objective: Objective) -> dict[str, tuple[str, ...]]:
    """Score two blank images with copies, and return the names of the objective's terms, by split: val and train.

    Raises UserError, before any data are read, if parts do not go together.
    """
    model, objective = copy.deepcopy((model, objective))
    x = torch.zeros(2, *model.image_shape)
    zeros = torch.zeros(2, dtype=torch.long)
    y = zeros if objective.takes_labels else labels(model, zeros)
    parts = [(name, part) for name, part in model.named_children() if name in ("posterior", "prior", "likelihood")]
    names = ", ".join(f"{name} {type(part).__name__}" for name, part in parts) or "no parts"
    pair = f"objective {type(objective).__name__} does not go with {type(model).__name__} ({names})"
    with fixed_noise(x.device):
        try:
            terms = objective(model, x, y, torch.zeros(()))
            final = objective(model, x, y, None)
            with torch.no_grad():
                evaluated = objective.eval()(model.eval(), x, y, None)
        except UserError as error:
            raise UserError(f"{pair}: {error}") from error
        except Exception as error:
            error.add_note("The error occurred when two blank images were scored, before any data were read.")
            raise
    if "loss" not in terms or any(term.shape != (2,) for term in terms.values()):
        shapes = ", ".join(f"{name} {tuple(term.shape)}" for name, term in terms.items())
        raise UserError(f"{pair}: a loss and terms with one value for each of two images are needed, not {shapes}")
    for name, term in terms.items():
        if not term.isfinite().all():
            why = ": a point mass has no density, which this objective needs" if "PointMass" in names else ""
            raise UserError(f"{pair}: its {name} is {term[0].item()}{why}")
    for loss in (terms["loss"], final["loss"]):
        if not loss.abs().max() < LARGEST:
            raise UserError(
                f"the loss of a blank image is {loss[0].item():g}: a setting of the objective, such as a weight or "
                "free_bits, is too large for numbers of 32 bits"
            )
    terms["loss"].mean().backward()
    idle = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    if idle:
        raise UserError(f"{pair}: no gradient reaches its {', '.join(idle)}, which would never change")
    return {"val": tuple(evaluated), "train": tuple(terms)}
