"""A whole run: what it leaves behind, and that resuming equals never having stopped."""

import json
import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, checkpoint, compose_config, equal, metrics, stop_at
from lightning.pytorch.callbacks import EarlyStopping
from oracle import LinearGaussian
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import train
from vaelab import runs
from vaelab.objectives import Objective
from vaelab.training import Interrupted, VAEModule, checkpoints
from vaelab.training.rehearsal import rehearse

TERMS = ("loss", "elbo", "rate", "distortion")


# What is left behind --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run with a two-dimensional code, four epochs of five steps."""
    folder = tmp_path_factory.mktemp("finished")
    overrides = [
        "data.batch_size=100", "trainer.max_epochs=4", "trainer.limit_train_batches=null", "model.latent_dim=2",
        "trainer.log_every_n_steps=2", "trainer.limit_test_batches=null", "callbacks.pictures.count=2",
    ]  # fmt: skip
    train(compose_config(data_root, *overrides), folder)
    return folder


@pytest.fixture(scope="module")
def events(finished: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(finished), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return accumulator.Reload()


def test_metrics_name_protocol_units_and_metrics(finished: Path) -> None:
    content = metrics(finished)
    assert content["protocol"]["dataset"] == "MNIST"
    assert content["protocol"]["images"] == {"train": 500, "val": 100, "test": 200}
    assert content["epochs"] == 4
    assert content["steps"] == 20
    for split in ("train", "val", "test"):
        means = content[split]
        assert set(TERMS) <= set(means)
        assert means["elbo"] == pytest.approx(-means["rate"] - means["distortion"])
        assert means["loss"] == pytest.approx(-means["elbo"])


def test_curves_are_in_tensorboard_at_optimiser_steps(finished: Path, events: EventAccumulator) -> None:
    tags = set(events.Tags()["scalars"])
    assert {f"{split}/{term}" for split in ("train", "val", "test") for term in TERMS} <= tags
    assert {"train/images_per_second", "train/lr"} <= tags
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10, 15, 20]
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert events.Scalars("test/elbo")[-1].value == pytest.approx(metrics(finished)["test"]["elbo"], rel=1e-6)


def test_training_curve_is_the_mean_over_images_since_the_last_point(finished: Path, events: EventAccumulator) -> None:
    last_epoch = [event.value for event in events.Scalars("train/loss") if 15 < event.step <= 20]
    assert len(last_epoch) == 3
    weighted = sum(value * steps for value, steps in zip(last_epoch, (1, 2, 2), strict=True)) / 5
    assert metrics(finished)["train"]["loss"] == pytest.approx(weighted, rel=1e-6)


def test_pictures_are_in_tensorboard_and_on_disk(finished: Path, events: EventAccumulator) -> None:
    names = {"reconstructions", "samples", "manifold", "codes"}
    assert set(events.Tags()["images"]) == names
    assert [event.step for event in events.Images("samples")] == [0, 10, 20]
    for name in names:
        with Image.open(finished / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
            assert picture.mode == ("RGBA" if name == "codes" else "L")
            assert len(picture.convert("L").getcolors()) > 20


def test_hyperparameters_and_layout_are_in_tensorboard(finished: Path, events: EventAccumulator) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData.FromString(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    chosen = data.session_start_info.hparams
    assert chosen["data.used"].string_value == "MNIST"
    assert chosen["model.latent_dim"].number_value == 2
    assert chosen["model.likelihood"].string_value == "Bernoulli"
    assert chosen["optimizer.lr"].number_value == 1e-3
    assert not any("root" in name for name in chosen)
    experiment = HParamsPluginData.FromString(events.summary_metadata["_hparams_/experiment"].plugin_data.content)
    assert {"test/elbo", "best/val_loss"} <= {info.name.tag for info in experiment.experiment.metric_infos}
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert metrics(finished)["test"]["loss"] > 0


def test_checkpoints_and_weights_are_plain_data(finished: Path) -> None:
    weights = torch.load(finished / "weights.pt", weights_only=True)
    best, last = checkpoint(finished, "best"), checkpoint(finished)
    assert equal(dict(weights), {k.removeprefix("model."): v for k, v in best["state_dict"].items()})
    assert last["global_step"] == 20
    assert not any("_orig_mod" in key or key.startswith("model") for key in weights)


def test_config_and_record_tell_what_was_run(finished: Path) -> None:
    cfg = runs.saved_config(finished)
    assert cfg.data.used == "MNIST"
    assert cfg.model.image_shape == [1, 28, 28]
    assert "${" not in (finished / "config.yaml").read_text()
    (start,) = json.loads((finished / "run.json").read_text())["starts"]
    assert {"torch", "lightning", "hydra-core"} <= set(start["versions"])
    assert set(start) >= {"command", "overrides", "git", "time", "python"}


def test_best_weights_are_those_of_the_lowest_validation_loss(finished: Path, events: EventAccumulator) -> None:
    curve = {event.step: event.value for event in events.Scalars("val/loss")}
    best = min(curve, key=curve.__getitem__)
    assert checkpoint(finished, "best")["global_step"] == best
    assert metrics(finished)["val"]["loss"] == pytest.approx(curve[best], rel=1e-6)


def test_validation_has_the_training_s_objective_at_its_final_weight(config: Compose, tmp_path: Path) -> None:
    """A warm-up that has hardly begun weighs the rate little in training, and fully wherever weights are compared."""
    beta = ["objective/beta=linear", "objective.beta.steps=1000", "objective.beta.end=3"]
    train(config(*beta), tmp_path)
    content = metrics(tmp_path)
    for split in ("val", "test"):
        means = content[split]
        assert means["loss"] == pytest.approx(means["distortion"] + 3 * means["rate"])
        assert means["elbo"] == pytest.approx(-means["distortion"] - means["rate"])
    assert 0 < content["train"]["loss"] - content["train"]["distortion"] < 0.1 * content["train"]["rate"]


def test_pictures_do_not_change_the_training(config: Compose, tmp_path: Path) -> None:
    for name, count in (("few", 0), ("many", 100)):
        (tmp_path / name).mkdir()
        train(config(f"callbacks.pictures.count={count}"), tmp_path / name)
    assert equal(checkpoint(tmp_path / "few")["state_dict"], checkpoint(tmp_path / "many")["state_dict"])


def test_same_seed_same_run_and_seed_zero_is_a_seed(config: Compose, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        train(config(f"seed={seed}"), tmp_path / name)
    a, b, c = (checkpoint(tmp_path / name)["state_dict"] for name in "abc")
    assert equal(a, b)
    assert not equal(a, c)


def test_the_last_resort_is_named_everywhere(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vaelab.data import files

    monkeypatch.setattr(files, "reachable", lambda *_: ())
    folder = tmp_path / "run"
    folder.mkdir()
    with caplog.at_level(logging.INFO, "vaelab"):
        train(config(f"data.root={tmp_path}"), folder)
    assert metrics(folder)["protocol"]["dataset"] == "MNIST-5k"
    assert runs.saved_config(folder).data.used == "MNIST-5k"
    assert caplog.messages[-1].startswith("done")
    assert "on MNIST-5k (4,000 / 500 / 500 images" in caplog.messages[-1]
    assert "This is not the full MNIST" in caplog.text
    chosen = EventAccumulator(str(folder)).Reload().summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"MNIST-5k" in chosen


def test_grey_level_bernoulli_is_said_to_compare_with_nothing(
    config: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vaelab"):
        train(config("data.binarization=none"), tmp_path)
    assert "A Bernoulli likelihood on grey levels is no density" in caplog.text


# The tutorial ---------------------------------------------------------------------------------------------------------


def test_tutorial_reports_squared_error_plus_kl(config: Compose, tmp_path: Path) -> None:
    train(config("experiment=tutorial", "data.val_size=0", "trainer.max_epochs=2"), tmp_path)
    content = metrics(tmp_path)
    assert content["protocol"]["images"] == {"train": 600, "val": 0, "test": 200}
    expected = content["train"]["loss"] - 392 * math.log(math.pi)
    assert content["train"]["average_loss"] == pytest.approx(expected)
    assert "val" not in content
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    assert content["weights"]["test"] == "last"


def test_average_loss_needs_its_likelihood(config: Compose, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"average_loss turns nats into squared error .* needs model/likelihood=gaussian"
    ):
        train(config("+callbacks.average_loss._target_=vaelab.training.AverageLoss"), tmp_path)
    with pytest.raises(ValueError, match=r"which needs .* objective=elbo, beta 1 and no free bits"):
        train(config("experiment=tutorial", "data.val_size=0", "objective.beta=4"), tmp_path)


@pytest.mark.parametrize("extra", ["scheduler=plateau", "scheduler=cosine", "trainer.limit_val_batches=0"])
def test_nothing_needs_validation_images(config: Compose, tmp_path: Path, extra: str) -> None:
    size = "data.val_size=100" if "limit_val" in extra else "data.val_size=0"
    figure = train(config(size, extra), tmp_path)
    assert figure == metrics(tmp_path)["train"]["loss"]


def test_early_stopping_watches_what_picks_the_best_weights(config: Compose, tmp_path: Path) -> None:
    """An adversary's loss says nothing about the weights: its objective watches the distortion."""
    watched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EarlyStopping, "on_train_end", lambda self, *_: watched.append(self.monitor), raising=False)
        train(config("objective=adversarial", "callbacks=early_stopping"), tmp_path)
    assert watched == ["val/distortion"]


def test_an_objective_without_one_value_an_image_is_refused() -> None:
    class Mean(Objective):
        def terms(self, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return {"loss": -trace.log_weight(x).mean()}

    class Nameless(Objective):
        def terms(self, trace: Any, x: torch.Tensor, step: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return {"bound": trace.log_weight(x).mean(0)}

    for objective in (Mean(), Nameless()):
        with pytest.raises(ValueError, match="a loss and one value of each term for each of two images are needed"):
            rehearse(LinearGaussian().vae(exact=False), objective)


def test_early_stopping_needs_them(config: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has monitor=auto, but trainer.limit_val_batches=0 leaves no validation"):
        train(config("callbacks=early_stopping", "trainer.limit_val_batches=0"), tmp_path)
    with pytest.raises(
        ValueError, match=r"callbacks.early_stopping has monitor=val/elbo, but data.val_size=0 leaves no"
    ):
        train(
            config("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/elbo", "data.val_size=0"), tmp_path
        )


# Resuming -------------------------------------------------------------------------------------------------------------


PLATEAU = [
    "optimizer=adamw",
    "scheduler=plateau",
    "scheduler.scheduler.patience=0",
    "+scheduler.scheduler.threshold=1.0",
]


SWA = [
    "+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging",
    "+callbacks.swa.swa_lrs=0.01",
    "+callbacks.swa.swa_epoch_start=1",
]
ONE_CYCLE = [
    "scheduler=cosine",
    "scheduler.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
    "~scheduler.scheduler.min_ratio",
    "+scheduler.scheduler.max_lr=0.01",
]


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize(
    ("step", "overrides"),  # nine steps an epoch
    [
        (2, ["optimizer=adam"]),
        (8, ["optimizer=adam"]),  # the last of its epoch
        (9, ["optimizer=adam"]),
        (13, ["optimizer=sgd", "scheduler=cosine"]),
        (8, PLATEAU),
        (11, PLATEAU),
        (7, ["objective/beta=linear", "objective.beta.steps=9", "trainer.limit_train_batches=7"]),
        (3, ["data.val_size=0", "trainer.accumulate_grad_batches=2"]),
        (12, ["optimizer=sgd", "optimizer.lr=0.01", "trainer.gradient_clip_val=1"]),
        (5, ["model.encoder.norm=batch", "model.decoder.norm=batch"]),
        (14, ["objective=adversarial", "callbacks=early_stopping"]),
        (10, ["trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=2", "scheduler=plateau"]),
        (7, ["trainer.precision=bf16-mixed", "model/posterior=flow"]),
        (2, ["trainer.val_check_interval=3"]),  # a validation is due after this very step
        (14, ["trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"]),
        (5, ["callbacks=ema", "callbacks.ema.decay=0.9", "model.encoder.norm=batch"]),
        (13, [*SWA, "scheduler=cosine"]),
        (10, SWA),
        (7, ["trainer.max_steps=15", "trainer.limit_train_batches=6"]),
        (4, ["trainer.limit_train_batches=0.5"]),
        (8, [*ONE_CYCLE, "+scheduler.scheduler.total_steps=27"]),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, overrides: list[str]
) -> None:
    settings = ["trainer.max_epochs=3", "trainer.limit_train_batches=null", "data.batch_size=60", *overrides]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    train(config(*settings), whole)
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted) as stop:
            train(config(*settings), parts)
    assert stop.value.code == 130
    assert checkpoint(parts)["global_step"] >= step
    assert not (parts / "metrics.json").exists()
    cfg = runs.saved_config(parts)
    cfg.resume = str(parts)
    train(cfg, parts)
    ours, theirs = checkpoint(parts), checkpoint(whole)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert equal(ours[part], theirs[part]), part
    kept = [torch.load(folder / "weights.pt", weights_only=True) for folder in (parts, whole)]
    assert equal(*map(dict, kept))
    assert equal(ours["vaelab"]["rng_state"], theirs["vaelab"]["rng_state"])
    for name, value in metrics(whole)["train"].items():
        assert "second" in name or metrics(parts)["train"][name] == pytest.approx(value, rel=1e-6)
    assert metrics(parts)["test"] == metrics(whole)["test"]
    points, expected = (EventAccumulator(str(folder)).Reload() for folder in (parts, whole))
    for tag in ("train/loss", "train/rate", "train/lr", "val/loss"):
        if tag in expected.Tags()["scalars"]:
            values = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in expected.Scalars(tag)]
            assert [(event.step, event.value) for event in points.Scalars(tag)] == values
    assert len(json.loads((parts / "run.json").read_text())["starts"]) == 2


def test_resuming_with_more_epochs_equals_a_longer_run(config: Compose, tmp_path: Path) -> None:
    long, extended = tmp_path / "long", tmp_path / "extended"
    for folder, epochs in ((long, 4), (extended, 2)):
        folder.mkdir()
        train(config(f"trainer.max_epochs={epochs}"), folder)
    cfg = runs.saved_config(extended, ["trainer.max_epochs=4"])
    cfg.resume = str(extended)
    train(cfg, extended)
    assert equal(checkpoint(long)["state_dict"], checkpoint(extended)["state_dict"])
    assert metrics(long)["test"] == metrics(extended)["test"]
    curve = EventAccumulator(str(extended)).Reload().Scalars("val/loss")
    assert [event.step for event in curve] == [3, 6, 9, 12]


def test_a_moved_run_resumes_and_keeps_its_best(config: Compose, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    train(config(), tmp_path / "old")
    moved = (tmp_path / "old").rename(tmp_path / "new")
    cfg = runs.saved_config(moved, ["trainer.max_epochs=3"])
    cfg.resume = str(moved)
    train(cfg, moved)
    assert sorted(path.name for path in (moved / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not (tmp_path / "old").exists()


def test_overrides_of_the_optimiser_rule_when_resuming(config: Compose, tmp_path: Path) -> None:
    train(config(), tmp_path)
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3", "optimizer.lr=0.002"])
    cfg.resume = str(tmp_path)
    train(cfg, tmp_path)
    assert checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.002


def test_a_schedule_keeps_its_learning_rate_when_resuming(config: Compose, tmp_path: Path) -> None:
    train(config("scheduler=cosine"), tmp_path)
    with pytest.raises(ValueError, match=r"optimizer.lr was 0.001 in .* cannot become 0.002: .* a scheduler sets it"):
        runs.saved_config(tmp_path, ["trainer.max_epochs=3", "optimizer.lr=0.002"])


@pytest.mark.parametrize(
    "override",
    ["seed=5", "model.latent_dim=3", "data.val_size=50", "data.batch_size=10", "steps=9", "objective.beta=2"],
)
def test_a_resumed_run_keeps_model_data_and_seed(config: Compose, tmp_path: Path, override: str) -> None:
    train(config(), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ValueError, match=f"{override.split('=')[0]} was .* and cannot become {override.split('=')[1]}"):
        runs.saved_config(tmp_path, ["trainer.max_epochs=3", override])
    assert (tmp_path / "config.yaml").read_text() == before
    assert runs.saved_config(tmp_path, ["data.root=elsewhere"]).data.root == "elsewhere"


def test_weights_of_another_model_are_refused_before_anything_is_written(config: Compose, tmp_path: Path) -> None:
    train(config(), tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("latent_dim: 20", "latent_dim: 3"))
    cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3"])
    cfg.resume = str(tmp_path)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match="holds the weights of another model than"):
        train(cfg, tmp_path)
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.parametrize(("settings", "steps"), [([], 20), (["trainer.accumulate_grad_batches=3"], 16)])
def test_a_run_is_as_many_whole_epochs_as_hold_its_steps(
    config: Compose, tmp_path: Path, settings: list[str], steps: int
) -> None:
    length = ["trainer.max_epochs=null", "trainer.limit_train_batches=null", "steps=14", *settings]
    train(config(*length), tmp_path)  # ten batches an epoch; Lightning steps after the last, too
    assert metrics(tmp_path)["steps"] == steps


def test_sigterm_saves_first(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as stop:
        train(config(), tmp_path)
    assert stop.value.code == 143
    assert checkpoint(tmp_path)["global_step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_the_process_ignores_stays_ignored(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C is in what a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(config(), tmp_path)
    assert metrics(tmp_path)["steps"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("epochs", [0, 2, 3])
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    def write(path: Path, content: memoryview) -> None:
        written.append(path.name)
        if written.count("last.ckpt") > epochs:
            raise OSError(28, "No space left on device", str(path))
        original(path, content)

    written: list[str] = []
    original = checkpoints.write_atomically
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    with pytest.raises(OSError, match="No space left on device") as error:
        train(config("trainer.max_epochs=4"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert error.value.filename == str(last)
    assert checkpoint(tmp_path)["global_step"] == 3 * epochs if epochs else not last.exists()
    assert not (tmp_path / "metrics.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_slow_disk_is_waited_for(config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: memoryview) -> None:
        time.sleep(0.3)
        original(path, content)
        steps[path.name] = torch.load(path, weights_only=True)["global_step"]

    steps: dict[str, int] = {}
    original = checkpoints.write_atomically
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    stop_at(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config("trainer.max_epochs=2"), tmp_path)
    assert steps == {"best.ckpt": 3, "last.ckpt": 5}  # on the disk when the run has ended


# Losses that are no numbers -------------------------------------------------------------------------------------------


def test_a_bad_loss_stops_the_run_and_names_step_terms_and_checkpoint(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(self: VAEModule, *args: Any) -> dict[str, torch.Tensor]:
        if self.trainer.global_step == 4:
            with torch.no_grad():
                self.model.posterior.linear.bias.fill_(float("nan"))
        return original(self, *args)

    original = VAEModule.terms
    monkeypatch.setattr(VAEModule, "terms", spoil)
    with pytest.raises(ArithmeticError) as error:
        train(config("trainer.log_every_n_steps=50"), tmp_path)
    message = str(error.value)
    assert message.startswith("the loss is not a finite number at step 5 (loss nan, elbo nan, rate nan, distortion ")
    assert message.endswith("a smaller optimizer.lr is the first thing to try")
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'last.ckpt'}" in caplog.text
    assert checkpoint(tmp_path)["global_step"] == 3
    assert all(value.isfinite().all() for value in checkpoint(tmp_path)["state_dict"].values())


def test_weights_that_are_no_numbers_are_never_saved(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: VAEModule, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.trainer.global_step == 5:
            with torch.no_grad():
                self.model.decoder.layers[0].weight[0, 0] = float("inf")

    original = VAEModule.optimizer_step
    monkeypatch.setattr(VAEModule, "optimizer_step", spoil)
    with pytest.raises(ArithmeticError, match=r"a weight is not a finite number after step 6"):
        train(config("data.val_size=0"), tmp_path)
    assert checkpoint(tmp_path)["global_step"] == 3
