"""`python generate.py` draws every kind of picture, stores its command, and refuses wrong input."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, compose_config
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from generate import KINDS, generate, images
from train import train
from vaelab import cli, runs
from vaelab.evaluation import densities

Command = Callable[..., tuple[str | int | None, str]]
Draw = Callable[..., str | None]
SMALL = ("model.encoder.hidden=[16]", "callbacks.pictures.num_samples=4")
MODELS = {  # sizes of the models that are drawn
    "deep": ("model.latent_dim=5",),
    "plane": ("model.latent_dim=2",),
    "conditional": ("model.latent_dim=2", "model.num_classes=10"),
    "autoencoder": ("model.latent_dim=2", "model/posterior=point_mass", "objective=reconstruction"),
    "mixture": ("model.latent_dim=2", "model/prior=mixture"),
    "labelled": ("experiment=semi_supervised", "model.latent_dim=12", "model.posterior.width=8"),
    "clusters": ("experiment=gaussian_mixture_vae", "model.latent_dim=2", "model.posterior.num_classes=3"),
    "categorical": ("model.latent_dim=20", "model/posterior=categorical", "model/prior=uniform_categorical"),
    "pixels": ("model.latent_dim=2", "model/likelihood=autoregressive", "model.likelihood.network.channels=4"),
    "vq": (
        "experiment=vq_vae",
        "model.num_embeddings=8",
        "model.encoder.channels=[4,4]",
        "model.decoder.channels=[4,4]",
    ),
}


@pytest.fixture(scope="session")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: "deep" was trained and resumed, and the others hold initial weights."""
    from hydra.utils import instantiate

    folder = tmp_path_factory.mktemp("runs")
    for name, settings in MODELS.items():
        run = folder / name
        run.mkdir()
        small = SMALL if name != "vq" else ()
        cfg = compose_config(data_root, *settings, *small)
        if name == "deep":
            train(cfg, run)
            cfg = runs.saved_config(run, ["trainer.max_epochs=3"])
            cfg.resume = str(run)
            train(cfg, run)
        else:
            torch.manual_seed(0)
            runs.record_start(run, cfg)
            torch.save(instantiate(cfg.model, _convert_="all").state_dict(), run / "weights.pt")
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, finished: Path) -> Command:
    """Runs `python generate.py` in the folder of runs: returns the exit code or message, and the printed text."""
    monkeypatch.chdir(finished)

    def run(*arguments: str) -> tuple[str | int | None, str]:
        monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
        GlobalHydra.instance().clear()
        code = None
        try:
            cli.main(generate, ROOT / "configs", "generate")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out + err

    return run


@pytest.fixture(scope="module")
def defaults() -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("generate")


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, defaults: DictConfig, finished: Path) -> Draw:
    """Runs generate.py without Hydra, which is slow: returns the error message, or None."""
    monkeypatch.chdir(finished)
    for fit in (densities.flow, densities.two_stage):
        monkeypatch.setattr(fit, "__defaults__", (0, 3, 32))  # three training steps

    def run(*arguments: str) -> str | None:
        monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
        try:
            generate(OmegaConf.merge(defaults, OmegaConf.from_dotlist(list(arguments))), finished)
        except Exception as error:
            return cli.sentence(error) or repr(error)
        return None

    return run


PICTURES = [
    ("plane", "", "samples.png"),
    ("plane", "num=5 seed=3", "samples_num-5_seed-3.png"),
    ("conditional", "", "samples.png"),
    ("conditional", "label=0", "samples_label-0.png"),
    ("conditional", "label=3 density=gmm", "samples_label-3_density-gmm.png"),
    ("autoencoder", "density=flow", "samples_density-flow.png"),
    ("autoencoder", "density=two_stage", "samples_density-two_stage.png"),
    ("labelled", "label=3", "samples_label-3.png"),
    ("clusters", "num=6", "samples_num-6.png"),
    ("plane", "kind=reconstructions num=3", "reconstructions_num-3.png"),
    ("conditional", "kind=reconstructions format=svg", "reconstructions.svg"),
    ("vq", "kind=reconstructions", "reconstructions.png"),
    ("pixels", "num=2", "samples_num-2.png"),
    ("pixels", "kind=reconstructions num=2", "reconstructions_num-2.png"),
    ("conditional", "kind=interpolation num=2", "interpolation_num-2.png"),
    ("vq", "kind=interpolation num=2", "interpolation_num-2.png"),
    ("conditional", "kind=traversal format=svg", "traversal.svg"),
    ("deep", "kind=traversal index=7", "traversal_index-7.png"),
    ("plane", "kind=manifold", "manifold.png"),
    ("conditional", "kind=manifold label=9", "manifold_label-9.png"),
    ("plane", "kind=codes format=svg", "codes.svg"),
    ("conditional", "kind=codes num=50", "codes_num-50.png"),
    ("deep", "kind=codes", "codes.png"),
    ("deep", "kind=codes num=40 projection=tsne", "codes_projection-tsne_num-40.png"),
    ("deep", "kind=prior", "prior.png"),
    ("autoencoder", "kind=prior", "prior.png"),
    ("mixture", "kind=prior", "prior.png"),
    ("deep", "kind=training", "training.gif"),
]


def metadata(path: Path) -> tuple[str, str]:
    """The command and the description in a picture file."""
    if path.suffix == ".svg":
        text = path.read_text()
        parts = (text.split(f"<dc:{name}>")[1].split(f"</dc:{name}>")[0] for name in ("source", "description"))
        return tuple(parts)
    with Image.open(path) as image:
        image.load()
        if path.suffix == ".gif":
            return tuple(image.info["comment"].decode().split("\n"))
        return image.text["Command"], image.text["Description"]


@pytest.mark.parametrize(("run", "settings", "name"), PICTURES, ids=lambda value: str(value).replace(" ", ","))
def test_picture(draw: Draw, finished: Path, run: str, settings: str, name: str, capsys: pytest.CaptureFixture) -> None:
    arguments = [f"run={run}", *settings.split()]
    path = finished / run / "generated" / name
    assert draw(*arguments) is None
    assert capsys.readouterr().out.splitlines()[-1] == f"{run}/generated/{name}"
    written, about = metadata(path)
    assert written == " ".join(["python generate.py", *arguments])
    assert about.startswith(f"{run}: MNIST (500 / 100 / 200 images to train / validate / test), binarization ")
    if any(word in name for word in ("svg", "gif", "density", "tsne", "prior", "seed")):
        before = path.read_bytes()
        draw(*arguments)
        assert path.read_bytes() == before


def test_command_line(command: Command, finished: Path) -> None:
    _, printed = command("--help")
    listed = [
        line.split()[0] for line in printed.split("Kinds\n")[1].split("Settings:")[0].splitlines() if line.strip()
    ]
    assert listed == list(KINDS)
    code, printed = command("run=[autoencoder,plane]", "kind=ae_vs_vae")
    assert code is None
    assert printed == "autoencoder/generated/ae_vs_vae_plane.png\n"
    written, about = metadata(finished / "autoencoder/generated/ae_vs_vae_plane.png")
    assert written == "python generate.py 'run=[autoencoder,plane]' kind=ae_vs_vae"
    assert about.count("MNIST (500 / 100 / 200 images") == 2
    code, printed = command("run=plane", "knd=samples")
    assert code == "error: there is no setting knd; did you mean kind?"
    assert "Traceback" not in printed


def test_autoencoder_s_samples_come_with_advice(draw: Draw, capsys: pytest.CaptureFixture) -> None:
    for run, advised in (("autoencoder", True), ("plane", False)):
        assert draw(f"run={run}", "num=1") is None
        assert ("density=gmm" in capsys.readouterr().out) == advised


def test_seed_chooses_the_test_images(draw: Draw, finished: Path) -> None:
    for seed in (0, 1):
        assert draw("run=plane", "kind=reconstructions", "num=2", f"seed={seed}") is None
    names = ("reconstructions_num-2.png", "reconstructions_num-2_seed-1.png")
    first, second = (Image.open(finished / "plane/generated" / name).tobytes() for name in names)
    assert first != second


def test_a_traversal_starts_from_the_image_of_its_index(draw: Draw, finished: Path) -> None:
    """All other images follow once, because the rates are means over all of them."""
    run = runs.open_run(str(finished / "deep"))
    x, _ = run.data.pixels("test")
    order, _ = images(run, seed=0, first=7)
    assert torch.equal(order[0], x[7])
    assert not torch.equal(images(run, seed=0)[0][0], x[7])
    assert torch.equal(order.sum(0), x.sum(0))
    assert draw("run=deep", "kind=traversal", "index=7") is None


def test_a_kind_without_test_images_reads_none_of_them(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaelab.data.ImageDataModule.pixels", None)
    for settings in ("kind=samples num=1", "kind=manifold"):
        assert draw("run=plane", *settings.split()) is None
    assert "NoneType" in str(draw("run=plane", "kind=reconstructions"))


def test_animation_has_a_frame_for_each_picture_that_was_logged(draw: Draw, finished: Path) -> None:
    """The run was resumed, so two event files hold its pictures."""
    run = finished / "deep"
    assert len(list(run.glob("events.out.*"))) > 1
    events = EventAccumulator(str(run), {"images": 0})
    events.Reload()
    logged = {event.step: event.encoded_image_string for event in events.Images("views/samples")}
    assert sorted(logged) == [0, 3, 6, 9]
    assert draw("run=deep", "kind=training") is None
    with Image.open(run / "generated/training.gif") as animation:
        assert animation.n_frames == 4
        frames = []
        for i in range(4):
            animation.seek(i)
            frames.append(animation.convert("L"))
    for frame, step in zip(frames, sorted(logged), strict=True):
        picture = Image.open(io.BytesIO(logged[step])).convert("L")
        assert frame.size == (picture.width, picture.height + 30)
        shown = frame.crop((0, 30, *frame.size))
        assert max(abs(a - b) for a, b in zip(shown.tobytes(), picture.tobytes(), strict=True)) <= 3  # the palette
        line = frame.crop((0, 27, frame.width, 28)).tobytes()
        assert abs(sum(pixel < 128 for pixel in line) - frame.width * step / 9) <= 1


def test_pictures_of_a_training_without_a_prior_are_reconstructions(draw: Draw, finished: Path) -> None:
    run = finished / "without_prior"
    shutil.copytree(finished / "deep", run)
    for path in run.glob("events.out.*"):
        path.unlink()
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run)) as writer:
        for step, size in ((0, 4), (5, 6)):
            writer.add_image("reconstructions", torch.full((3, size, 90), step / 5), step)
    assert draw(f"run={run.name}", "kind=training") is None
    with Image.open(run / "generated/training.gif") as animation:
        assert animation.n_frames == 2
        assert animation.size == (90, 36)
    shutil.rmtree(run)


REFUSALS = [
    ("", "run=None: the folder of a finished run is needed"),
    ("run=nowhere", "nowhere is not a run: no such folder"),
    ("run=plane kind=smaples", "kind=smaples: choose one of samples, reconstructions, interpolation, traversal, "),
    ("run=plane density=kde", "density=kde: choose one of None, gmm, flow, two_stage"),
    ("run=deep kind=codes projection=umap", "projection=umap: choose one of None, pca, tsne"),
    ("run=plane format=pdf", "format=pdf: choose one of png, svg"),
    ("run=deep kind=training format=svg", "format=svg: choose one of png"),
    ("run=plane seed=-1", "seed=-1: a whole number, at least 0, is needed"),
    ("run=plane kind=traversal index=-1", "index=-1: a whole number, at least 0, is needed"),
    ("run=plane kind=traversal index=200", "index=200: the test images of MNIST are 0 to 199"),
    ("run=plane kind=traversal index=7 seed=2", "index=7 chooses the image, so that seed=2 changes nothing"),
    ("run=plane kind=samples index=7", "index=7 changes nothing in kind=samples, which takes label and density"),
    ("run=plane num=0", "num=0: a whole number, at least 1, is needed"),
    ("run=plane kind=manifold seed=1", "seed=1 changes nothing in kind=manifold, which takes label"),
    ("run=plane kind=training num=1", "num=1 changes nothing in kind=training, which takes no such setting"),
    (
        "run=plane kind=codes density=gmm",
        "density=gmm changes nothing in kind=codes, which takes projection and num and seed",
    ),
    ("run=[plane,deep]", "run=['plane', 'deep']: kind=samples draws one run, run=logs/RUN"),
    ("run=plane kind=ae_vs_vae", "run=plane: kind=ae_vs_vae draws two runs, 'run=[AUTOENCODER,VAE]'"),
    ("run=[autoencoder,deep] kind=ae_vs_vae", "the manifold is a picture of two latent dimensions, not of 5"),
    ("run=plane label=3", "label=3, but this model was trained without labels: train with model.num_classes=10"),
    ("run=conditional label=10 density=flow", "label=10: the classes of this model are 0 to 9"),
    ("run=conditional num=9", "num=9: all 10 classes are drawn in turn: raise num or set label=3"),
    ("run=conditional kind=manifold", "each class of a conditional model has its own manifold: choose a class"),
    ("run=deep kind=manifold", "the manifold is a picture of two latent dimensions, not of 5"),
    (
        "run=mixture kind=manifold",
        "the manifold needs the quantiles of a factorised prior, and MixtureSameFamily has none",
    ),
    ("run=mixture kind=traversal", "single dimensions of this latent space have no rate: "),
    ("run=autoencoder kind=traversal", "single dimensions of this latent space have no rate: "),
    ("run=plane kind=interpolation num=101", "101 pairs of images are needed, but 200 images give"),
    ("run=vq", "a VQ-VAE has nothing to sample from until a prior over its codes is learned"),
    ("run=vq density=gmm", "the codes of a VQ-VAE are maps of indices: no density of vectors fits them"),
    ("run=vq kind=traversal", "a VQ-VAE has no q(z | x): its code is a point, which encode returns"),
    ("run=clusters label=1 density=gmm", "label=1: density=gmm is fitted to the codes of all classes: leave it out"),
    ("run=clusters label=3", "label=3: the classes of this model are 0 to 2"),
    (
        "run=labelled density=two_stage",
        "the codes of this model lie on vectors of 2 dimensions with one of 10 classes, not in R^D",
    ),
    ("run=conditional density=gmm num=9", "num=9: all 10 classes are drawn in turn: raise num or set label=3"),
    ("run=labelled kind=traversal", "single dimensions of this latent space have no rate"),
    ("run=labelled num=9", "num=9: all 10 classes are drawn in turn: raise num or set label=3"),
    ("run=vq kind=prior", "the codes of a VQ-VAE are maps of indices: no density of vectors fits them"),
    ("run=categorical density=flow", "the codes of this model lie on 2 one-hot vectors of 10 categories, not in R^D"),
    ("run=categorical kind=prior", "the codes of this model lie on 2 one-hot vectors of 10 categories, not in R^D"),
    ("run=plane kind=training", "plane has no event files with pictures of its training"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSALS)
def test_refusal(draw: Draw, finished: Path, settings: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "label=" in settings:
        monkeypatch.delattr(densities, "codes")  # the refusal comes before a slow fit
    before = sorted(finished.rglob("generated/*"))
    wrong = draw(*settings.split())
    assert str(wrong).startswith(sentence)
    assert "\n" not in str(wrong)
    assert sorted(finished.rglob("generated/*")) == before
