"""Modules import only from lower layers: models do not import objectives, Lightning or Hydra."""

import ast
import contextlib
import graphlib
import importlib
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SRC = ROOT / "src"
HEAVY = ("lightning", "hydra", "omegaconf", "torchvision", "matplotlib", "tensorboard", "mlxtend", "zuko", "joblib")
PARTS = ("networks", "posteriors", "priors", "likelihoods", "flows", "joint")
FLOOR = ("text", "errors", "checks", "noise", "interfaces", "files", "distributions", "classes", "pixels", "trace")
# The modules of this package that each module may import, by the first name below vaelab, from the bottom
MAY = {
    **dict.fromkeys(FLOOR, FLOOR),
    **{part: (part, *FLOOR) for part in PARTS},
    "posteriors": ("posteriors", "flows", "joint", *FLOOR),
    "priors": ("priors", "flows", "joint", *FLOOR),
    "models": ("models", "posteriors", *FLOOR),  # a ladder uses diagonal Gaussian posteriors
    "objectives": ("objectives", *FLOOR),
    "linear": ("linear", *FLOOR),
    "evaluation": ("evaluation", "linear", "flows", *FLOOR),
    "pictures": ("pictures", "evaluation", *FLOOR),
    "data": ("data", *FLOOR),
    "training": ("training", "objectives", "linear", "likelihoods", "priors", "evaluation", "pictures", *FLOOR),
    "runs": ("runs", "training", "data", *FLOOR),
    "export": ("export", "runs", "pictures", "evaluation", *FLOOR),
    "reports": ("reports", "export", "runs", "pictures", "evaluation", *FLOOR),
    "cli": ("cli", "runs", *FLOOR),
    "extensions": ("extensions", "runs", "training", "data", *FLOOR),
    "": ("runs",),  # vaelab/__init__.py
}
# Packages that importing a module must not load, because it does not use them or imports them later
ABSENT = {
    "trace": HEAVY,
    **dict.fromkeys(PARTS, HEAVY),
    **dict.fromkeys(("models", "objectives", "linear"), HEAVY),
    "evaluation.measure": ("sklearn", *HEAVY),
    "evaluation.densities": ("sklearn", *HEAVY),
    "pictures": ("sklearn", "PIL", *HEAVY),
    "data": ("hydra", "mlxtend"),
    "training": ("hydra", "mlxtend"),
    "runs": ("torch", "lightning"),
    "export": ("onnx", "onnxruntime", "safetensors", "lightning"),
    "cli": ("torch", "lightning"),
    "extensions.sweep": ("torch", "lightning"),
}
MODULES = {path: ".".join(path.relative_to(SRC).with_suffix("").parts) for path in sorted(SRC.glob("vaelab/**/*.py"))}


def imported(path: Path, everywhere: bool) -> set[str]:
    """The modules of this package that a file imports, anywhere in it or only at its top level."""
    tree, names = ast.parse(path.read_text()), set()
    lazy = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lazy += [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = set() if everywhere else {id(inner) for node in lazy for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = {name.removesuffix(".__init__") for name in MODULES.values()}
    found = {name if name in known else name.rpartition(".")[0] for name in names if name.split(".")[0] == "vaelab"}
    return found & known


@pytest.mark.parametrize("path", MODULES, ids=MODULES.get)
def test_no_module_imports_upwards(path: Path) -> None:
    own = MODULES[path].removeprefix("vaelab.").split(".")[0].replace("__init__", "")
    found = {f"{name}.".split(".")[1] for name in imported(path, everywhere=True)}
    assert found - {""} <= set(MAY[own])


def test_there_is_no_import_circle() -> None:
    graph = {name.removesuffix(".__init__"): imported(path, everywhere=False) for path, name in MODULES.items()}
    graph = {name: found - {name} for name, found in graph.items()}
    graph["vaelab"] = set()  # vaelab/__init__.py imports lazily
    # modules of a package may import each other, but not the package
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_rules_find_what_they_look_for(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from vaelab import models\ndef f():\n    from vaelab.objectives.elbo import ELBO\n")
    assert imported(tmp_path / "a.py", everywhere=True) == {"vaelab.models", "vaelab.objectives.elbo"}
    assert imported(tmp_path / "a.py", everywhere=False) == {"vaelab.models"}


def test_no_class_name_stands_in_two_modules() -> None:
    names = [
        node.name for path in MODULES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    ]
    assert not [name for name, count in Counter(names).items() if count > 1]


def test_each_module_has_its_test_file() -> None:
    tests = {ROOT / "tests" / path.relative_to(SRC / "vaelab").with_name(f"test_{path.name}") for path in MODULES
             if path.name != "__init__.py"}  # fmt: skip
    assert not [path for path in tests if not path.is_file()]


def test_fixtures_are_in_conftest_and_no_test_file_imports_another() -> None:
    for path in ROOT.glob("tests/**/test_*.py"):
        names = [getattr(node, "module", None) for node in ast.walk(ast.parse(path.read_text()))]
        assert not [name for name in names if str(name).startswith("test")], path


def test_no_file_is_long() -> None:
    assert not [name for path, name in MODULES.items() if len(path.read_text().splitlines()) > 300]


IMPORTS = """
import importlib, os
absent = {absent}
for torch_first in (False, True):  # one process imports torch once, and a copy of it imports each module
    if torch_first:
        import torch
    for module, names in absent.items():
        if torch_first == ("torch" not in names):
            if os.fork() == 0:
                import sys
                importlib.import_module("vaelab." + module)
                print(module, *(name for name in names if name in sys.modules), flush=True)
                os._exit(0)
            os.wait()
"""


def test_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(absent=ABSENT)], capture_output=True, text=True, check=True, timeout=300
    )
    assert sorted(done.stdout.splitlines()) == sorted(ABSENT)


@pytest.mark.parametrize(
    ("argument", "absent", "said"),
    [
        ("--help", ("torch", "lightning"), ""),
        ("model.latent=3", ("torch", "lightning"), "error: there is no setting model.latent"),
        ("seed=-1", ("torch._dynamo", "lightning"), "error: seed=-1"),
        ("trainer.max_epochs=0.5", ("torch._dynamo", "lightning"), "error: trainer.max_epochs=0.5"),
    ],
)
def test_help_and_mistakes_come_before_slow_imports(argument: str, absent: tuple[str, ...], said: str) -> None:
    script = f"import sys, runpy; sys.argv = ['train.py', '{argument}']\n"
    script += "try: runpy.run_path('train.py', run_name='__main__')\n"
    script += f"finally: print([m for m in {absent} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    first, *rest = done.stderr.splitlines()
    assert first == "[]", done.stderr
    assert "".join(rest).startswith(said), done.stderr


# Private names of other libraries ------------------------------------------------------------------------------------

SOURCES = sorted(ROOT.glob("src/**/*.py")) + sorted(ROOT.glob("*.py"))


DOCUMENTED = ("_target_", "_partial_", "_asdict")  # public names of Hydra's configs and Python's named tuples


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def uses(tree: ast.AST) -> Iterator[str]:
    """Private names that a file imports from other packages, or uses on anything except self."""
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


PROTECTED = ("_validate_args", "_validate_sample", "_extended_shape")  # for subclasses of Distribution


def kept_by(base: type) -> set[str]:
    """The names of a class, and those that its constructor sets on self if it needs no argument."""
    made: dict = {}
    with warnings.catch_warnings(), contextlib.suppress(TypeError):
        warnings.simplefilter("ignore")
        made = vars(base())
    return {*vars(base), *made}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("src/vaelab/**/*.py")), ids=lambda p: str(p.relative_to(ROOT / "src"))
)
def test_no_private_name_of_a_foreign_base_class_is_used(path: Path) -> None:
    """No class defines such a name, or reads or sets it on self."""
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
