"""Who may import whom: models know nothing of objectives, Lightning or Hydra."""

import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = ("lightning", "hydra", "omegaconf", "torchvision", "matplotlib", "tensorboard", "mlxtend", "zuko")
PARTS = ("networks", "posteriors", "priors", "likelihoods")

FORBIDDEN = {
    "trace": ["vaelab.models", "vaelab.objectives", *HEAVY],
    **{
        part: ["vaelab.models", "vaelab.objectives", *(f"vaelab.{other}" for other in PARTS if other != part), *HEAVY]
        for part in PARTS
    },
    "models": ["vaelab.objectives", "vaelab.training", "vaelab.data", *HEAVY],
    "flows": ["vaelab.models", "vaelab.objectives", *(f"vaelab.{part}" for part in PARTS), *HEAVY],
    "joint": ["vaelab.models", "vaelab.objectives", *(f"vaelab.{part}" for part in PARTS), *HEAVY],
    "baselines": ["vaelab.models", "vaelab.objectives", *(f"vaelab.{part}" for part in PARTS), *HEAVY],
    "objectives": ["vaelab.models", *(f"vaelab.{part}" for part in PARTS), "vaelab.training", *HEAVY],
    **{
        f"evaluation.{part}": ["vaelab.models", "vaelab.objectives", "vaelab.training", "sklearn", *HEAVY]
        for part in ("gaps", "latent", "likelihood", "measure", "memorization", "report", "representation")
    },
    "figures": ["vaelab.models", "vaelab.objectives", "vaelab.training", "sklearn", "PIL", *HEAVY],
    "densities": ["vaelab.models", "vaelab.objectives", "vaelab.training", "sklearn", *HEAVY],
    "pictures": ["torch", "vaelab.models", "PIL", *HEAVY],
    "export": ["vaelab.models", "vaelab.objectives", "vaelab.training", "onnx", "onnxruntime", "safetensors", *HEAVY],
    "data": ["vaelab.models", "vaelab.objectives", "vaelab.training", "hydra", "mlxtend"],
    "training": ["vaelab.models", "vaelab.data", "hydra", "mlxtend"],
    "cli": ["torch", "lightning"],
    "sweep": ["torch", "lightning"],
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_imports(module: str) -> None:
    script = f"import sys, vaelab.{module}; print(*(m for m in {FORBIDDEN[module]} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("argument", "absent", "said"),
    [
        ("--help", ("torch", "lightning"), ""),
        ("model.latent=3", ("torch", "lightning"), "error: there is no setting model.latent"),
        ("seed=-1", ("torch._dynamo", "lightning"), "error: seed=-1"),
        ("trainer.max_epochs=0", ("torch._dynamo", "lightning"), "error: trainer.max_epochs=0"),
    ],
)
def test_help_and_mistakes_come_before_slow_imports(argument: str, absent: tuple[str, ...], said: str) -> None:
    script = f"import sys, runpy; sys.argv = ['train.py', '{argument}']\n"
    script += "try: runpy.run_path('train.py', run_name='__main__')\n"
    script += f"finally: print([m for m in {absent} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    first, *rest = done.stderr.splitlines()
    assert first == "[]", done.stderr
    assert "".join(rest).startswith(said), done.stderr
