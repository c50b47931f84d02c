"""The model card describes its run, and leaves out statements that do not apply."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import compose_config
from omegaconf import OmegaConf
from torch import nn

from vaelab import export as exports
from vaelab.likelihoods import Bernoulli, Gaussian
from vaelab.models import VAE, VQVAE
from vaelab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaelab.posteriors import DiagonalGaussian
from vaelab.priors import StandardNormal

SHAPE = (1, 6, 5)


def build(**parts: Any) -> VAE:
    """A small VAE with random weights."""
    chosen = {
        "encoder": partial(MLPEncoder, hidden=[7], norm="batch"),
        "posterior": DiagonalGaussian,
        "prior": StandardNormal,
        "decoder": partial(MLPDecoder, hidden=[7]),
        "likelihood": Bernoulli(),
    }
    return VAE(3, SHAPE, **chosen | parts).eval()


def vq() -> nn.Module:
    parts = {"encoder": partial(ConvEncoder, channels=[4], hidden=[]), "decoder": partial(ConvDecoder, channels=[4])}
    return VQVAE(2, 5, SHAPE, likelihood=Gaussian(), **parts).eval()


GRAPHS = {"decoder.onnx": exports.Graph(b"graph", ["code"], ["image"], 2e-7)}


def config_of(*overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose_config(Path("data"), *overrides), resolve=True)
    return config


@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        ([], "one seeded draw", "grey levels is not a density"),
        (["data.binarization=none"], "grey levels is not a density", "one seeded draw"),
        (["experiment=autoencoder"], "does not fit the codes of an autoencoder to the prior", "one seeded draw"),
        (["experiment=wae_mmd"], "`likelihood` | `Gaussian(scale=", "does not fit the codes"),
        (["data=mnist_5k"], "do not compare with published ones", "does not fit the codes"),
        (
            ["experiment=joint_vae"],
            "blocks=[DiagonalGaussian(), Categorical(num_categories=10, ",
            "published ones",
        ),
        (["model.num_classes=10"], "model.sample(16, y).mean` makes new images. Labels y (B,)", "published ones"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_card_says_what_holds(overrides: list[str], present: str, absent: str) -> None:
    from hydra.utils import instantiate

    config = config_of(*overrides)
    model = instantiate(config["model"], _convert_="all")
    card = exports.card(Path("nowhere"), config, model, GRAPHS)
    assert present in card
    assert absent not in card
    assert "No metrics were recorded." in card
    assert "| `decoder.onnx` | code | image | 2.0e-07 |" in card


def test_without_a_graph_the_card_has_no_table_and_no_code_of_them() -> None:
    card = exports.card(Path("nowhere"), config_of(), build(), {})
    between = card[card.index("## ONNX") : card.index("## Metrics")]
    assert between == f"## ONNX\n\nThere is no encoder: {exports.NO_MEAN}. There is no decoder: {exports.NO_IMAGE}.\n\n"


def test_the_card_of_a_vq_vae_promises_no_samples() -> None:
    card = exports.card(Path("nowhere"), config_of("experiment=vq_vae"), vq(), GRAPHS)
    assert "model.sample" not in card
    assert "so it cannot draw samples" in card


def test_the_command_on_the_card_is_of_any_machine(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["starts"][0]["overrides"] = [
        "data.root=/home/me",
        "data.path=/home/me/x.npz",
        "experiment=vae_iwae_protocol",
        "hydra.run.dir=/home/me/x",
        "seed=3",
    ]
    (run / "run.json").write_text(json.dumps(record))
    card = exports.card(run, config_of(), build(), GRAPHS)
    assert "`python train.py experiment=vae_iwae_protocol seed=3`" in card
    assert "/home/me" not in card

    record["starts"].append({**record["starts"][0], "overrides": ["resume=/home/me/x", "trainer.max_epochs=9"]})
    (run / "run.json").write_text(json.dumps(record))
    card = exports.card(run, config_of(), build(), GRAPHS)
    last = "then `python train.py resume=RUN trainer.max_epochs=9`."
    assert f"trained it with `python train.py experiment=vae_iwae_protocol seed=3`, {last}" in card
    assert "/home/me" not in card


HOSTILE = ("**bold** [a](http://b.c) <script>x</script> | # c `", "`` ` **bold** ``", "<img src=x>", "https://b.c |")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_a_run_is_code(run: Path, text: str) -> None:
    """It adds no links, no HTML and no cells of a table to the card, and no line to its header."""
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["protocol"] |= {"dataset": text, "binarization": {"test": text}}
    metrics["unit"], metrics["test"] = text, {text: 1.5}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "run.json").write_text(json.dumps({"starts": [{"overrides": [text]}]}))
    numbers = {"metrics": {text: 1.5}, "standard_errors": {text: 0.5}}
    protocol = {"num_samples": 5, "test_images": 7, text: text}
    (run / "evaluation.json").write_text(json.dumps({"protocol": protocol, **numbers}))
    config = config_of()
    config |= {"name": text, "optimizer": {"_target_": text, text: text}}
    config["model"][text] = text
    card = exports.card(run, config, build(), GRAPHS)
    assert card.count(text.replace("|", r"\|")) >= 14
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", card.replace("```", ""))
    assert not re.search(r"bold|script|img|https?:", outside)
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 4, 5}
    assert card.splitlines()[3] == "---"


def test_a_damaged_record_is_named(run: Path) -> None:
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics.json is not JSON: "):
        exports.card(run, config_of(), build(), GRAPHS)
