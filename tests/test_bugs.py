"""A bug in a user's part keeps its traceback with file and line, and a mistake gets one sentence."""

import traceback
from pathlib import Path

import pytest
from conftest import Command

from vaelab import cli

PARTS = {
    "model.encoder": "class Broken(MLPEncoder):\n    def forward(self, x):\n        BUG",
    "model.decoder": "class Broken(MLPDecoder):\n    def forward(self, z):\n        BUG",
    "model.posterior": "class Broken(DiagonalGaussian):\n    def forward(self, h):\n        BUG",
    "model.prior": "class Broken(StandardNormal):\n    def forward(self, infer):\n        BUG",
    "model.likelihood": "class Broken(Bernoulli):\n    def forward(self, parameters):\n        BUG",
    "model": "class Broken(VAE):\n    def __init__(self, *args, **kwargs):\n        BUG",
    "objective": "class Broken(ELBO):\n    def terms(self, trace, x, step):\n        BUG",
    "optimizer": "class Broken(Adam):\n    def __init__(self, *args, **kwargs):\n        BUG",
    "module": "class Broken(VAEModule):\n    def training_step(self, batch, batch_idx):\n        BUG",
    "data": "class Broken(MNISTDataModule):\n    def setup(self, stage=None):\n        BUG",
    "callbacks.progress": "class Broken(Progress):\n    def on_train_start(self, trainer, pl_module):\n        BUG",
    "trainer": "class Broken(Trainer):\n    def fit(self, *args, **kwargs):\n        BUG",
}
HEADER = """from lightning.pytorch import Trainer
from torch.optim import Adam
from vaelab.data import MNISTDataModule
from vaelab.likelihoods import Bernoulli
from vaelab.models import VAE
from vaelab.networks import MLPDecoder, MLPEncoder
from vaelab.objectives import ELBO
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal
from vaelab.training import Progress, VAEModule

"""
BUGS = {
    "NameError": "torhc.zeros(2)",
    "TypeError": "len(3)",
    "ValueError": "int('three')",
    "RuntimeError": "__import__('torch').zeros(2) @ __import__('torch').zeros(3)",
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("part", PARTS)
def test_a_bug_shows_its_file_and_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, bug: str
) -> None:
    name = f"own_{part.replace('.', '_')}_{bug.lower()}"
    code = HEADER + PARTS[part].replace("BUG", BUGS[bug]) + "\n"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match=r".") as error:
        command(f"{part}._target_={name}.Broken", "callbacks.pictures.count=0")
    shown = "".join(traceback.format_exception(error.value))
    line = next(number for number, text in enumerate(code.splitlines(), 1) if BUGS[bug] in text)
    assert f'{name}.py", line {line}, in' in shown
    assert any(row.startswith(f"{bug}: ") for row in shown.splitlines()[-3:])  # at the end, before the notes
    assert cli.sentence(error.value) is None


@pytest.mark.parametrize("code", ["import torhc\n", "X = torch.zeros(2)\n"])
def test_a_bug_in_the_import_of_a_module_shows_its_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    name = f"own_import_{len(code)}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ImportError, NameError)) as error:
        command(f"model.encoder._target_={name}.Part")
    shown = "".join(traceback.format_exception(error.value))
    assert f'{name}.py", line 1, in' in shown
    assert "torhc" in shown.splitlines()[-1] or "'torch' is not defined" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("own_parts.Part", "model.encoder.hidden: own_parts.Part takes no such argument"),
        ("own_parts.Other", "model.encoder: own_parts.Other cannot be imported"),
        ("nowhere.Part", "nowhere.Part cannot be imported: No module named 'nowhere'"),
        ("own_syntax.Part", "own_syntax.Part cannot be imported: invalid syntax (own_syntax.py, line 1)"),
    ],
)
def test_a_mistake_in_naming_a_class_gets_one_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, sentence: str
) -> None:
    (tmp_path / "own_parts.py").write_text("class Part:\n    pass\n")
    (tmp_path / "own_syntax.py").write_text("class Part?\n")
    monkeypatch.syspath_prepend(tmp_path)
    message, _ = command(f"model.encoder._target_={target}")
    assert sentence in str(message)
