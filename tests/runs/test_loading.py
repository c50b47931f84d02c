"""Loading an untrusted run executes none of its code, and damaged files are named."""

import json
import os
import pickle
import re
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, refused, stop_at
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from safetensors.torch import save_file

from train import train
from vaelab import load_run, runs
from vaelab.runs import memory

MARKER = "payload_ran"


class Payload:
    """Unpickling it creates a file in the working directory."""

    def __reduce__(self) -> tuple:
        return open, (MARKER, "w")


def resume(folder: Path, *overrides: str) -> None:
    cfg = runs.saved_config(folder, ["trainer.max_epochs=2", *overrides])
    cfg.resume = str(folder)
    train(cfg, folder)


def test_a_run_and_its_export_are_the_same_model(run: Path, exported: Path) -> None:
    model = instantiate(OmegaConf.load(run / "config.yaml").model, _convert_="all")
    model.load_state_dict(torch.load(run / "weights.pt"))
    x = torch.rand(3, 1, 28, 28)
    for folder in (run, str(run), exported):
        loaded = load_run(folder)
        assert not loaded.training
        assert torch.equal(loaded.encode(x), model.eval().encode(x))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that creates the marker file when it is imported."""
    Path("planted.py").write_text(f"class Thing:\n    open({MARKER!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "planted", raising=False)


@pytest.mark.usefixtures("planted")
def test_the_payloads_of_these_tests_run_where_they_may(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload())).close()
    (tmp_path / MARKER).unlink()
    instantiate({"_target_": "planted.Thing"})
    (tmp_path / MARKER).unlink()


@pytest.mark.parametrize("plant", [lambda _: Payload(), lambda state: {**state, "decoder.layers.0.bias": Payload()}])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_payload_in_the_weights(run: Path, plant: Callable, save: Callable) -> None:
    save(plant(torch.load(run / "weights.pt")), run / "weights.pt")
    assert refused(load_run, run) == f"{run}/weights.pt holds more than plain data, or is damaged: use another file"


def test_a_payload_in_the_checkpoint_that_resuming_starts_from(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "more": Payload()}, path)
    assert "last.ckpt holds more than plain data, or is damaged: use another file" in refused(resume, run)
    torch.save({"state_dict": {}}, path)
    assert "last.ckpt is not a checkpoint of vaelab: 'loops'" in refused(resume, run)


def test_a_payload_in_the_best_checkpoint(run: Path) -> None:
    """No epoch can beat the planted score, so the run reads best.ckpt after training."""
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["BestCheckpoint"]["score"] = -1e9
    torch.save(checkpoint, last)
    torch.save({**torch.load(best, weights_only=True), "more": Payload()}, best)
    assert "best.ckpt holds more than plain data" in refused(resume, run)


@pytest.mark.parametrize("place", ["https://127.0.0.1:9/best.ckpt", "{folder}/checkpoints/../../victim"])
@pytest.mark.parametrize("score", [-1e9, 1e9])
def test_a_checkpoint_that_names_files_elsewhere(
    run: Path, tmp_path: Path, place: str, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would unpickle a file from such an address, and delete the file after a better epoch."""
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a stranger's address"))
    (tmp_path / "victim").write_text("precious")
    last, elsewhere = run / "checkpoints" / "last.ckpt", place.format(folder=run)
    checkpoint = torch.load(last, weights_only=True)
    places = dict.fromkeys(("path", "_file", "best_model_path", "kth_best_model_path", "last_model_path"), elsewhere)
    for name in ("BestCheckpoint", "LastCheckpoint"):
        checkpoint["callbacks"][name] = {
            **places,
            "dirpath": str(run / "checkpoints"),
            "score": score,
            "saved": True,
            "step": 2,
        }
    torch.save(checkpoint, last)
    resume(run)
    assert json.loads((run / "metrics.json").read_text())["best_checkpoint"] == "checkpoints/best.ckpt"
    assert (tmp_path / "victim").read_text() == "precious"


def test_weights_of_another_version(run: Path, exported: Path) -> None:
    state = torch.load(run / "weights.pt")
    name = "decoder.layers.0.bias"
    others = {
        f"{name} (7,) for (8,)": {**state, name: torch.zeros(7)},
        f"{name} missing for (8,)": {key: weight for key, weight in state.items() if key != name},
        "prior.more (2,) for none": {**state, "prior.more": torch.zeros(2)},
    }
    for differing, weights in others.items():
        torch.save(weights, run / "weights.pt")
        save_file(weights, exported / "model.safetensors")
        for folder in (run, exported):
            sentence = refused(load_run, folder)
            assert f"({differing}): the config was changed, or another version wrote the run" in sentence


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"a": 3}, {3: torch.zeros(3)}, 3])
def test_a_file_that_holds_no_weights_is_named(run: Path, content: Any) -> None:
    torch.save(content, run / "weights.pt")
    assert "weights.pt does not hold tensors by name" in refused(load_run, run)


@pytest.mark.parametrize("size", [0, 7, 100, 1000, -1])
def test_damaged_weights(run: Path, exported: Path, size: int) -> None:
    for path in (run / "weights.pt", exported / "model.safetensors"):
        path.write_bytes(path.read_bytes()[:size])
        assert "damaged" in refused(load_run, path.parent)


def test_a_folder_without_a_finished_run_is_named(run: Path, exported: Path) -> None:
    needed = "the folder of a run is needed, such as logs/RUN"
    assert refused(load_run, "nowhere") == f"nowhere is not a run: no such folder; {needed}"
    assert refused(load_run, run / "checkpoints") == f"{run}/checkpoints is not a run: it has no config.yaml; {needed}"
    (run / "weights.pt").unlink()
    assert refused(load_run, run) == (
        f"{run} is not finished, it has no weights.pt: python train.py resume={run} continues it"
    )
    assert "exported model, which has no checkpoints: resume the run itself" in refused(runs.saved_config, exported)


@pytest.mark.parametrize("name", ["weights.pt", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found(run: Path, name: str, place: float) -> None:
    """Each file is an archive with a checksum for each of its parts."""
    content = bytearray((run / name).read_bytes())
    with zipfile.ZipFile(run / name) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    start = largest.header_offset + 200  # behind the header of the part
    content[start + int(place * (largest.file_size - 400))] ^= 4
    (run / name).write_bytes(content)
    assert "or is damaged" in refused(load_run if name == "weights.pt" else resume, run)


@pytest.mark.parametrize("states", [None, [], [{"state": {}, "param_groups": []}]])
def test_a_checkpoint_without_the_optimiser_s_state(run: Path, states: Any) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.pop("optimizer_states")
    torch.save(checkpoint if states is None else {**checkpoint, "optimizer_states": states}, path)
    assert "does not hold the state of the optimiser" in refused(resume, run)


def test_a_stopped_run_refuses_an_end_before_its_epoch_and_keeps_its_config(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the third epoch
    with pytest.raises(SystemExit):
        train(config("trainer.max_epochs=9"), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    for end in ("trainer.max_epochs=1", "trainer.max_steps=1"):
        sentence = refused(resume, tmp_path, "trainer.max_epochs=9", end)
        assert re.search(r"has done \d+ (epochs|steps) already, more than trainer.max_(epochs|steps)=1", sentence)
        assert (tmp_path / "config.yaml").read_text() == before
    resume(tmp_path, "trainer.max_epochs=3")
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 3


def test_a_run_that_stopped_early_is_complete(config: Compose, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    early = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-30"]
    train(config(*early, "trainer.max_epochs=9"), folder)
    before = (folder / "metrics.json").read_text()
    assert json.loads(before)["epochs"] < 9
    assert re.search(
        r"is complete, early stopping ended it in epoch \d", refused(resume, folder, "trainer.max_epochs=9")
    )
    assert (folder / "metrics.json").read_text() == before


def test_a_tilde_is_the_home_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.chdir("/")
    assert runs.open_run("~/run").folder == run
    assert not load_run("~/run").training
    config = OmegaConf.load(run / "config.yaml")
    root = Path(config.data.root)
    (run.parent / "data").symlink_to(root)
    assert runs.open_run("~/run", root="~/data").data.folder == run.parent / "data" / "MNIST" / "raw"


B = "decoder.layers.0.bias"
ODD: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "half": (torch.Tensor.half, f"({B} (8,) of float16 for (8,))"),
    "bfloat16": (torch.Tensor.bfloat16, f"({B} (8,) of bfloat16 for (8,))"),
    "int": (torch.Tensor.long, f"({B} (8,) of int64 for (8,))"),
    "bool": (torch.Tensor.bool, f"({B} (8,) of bool for (8,))"),
    "complex": (lambda w: w + 0j, f"({B} (8,) of complex64 for (8,))"),
    "scalar": (lambda w: w[0].clone(), f"({B} () for (8,))"),
    "nan": (lambda w: w * float("nan"), f"has numbers that are not finite, in {B}"),
    "infinite": (lambda w: w - float("inf"), f"has numbers that are not finite, in {B}"),
    "sparse": (torch.Tensor.to_sparse, "holds a tensor that is sparse, quantised, without data or larger"),
    "meta": (lambda w: w.to("meta"), "holds a tensor that is sparse, quantised, without data or larger"),
    "expanded": (lambda w: w[:1].clone().expand(10**12), "holds a tensor that is sparse, quantised, without data or"),
    "list": (torch.Tensor.tolist, "does not hold tensors by name"),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("name", ODD)
def test_weights_that_no_run_writes(run: Path, exported: Path, name: str) -> None:
    change, sentence = ODD[name]
    state = torch.load(run / "weights.pt")
    state[B] = change(state[B])
    torch.save(state, run / "weights.pt")
    assert sentence in refused(load_run, run)
    if name not in ("sparse", "meta", "expanded", "list"):
        save_file(state, exported / "model.safetensors")
        assert sentence in refused(load_run, exported)


def test_weights_of_64_bits_are_those_of_a_run_in_this_precision(run: Path) -> None:
    state = torch.load(run / "weights.pt")
    torch.save({name: weight.double() for name, weight in state.items()}, run / "weights.pt")
    assert torch.equal(load_run(run).state_dict()[B], state[B])


def test_weights_are_not_read_if_they_are_much_larger_than_the_model(run: Path, exported: Path) -> None:
    for path in (run / "weights.pt", exported / "model.safetensors"):
        os.truncate(path, 10**10)  # on the disk, it takes no place
        assert "has 10,000,000,000 bytes, but such a file of this run has at most 1," in refused(load_run, path.parent)
    for name in ("best.ckpt", "last.ckpt"):
        os.truncate(run / "checkpoints" / name, 10**10)
        assert f"{name} has 10,000,000,000 bytes" in refused(resume, run)


MODELS = {
    "model.latent_dim": 10**9,
    "model.image_shape": [1, 100_000, 100_000],
    "model.encoder.hidden": [8, 10**30],
}


@pytest.mark.parametrize("key", MODELS)
def test_a_model_that_cannot_fit_into_memory(run: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMORY", 16e9)
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, key, MODELS[key])
    OmegaConf.save(config, run / "config.yaml")
    assert re.search(r"takes \d\S* GB or more, but this machine has \S+ GB of memory", refused(load_run, run))


def plant(run: Path, change: Callable[[dict], Any]) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def moments(content: dict) -> dict:
    return content["optimizer_states"][0]["state"][0]


BROKEN: dict[str, tuple[Callable[[dict], Any], str]] = {
    "no vaelab": (lambda c: c.pop("vaelab"), "is not a checkpoint of "),
    "no callbacks": (lambda c: c.pop("callbacks"), "is not a checkpoint of "),
    "step": (lambda c: c.update(global_step="2"), "is not a checkpoint of "),
    "epoch": (lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed=None), "not a checkpoint"),
    "weights": (lambda c: c["state_dict"].update({f"model.{B}": torch.zeros(8, dtype=torch.int8)}), "of int8 for (8,)"),
    "moment": (lambda c: moments(c).update(exp_avg=torch.zeros(7)), "exp_avg (7,) for (8, 784)"),
    "expanded": (lambda c: moments(c).update(exp_avg=torch.zeros(1).expand(10**11)), "larger than its data"),
    "laughs": (lambda c: moments(c).update(more=laughs()), "as no file of a run has"),
    "text": (lambda c: c["callbacks"].update({"\x1b]0;title\x07": {}}), "has hidden characters in a text"),
}


def laughs() -> list:
    """A list that would have 10^40 values if it were written out."""
    content: list = [1]
    for _ in range(40):
        content = [content] * 10
    return content


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_no_run_writes(run: Path, name: str) -> None:
    change, sentence = BROKEN[name]
    plant(run, change)
    assert sentence in refused(resume, run)


def lightning_s(folder: Path, victim: Path, **arguments: Any) -> dict[str, Any]:
    """The state of a ModelCheckpoint that names a folder to remove, by its key in a checkpoint."""
    state = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), str(victim))
    scores = dict.fromkeys(("best_model_score", "current_score", "kth_value"), torch.tensor(1e9))
    more = {
        "monitor": arguments.get("monitor"),
        "dirpath": str(folder),
        "best_k_models": {str(victim): torch.tensor(1e9)},
    }
    return {ModelCheckpoint(**arguments).state_key: {**state, **scores, **more}}


@pytest.fixture
def victim(run: Path, tmp_path: Path) -> Path:
    """A folder outside, by a path that Lightning takes for one in the run's folder."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("precious")
    return run / "checkpoints" / ".." / ".." / "victim"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_lightning_s_own_checkpoint_does_not_remove_a_folder_outside(run: Path, victim: Path) -> None:
    """Lightning adds a ModelCheckpoint if there is no other checkpoint, and restores its state."""
    config = OmegaConf.load(run / "config.yaml")
    del config["callbacks"]["best_checkpoint"], config["callbacks"]["last_checkpoint"]
    OmegaConf.save(config, run / "config.yaml")
    plant(run, lambda c: c.update(callbacks=lightning_s(run / "checkpoints", victim)))
    assert "+trainer.enable_checkpointing=false" in refused(resume, run)
    resume(run, "+trainer.enable_checkpointing=false")
    assert (victim / "file").read_text() == "precious"


def test_a_trusted_checkpoint_does_not_remove_a_folder_outside(run: Path, victim: Path) -> None:
    folder = run / "checkpoints"
    config = OmegaConf.load(run / "config.yaml")
    arguments = {"monitor": "val/loss", "save_top_k": 1, "dirpath": str(folder)}
    config.callbacks.mine = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", **arguments}
    OmegaConf.save(config, run / "config.yaml")
    plant(run, lambda c: c["callbacks"].update(lightning_s(folder, victim, **arguments)))
    cfg = runs.saved_config(run, ["trainer.max_epochs=2"], ["lightning.pytorch.callbacks"])
    cfg.resume = str(run)
    assert f"would change {victim}, but a resumed run changes only files in {run}" in refused(train, cfg, run)
    assert (victim / "file").read_text() == "precious"


def test_drawn_images_are_in_no_folder(config: Compose, tmp_path: Path) -> None:
    small = ["data.image_shape=[1,16,16]", "data.factor_sizes=[3,2,4,4,4]", "data.num_images=60"]
    cfg = config("data=sprites", *small, "data.val_size=10", "data.test_size=10", "model.encoder.hidden=[8]")
    cfg.data.used = "sprites-16-3-2-4-4-4-0"  # as a run writes it
    runs.record_start(tmp_path, cfg)
    torch.save(instantiate(cfg.model, _convert_="all").state_dict(), tmp_path / "weights.pt")
    assert runs.open_run(str(tmp_path)).data.name == cfg.data.used
    sentence = "data.root=data changes nothing: the images of sprites are in no folder"
    assert refused(runs.open_run, str(tmp_path), "data") == sentence
