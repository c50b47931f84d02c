"""The rehearsal refuses an objective that does not return one loss per image."""

from typing import Any

import pytest
import torch
from oracle import LinearGaussian

from vaelab.objectives import Objective
from vaelab.training.rehearsal import rehearse


def test_an_objective_without_one_value_an_image_is_refused() -> None:
    class Mean(Objective):
        def terms(self, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return {"loss": -trace.log_weight(x).mean()}

    class Nameless(Objective):
        def terms(self, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return {"bound": trace.log_weight(x).mean(0)}

    for objective in (Mean(), Nameless()):
        with pytest.raises(ValueError, match="a loss and terms with one value for each of two images are needed"):
            rehearse(LinearGaussian().vae(exact=False), objective)
