"""Who may import whom: models know nothing of objectives, Lightning or Hydra."""

import ast
import contextlib
import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

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
    "extensions.sweep": ["torch", "lightning"],
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


# Private names of other libraries ------------------------------------------------------------------------------------

SOURCES = sorted(ROOT.glob("src/**/*.py")) + sorted(ROOT.glob("*.py"))


DOCUMENTED = ("_target_", "_partial_", "_asdict")  # of Hydra's configs and Python's named tuples


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def uses(tree: ast.AST) -> Iterator[str]:
    """Private names that a file imports from other packages, or reads or sets on anything but its own self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if any(map(private, alias.name.split("."))))
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("vaelab"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from (f"{node.module}: {name}" for name in names if private(name))
        elif isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_another_library_is_used(path: Path) -> None:
    assert not list(uses(ast.parse(path.read_text())))


def test_the_walk_finds_what_it_looks_for() -> None:
    found = [
        "import torch._dynamo",
        "from torch._functorch import config",
        "from a.b import _c",
        "x._y = 1",
        "f()._z()",
    ]
    assert all(list(uses(ast.parse(code))) for code in found)
    assert not list(uses(ast.parse("import torch.nn; self._x = 1; from vaelab.runs import _y; a.__dict__")))


PROTECTED = ("_validate_args", "_validate_sample", "_extended_shape")  # torch's, for those who write a Distribution


def kept_by(base: type) -> set[str]:
    """The names that a class has, and those that its constructor sets on self, where it needs no argument."""
    made: dict = {}
    with warnings.catch_warnings(), contextlib.suppress(TypeError):
        warnings.simplefilter("ignore")
        made = vars(base())
    return {*vars(base), *made}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("src/vaelab/**/*.py")), ids=lambda p: str(p.relative_to(ROOT / "src"))
)
def test_no_private_name_of_a_foreign_base_class_is_used(path: Path) -> None:
    """Neither defined in the class, nor read from or set on self."""
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    tree, module = ast.parse(path.read_text()), importlib.import_module(name)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        cls = getattr(module, node.name)
        bases = [base for base in cls.__mro__[1:-1] if not base.__module__.startswith("vaelab")]
        foreign = {key for base in bases for key in kept_by(base) if private(key)} - {*PROTECTED}
        own = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        own |= {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self"
        }
        assert not own & foreign


def test_the_names_that_a_constructor_sets_are_found() -> None:
    import lightning

    assert {"_trainer", "_fabric"} <= kept_by(lightning.LightningModule)
