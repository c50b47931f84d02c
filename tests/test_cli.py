"""On the command line, wrong input gets one sentence before training and leaves no files."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command, stop_at
from joblib.externals.loky.process_executor import TerminatedWorkerError

from vaelab import cli
from vaelab.data import files


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("model.latent_dm=2", "there is no setting model.latent_dm; did you mean model.latent_dim?"),
        ("optimiser=sgd", "there is no setting optimiser; did you mean optimizer?"),
        ("model.latent_dim=0", "model: latent_dim=0: a whole number, at least 1, is needed"),
        ("model.latent_dim=two", "model.latent_dim=two: a whole number is needed"),
        ("prior=mixture", "there is no setting prior; did you mean model/prior?"),
        ("model.prior=mixture", "model.prior=mixture: a part is chosen with a slash, model/prior=mixture"),
        ("model=vea", "model=vea: did you mean vae? choose one of fsqvae, ladder, vae, vqvae"),
        ("experiment=tutorail", "experiment=tutorail: did you mean tutorial? choose one of "),
        ("data.binarization=dynamc", "data: binarization=dynamc: choose one of none, threshold, static, dynamic"),
        ("data.seed=-1", "data: seed=-1: a whole number, at least 0, is needed"),
        ("data.binarization_seed=-1", "data: binarization_seed=-1: a whole number, at least 0, is needed"),
        ("data.md5=foo", "data.md5=foo: a group of settings or null is needed"),
        ("data.used=MNIST", "data.used=MNIST: the run itself writes the data set that it used here: leave it out"),
        (
            "data.num_classes=5",
            "MNIST/raw/train-labels-idx1-ubyte: labels up to 9, but data.num_classes=5 has labels up",
        ),
        ("data.used=[a=b]", "data.used=[a=b]: Hydra cannot read this; some values need a second pair of quotes: 'na"),
        ("data.batch_size=0", "data: batch_size=0: a whole number, at least 1, is needed"),
        ("data.val_size=600", "data.val_size=600 and data.train_size=None do not fit into the 600 training images"),
        ("objective.beta=-1", "beta=-1: a number, at least zero, is needed"),
        ("model.encoder.hidden=[400,0]", "hidden=[400, 0]: a list of whole numbers above zero is needed"),
        ("model.encoder.activation=gelu", "activation=gelu: choose one of relu, tanh, silu"),
        ("+model.depth=3", "model.depth: vaelab.models.VAE takes no such argument; it takes latent_dim, image_shape"),
        ("model.image_shape=[1,32,32]", "model.image_shape=[1, 32, 32] does not fit the images of MNIST, [1, 28, 28]"),
        ("trainer.precision=7", "trainer.precision=7: choose one of 32-true, bf16-mixed, 16-mixed, 64-true"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: choose one of 32-true, bf16-mixed, 16-mixed"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed needs a GPU: use bf16-mixed on a CPU"),
        ("seed=none", "seed=none: the seed is a whole number from 0 to 2^32 - 1"),
        ("seed=-1", "seed=-1: the seed is a whole number from 0 to 2^32 - 1"),
        ("trainer.max_epochs=two", "trainer.max_epochs=two: a whole number, at least 0, is needed"),
        ("trainer.max_step=8", "there is no setting trainer.max_step; did you mean trainer.max_steps?"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: a whole number, at least 1, is needed"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0: a whole number, at least 1, is needed"),
        ("optimizer.lr=-1", "optimizer.lr=-1: a number above zero is needed"),
        ("optimizer.lr=0", "optimizer.lr=0: a number above zero is needed"),
        ("optimizer.lr=true", "optimizer.lr=True: a number above zero is needed"),
        ("optimizer.betas=[0.9,2]", "the optimizer cannot be built with lr=0.001, betas=[0.9, 2]"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: a list of 2 entries is needed"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: a number above zero is needed"),
        ("trainer.gradient_clip_val=nan", "trainer.gradient_clip_val=nan: a number above zero is needed"),
        ("trainer.limit_test_batches=0", "a run ends with its test, so leave some test images"),
        ("trainer.limit_train_batches=0.0", "trainer.limit_train_batches=0.0: a whole number, at least 1"),
        ("trainer.accumulate_grad_batches=4000", "trainer.accumulate_grad_batches=4000: an epoch has "),
        ("optimizer.lr=abc", "optimizer.lr=abc: a number above zero is needed"),
        ("model.num_classes=5", "model.num_classes=5, but MNIST has 10 classes"),
        ("latent_dim=2", "there is no setting latent_dim; did you mean model.latent_dim?"),
        ("objective.free_bits=abc", "objective.free_bits=abc: a number is needed"),
        ("model.prior.scale=abc", "model.prior.scale=abc: a number is needed"),
        ("model.encoder.hidden=400", "model.encoder.hidden=400: a list, each entry a whole number, is needed"),
        ("data.image_shape=28", "data.image_shape=28: a list, each entry a whole number, is needed"),
        ("callbacks.pictures.count=abc", "callbacks.pictures.count=abc: a whole number is needed"),
        ("+trainer.callbacks=[]", "trainer.callbacks is set elsewhere: callbacks.NAME._target_=..."),
        ("+callbacks.mine.patience=3", "callbacks.mine is not a callback: callbacks.mine._target_ must name a class"),
        (
            "+callbacks.finder._target_=lightning.pytorch.callbacks.BatchSizeFinder",
            "callbacks.finder changes data.batch_size within a run",
        ),
        ("steps=0", "steps=0: a whole number, at least 1, is needed"),
        (
            "objective.free_bits=1e30",
            "the loss of a blank image is 2e+31: a setting of the objective, such as a weight",
        ),
        ("objective.beta=1e38", "the loss of a blank image is "),
        ("callbacks.progress.refresh_every_n_steps=abc", "refresh_every_n_steps=abc: a whole number is needed"),
        ("callbacks.progress.refresh_every_n_steps=-1", "refresh_every_n_steps=-1: a whole number, at least 0"),
        ("callbacks.pictures=0.5", "callbacks.pictures=0.5: a callback has a _target_, or is null to leave it out"),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0: a whole number, at least 1"),
        ("trainer.val_check_interval=7", "trainer.val_check_interval=7: an epoch has 3 batches"),
        ("trainer.limit_test_batches=0.5", "trainer.limit_test_batches=0.5 leaves none of 1 batches: use a number"),
        ("trainer.profiler=3", "trainer.profiler=3: "),
        ("trainer.enable_model_summary=7", "trainer.enable_model_summary=7: true or false or null is needed"),
        ("+logger.tensorboard.new=1", "logger.tensorboard: "),
        ("logger.tensorboard=1", "logger.tensorboard=1: a logger has a _target_, or is null to leave it out"),
        ("trainer.limit_val_batches=1e38", "trainer.limit_val_batches=1e+38: a number from zero to one is needed"),
        ("module=3", "module=3: this group needs a _target_, which names its class"),
        ("~optimizer._target_", "this group needs a _target_, which names its class"),
        ("optimizer._partial_=1", "optimizer._partial_=1: true or false is needed"),
        ("model.likelihood=-1", "model.likelihood=-1: a group of settings with a _target_ is needed"),
        ("model.encoder=''", "model.encoder=: a group of settings with a _target_ is needed"),
        ("module.compile=1.5", "module.compile=1.5: true or false is needed"),
        ("optimizer.fused='???'", "optimizer.fused: Missing mandatory value"),
        ("trainer.max_epochs=${no}", "trainer.max_epochs: Interpolation key 'no' not found"),
        ("data=null", "Hydra cannot read the command line: Config group override must be a string or a list"),
        ("optimizer=[0.5,0.5]", "Hydra cannot read the command line: "),
        ("optimizer='a\nb'", "choose one of adam, adamw, sgd"),
    ],
)
def test_wrong_input_gets_one_sentence(command: Command, argument: str, sentence: str) -> None:
    code, printed = command(argument)
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert sentence in code
    assert "\n" not in code
    assert "Traceback" not in printed
    assert not list(command.folder.glob("logs/*"))


@pytest.mark.parametrize(
    ("option", "change", "sentence"),
    [
        ("optimizer=sgd", "optimizer.momentum=7", "optimizer.momentum=7: a number from zero to one is needed"),
        (
            "scheduler=iwae",
            "scheduler.scheduler.milestones=[1,abc]",
            "scheduler.scheduler.milestones=[1, 'abc']: a list, each entry a whole number, is needed",
        ),
        ("scheduler=plateau", "scheduler.scheduler.patience=0.5", "patience=0.5: a whole number is needed"),
    ],
)
def test_wrong_input_to_another_option(command: Command, option: str, change: str, sentence: str) -> None:
    code, _ = command(option, change)
    assert sentence in str(code)
    assert not list(command.folder.glob("logs/*"))


@pytest.mark.parametrize(
    ("arguments", "epochs"),  # nine or ten steps per epoch
    [(["steps=12"], 2), (["steps=12", "trainer.max_epochs=1"], 1)],
)
def test_steps_that_were_typed_rule_over_an_experiment_s_epochs(
    command: Command, arguments: list[str], epochs: int
) -> None:
    settings = ["experiment=linear_autoencoder", f"data.root={command.data}", "data.md5=null", "data.batch_size=60"]
    run = command.folder / "run"
    assert command(*settings, f"hydra.run.dir={run}", *arguments, small=False)[0] is None
    assert json.loads((run / "metrics.json").read_text())["epochs"] == epochs


def test_a_part_that_the_chosen_model_lacks(command: Command) -> None:
    code, _ = command("model=ladder", "model/posterior=flow")
    assert code == "error: model/posterior: the chosen model has no choice of posterior"


def test_a_missing_gpu_is_said_before_anything_starts(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for argument in ("trainer.accelerator=gpu", "trainer.accelerator=cuda"):
        code, _ = command(argument)
        assert (
            f"{argument}, but torch {torch.__version__} finds no GPU on this machine: use trainer.accelerator=cpu"
            in code
        )
        assert "\n" not in code
    assert not list(command.folder.glob("logs/*"))


def test_a_folder_that_cannot_be_written(command: Command) -> None:
    (command.folder / "file").touch()
    code, _ = command(f"hydra.run.dir={command.folder}/file/run")
    assert code == (
        f"error: the run's folder {command.folder}/file/run cannot be created: Not a directory; "
        "hydra.run.dir=FOLDER chooses another folder"
    )


def test_a_corrupt_file(command: Command) -> None:
    shutil.copytree(command.data, command.folder / "data")
    path = command.folder / "data/MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    code, _ = command(f"data.root={command.folder}/data")
    assert f"{path} is corrupt: 1,000 bytes, but an IDX file with sizes (200, 28, 28)" in code
    assert path.stat().st_size == 1000


def test_full_disk_names_the_file_and_keeps_what_was_written(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    run = command.folder / "run"
    assert command(f"hydra.run.dir={run}")[0] is None
    before = (run / "metrics.json").read_text()

    def full(path: Path, _: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("vaelab.runs.folder.write_atomically", full)
    code, _ = command(f"resume={run}", "trainer.max_epochs=3", small=False)
    assert code == (f"error: {run}/run.json cannot be read or written: No space left on device; free some space first")
    assert (run / "metrics.json").read_text() == before


def test_resuming_a_folder_that_is_no_run(command: Command) -> None:
    nowhere = "error: nowhere is not a run: no such folder; the folder of a run is needed, such as logs/RUN"
    assert command("resume=nowhere", small=False)[0] == nowhere
    run = command.folder / "run"
    assert command(f"hydra.run.dir={run}")[0] is None
    finished, _ = command(f"resume={run}", small=False)
    assert finished == "error: run is complete, all of its 2 epochs: set trainer.max_epochs above 2 to continue"
    assert "resume= needs a run's folder" in command("resume=", small=False)[0]
    part, _ = command(f"resume={run}", "model/prior=mixture", small=False)
    assert "model/prior=mixture chooses another part, but a resumed run keeps its parts" in part
    group, _ = command(f"resume={run}", "optimizer=sgd", small=False)
    assert "optimizer=sgd would replace a whole group" in group
    key, _ = command(f"resume={run}", "trainer.max_epoch=4", small=False)
    assert str(key).startswith("error: there is no setting trainer.max_epoch; did you mean trainer.max_epochs? ")
    flag, _ = command("-m", f"resume={run}", small=False)
    assert (
        flag == f"error: -m continues a sweep, but {run} is not the folder of a sweep: it is one run, so leave out -m"
    )
    (run / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    damaged, _ = command(f"resume={run}", "trainer.max_epochs=4", small=False)
    assert "last.ckpt holds more than plain data, or is damaged: use another file" in damaged
    (run / "checkpoints" / "last.ckpt").unlink()
    absent, _ = command(f"resume={run}", "trainer.max_epochs=4", small=False)
    assert "cannot be resumed: it has no checkpoints/last.ckpt" in absent


def test_resume_goes_on_in_the_same_folder(command: Command) -> None:
    run = command.folder / "run"
    assert command(f"hydra.run.dir={run}")[0] is None
    code, printed = command(f"resume={run}", "trainer.max_epochs=3", small=False)
    assert code is None
    assert "epoch 3, step 9" in printed
    assert [path.name for path in command.folder.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "target",
    [
        *("builtins.eval", "os.system", "vaelab.runs.subprocess.run", "torch.hub.load", "vaelab.runs.write_json", 3),
        *("lightning.pytorch.cli.LightningCLI", "vaelab.Nope", "vaelab.nowhere.Nope"),
    ],
)
def test_a_stranger_s_target_is_not_run(command: Command, target: object) -> None:
    run = command.folder / "run"
    assert command(f"hydra.run.dir={run}")[0] is None
    path = run / "config.yaml"
    text = path.read_text().replace("_target_: vaelab.objectives.ELBO", f"_target_: {target}")
    path.write_text(text)
    code, _ = command(f"resume={run}", "trainer.max_epochs=3", small=False)
    assert f"names {target}, which is not a class of vaelab: it is not run" in code


def test_a_stranger_s_target_is_not_interpolated(command: Command) -> None:
    """A resolver could make a `_target_` from text after the check of the file."""
    run = command.folder / "run"
    assert command(f"hydra.run.dir={run}")[0] is None
    with (run / "config.yaml").open("a") as file:
        file.write("extra: ${oc.decode:${oc.env:CODE}}\n")
    code, _ = command(f"resume={run}", "trainer.max_epochs=3", small=False)
    assert "config.yaml is not the config of a run: its extra is ${oc.decode:${oc.env:CODE}}" in code


def test_a_sweep_makes_one_run_each_with_names_that_need_no_quotes(command: Command) -> None:
    code, printed = command("-m", "model.latent_dim=2", "model.encoder.hidden=[16],[8,8]")
    assert code is None
    (sweep,) = (command.folder / "logs").iterdir()
    names = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert names == ["0_model.encoder.hidden-16", "1_model.encoder.hidden-8-8"]  # settings of all runs are left out
    assert all((sweep / name / "metrics.json").exists() for name in names)
    assert printed.count("done ") == 2


def test_a_sweep_goes_on_after_a_run_that_fails(command: Command) -> None:
    code, printed = command("-m", "model.latent_dim=0,2")
    assert "latent_dim=0: a whole number" in str(code)
    assert "error: model: latent_dim=0" in printed
    assert len(list(command.folder.glob("logs/*/*/metrics.json"))) == 1


def test_a_process_of_a_sweep_that_is_killed() -> None:
    assert "a process of the sweep was killed" in str(cli.sentence(TerminatedWorkerError("exit code -9")))


def test_ddp_inside_a_sweep_is_refused(command: Command) -> None:
    code, _ = command("-m", "trainer=ddp", "seed=1,2")
    assert "trainer.strategy=ddp starts its processes with the command line of the whole sweep" in str(code)


def test_run_names_never_collide() -> None:
    names = set()
    for _ in range(200):
        names.add(cli.run_name("a/b c=d"))
    assert len(names) == 200
    assert all("a-b-c-d" in name for name in names)


def test_help_shows_groups_and_first_settings(command: Command) -> None:
    _, printed = command("--help", small=False)
    for group in ("optimizer", "scheduler", "experiment", "model/prior"):
        options = sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))
        assert f"{group}: {', '.join(options)}" in printed
    assert "model.latent_dim=2" in printed
    assert "resume=logs/RUN" in printed
    assert "_target_" not in printed
    assert len(printed.splitlines()) < 70


def test_a_run_with_a_class_of_one_s_own_resumes_with_trust(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_cli.py").write_text("from vaelab.networks import MLPEncoder as M\n\n\nclass Own(M):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _ = command("model.encoder._target_=own_cli.Own", "hydra.run.dir=logs/own")
    assert code is None
    more = ["resume=logs/own", "trainer.max_epochs=3"]
    assert "trust=[own_cli] allows it" in str(command(*more, small=False)[0])
    for trust in ("trust=[own_cli]", "trust=[other,own_cli]"):
        code, printed = command(*more, trust, small=False)
        assert code is None or "is complete" in str(code), printed


@pytest.mark.parametrize("arguments", [["steps=9"], ["trainer.max_epochs=1"], ["trainer.max_steps=9"]], ids=str)
def test_a_schedule_longer_than_the_run(command: Command, arguments: list[str]) -> None:
    """Such a run would be tested with another objective than it ends with. A run on few batches is a trial."""
    schedule = ["objective/beta=linear", "objective.beta.steps=20", "callbacks.pictures.count=0"]
    whole = "trainer.limit_train_batches=null"
    code, _ = command(*schedule, *arguments, whole)
    assert str(code).startswith("error: objective.beta reaches its end after 20 optimiser steps, but the run takes ")
    assert str(code).endswith("must allow as many), or a smaller objective.beta.steps")
    assert not list(command.folder.glob("logs/*"))
    assert command("objective/beta=linear", "objective.beta.steps=20", *arguments)[0] is None


def test_a_name_that_is_a_number(command: Command) -> None:
    assert command("name=123", "callbacks.pictures.count=0")[0] is None
    assert list(command.folder.glob("logs/*_123_*"))


def test_a_metric_that_nothing_logs(command: Command) -> None:
    """The user's own code may log a metric, so the run warns at the start and fails when the metric is missing."""
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/foo"]
    code, printed = command(*stopping, "callbacks.pictures.count=0")
    assert "an EarlyStopping callback monitors val/foo: the run fails if nothing logs it; there are val/loss" in printed
    assert str(code).startswith("error: Early stopping conditioned on metric `val/foo` which is not available.")
    assert "Traceback" not in printed


def test_a_run_inside_its_own_folder(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """hydra.job.chdir=true changes neither the meaning of data.root nor the folder that the log names."""
    monkeypatch.chdir(command.data.parent)
    code, printed = command(
        "hydra.job.chdir=true", f"data.root={command.data.name}", "data.allow_subset=false",
        f"hydra.run.dir={command.folder / 'run'}", "callbacks.pictures.count=0",
    )  # fmt: skip
    assert code is None
    assert f"run      {command.folder / 'run'}\n" in printed


def test_an_output_that_takes_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["train.py", "steps=0"])
    cli.main(lambda *_: print("1 ± 2 – 数", flush=True), ROOT / "configs", "train")
    assert buffer.getvalue() == b"1 +- 2 - ?\n"


def test_a_run_whose_folder_is_deleted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    run = command.folder / "run"

    def delete() -> None:
        while run.exists():  # a checkpoint may be written at the same time
            shutil.rmtree(run, ignore_errors=True)

    stop_at(monkeypatch, 3, delete)
    code, printed = command(f"hydra.run.dir={run}", "callbacks.pictures.count=0")
    assert str(code).startswith(f"error: {run}/")
    assert str(code).endswith("and neither does its folder: was the run's folder moved or deleted?")
    assert "Traceback" not in printed
    assert not run.exists()


def test_a_curve_s_folder_is_the_same_after_a_resume(command: Command) -> None:
    run = command.folder / "run"
    logger = ["logger.tensorboard.name=curves", "logger.tensorboard.version=null"]
    assert command(f"hydra.run.dir={run}", *logger, "callbacks.pictures.count=0")[0] is None
    assert command(f"resume={run}", "trainer.max_epochs=3", small=False)[0] is None
    assert [path.name for path in (run / "curves").iterdir()] == ["version_0"]


def test_a_run_on_the_5000_digits_resumes_when_mnist_is_there(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, small = command.folder / "run", ["trainer.limit_train_batches=3", "callbacks.pictures.count=0"]
    monkeypatch.setattr(files, "reachable", lambda *_: ())
    fresh = [f"data.root={command.folder / 'data'}", "trainer.accelerator=cpu", "trainer.max_epochs=1", *small]
    assert command(f"hydra.run.dir={run}", *fresh, small=False)[0] is None
    shutil.copytree(command.data / "MNIST", command.folder / "data" / "MNIST")
    code, printed = command(f"resume={run}", "trainer.max_epochs=2", small=False)
    assert code is None
    assert "data     MNIST-5k (4,000 / 500 / 500 images" in printed
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 2


def test_too_little_memory_is_said_in_one_sentence() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert str(cli.sentence(error.value)).startswith("the memory is not enough; use a smaller model")
    assert str(cli.sentence(MemoryError())).startswith("the memory is not enough")
    assert cli.sentence(RuntimeError("a bug")) is None


def test_a_complete_run_that_goes_on_and_is_killed_before_its_test(command: Command) -> None:
    """Its metrics are those of its first end, so it is not complete."""
    run = command.folder / "run"
    assert command(f"hydra.run.dir={run}", "callbacks.pictures.count=0")[0] is None
    old = (run / "metrics.json").read_text()
    assert command(f"resume={run}", "trainer.max_epochs=3", small=False)[0] is None
    (run / "metrics.json").write_text(old)
    assert command(f"resume={run}", small=False)[0] is None
    assert json.loads((run / "metrics.json").read_text())["steps"] == 9
    code, _ = command(f"resume={run}", small=False)
    assert str(code).startswith("error: run is complete, all of its 3 epochs")


@pytest.mark.parametrize("asked", ["--help", "--cfg=job"])
def test_a_reader_that_has_ended_is_no_error(tmp_path: Path, asked: str) -> None:
    """As `python train.py --help | true` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "train.py"), asked]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path, timeout=300
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
