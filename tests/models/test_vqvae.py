import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from vaelab.likelihoods import Gaussian
from vaelab.models import VQVAE
from vaelab.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

ENCODER, DECODER = partial(ConvEncoder, channels=[6, 8], hidden=[]), partial(ConvDecoder, channels=[8, 6])


def build(
    embedding_dim: int = 3, num_embeddings: int = 7, image_shape: tuple = (2, 12, 9), **settings: object
) -> VQVAE:
    parts = {"encoder": ENCODER, "decoder": DECODER, "likelihood": Gaussian(0.5)}
    return VQVAE(embedding_dim, num_embeddings, image_shape, **parts | settings)


def codes_of(vqvae: VQVAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder outputs (N, D) and the indices (N,) of their codes, before the codebook changes."""
    with torch.no_grad():
        z_e, _, indices, *_ = vqvae(x)
    return z_e.movedim(1, -1).reshape(-1, z_e.shape[1]), indices.flatten()


def state(vqvae: VQVAE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vqvae.state_dict().items()}


def test_shapes() -> None:
    vqvae, x = build(), torch.rand(5, 2, 12, 9)
    z_e, z_q, indices, likelihood, codebook = vqvae(x)
    assert z_e.shape == z_q.shape == (5, 3, 3, 2)
    assert indices.shape == (5, 3, 2)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((5,), (2, 12, 9))
    assert codebook.shape == (7, 3)
    assert vqvae.latent_dim == 18
    assert vqvae.encode(x).shape == (5, 18)
    assert vqvae.decode(torch.zeros(2, 4, 18)).batch_shape == (2, 4)
    assert (vqvae.prior, vqvae.num_classes, vqvae.image_shape) == (None, 0, (2, 12, 9))


def test_quantisation_finds_the_nearest_code() -> None:
    vqvae, z = build(num_embeddings=50), torch.randn(4, 3, 5, 6)
    z_q, indices = vqvae.quantize(z)
    distances = (z.unsqueeze(1) - vqvae.codebook.view(1, 50, 3, 1, 1)).square().sum(2)  # (4, 50, 5, 6)
    assert torch.equal(indices, distances.argmin(1))
    assert torch.equal(z_q, vqvae.codebook[indices].permute(0, 3, 1, 2))


def test_the_likelihood_is_that_of_the_quantised_code_and_its_gradient_goes_straight_through() -> None:
    vqvae, x = build(), torch.rand(5, 2, 12, 9)
    output = vqvae.eval()(x)
    (straight,) = torch.autograd.grad(output.likelihood.log_prob(x).sum(), output.z_e)
    z_q = vqvae.encode(x).detach().requires_grad_()
    log_prob = vqvae.decode(z_q).log_prob(x)
    assert torch.equal(log_prob, output.likelihood.log_prob(x))
    torch.testing.assert_close(straight.flatten(1), torch.autograd.grad(log_prob.sum(), z_q)[0])


def test_without_decay_the_codes_are_the_means_of_what_they_stand_for() -> None:
    vqvae, x = build(decay=0, restart_below=0), torch.rand(5, 2, 12, 9)
    vqvae.initialize(x)
    z, indices = codes_of(vqvae, x)
    expected = vqvae.codebook.clone()
    for k in indices.unique():
        expected[k] = z[indices == k].mean(0)
    vqvae(x)
    torch.testing.assert_close(vqvae.codebook, expected)
    torch.testing.assert_close(vqvae.usage, indices.bincount(minlength=7).float())


def test_moving_averages_are_those_of_the_paper() -> None:
    vqvae = build(decay=0.9, restart_below=0)
    usage, sums = vqvae.usage.clone(), vqvae.codebook * vqvae.usage.unsqueeze(1)
    for count in (5, 3, 8):
        x = torch.rand(count, 2, 12, 9)
        z, indices = codes_of(vqvae, x)
        chosen = torch.nn.functional.one_hot(indices, 7).float()
        usage = 0.9 * usage + 0.1 * chosen.sum(0)
        sums = 0.9 * sums + 0.1 * chosen.T @ z
        vqvae(x)
        torch.testing.assert_close(vqvae.usage, usage)
        torch.testing.assert_close(vqvae.codebook, sums / usage.unsqueeze(1))


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_dead_codes_restart_at_encoder_outputs_and_count_as_the_mean(codebook: str) -> None:
    vqvae, x = build(codebook=codebook, restart_below=0.5), torch.rand(5, 2, 12, 9)
    vqvae.initialize(x)
    with torch.no_grad():
        vqvae.codebook[3:5] = 1e3  # no encoder output is near these codes
        vqvae.usage[:] = torch.tensor([9.0, 9, 9, 0, 1, 9, 9])
    z, _ = codes_of(vqvae, x)
    before = vqvae.codebook.detach().clone()
    vqvae(x)
    moved = vqvae.codebook[3:5]
    assert (moved.unsqueeze(1) == z).all(-1).any(-1).all()
    assert (vqvae.usage[3:5] == vqvae.usage[3]).all()
    assert vqvae.usage[3] > 5
    others = [0, 1, 2, 5, 6]
    torch.testing.assert_close(vqvae.codebook[others], before[others], atol=0.2, rtol=0)
    assert torch.equal(vqvae.codebook[others], before[others]) == (codebook == "gradient")


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_only_training_with_gradients_moves_the_codes(codebook: str) -> None:
    vqvae, x = build(codebook=codebook, decay=0.5, restart_below=0.9), torch.rand(5, 2, 12, 9)
    before = state(vqvae)
    vqvae.eval()(x)
    with torch.no_grad():
        vqvae.train()(x)
        vqvae.encode(x)
    assert all(torch.equal(before[name], value) for name, value in state(vqvae).items())
    vqvae(x)
    assert {name for name, value in state(vqvae).items() if not torch.equal(before[name], value)} == {
        "codebook",
        "usage",
    }


@pytest.mark.parametrize("num_embeddings", [7, 3000])
def test_codes_start_as_encoder_outputs(num_embeddings: int) -> None:
    vqvae, x = build(num_embeddings=num_embeddings), torch.rand(40, 2, 12, 9)
    vqvae.initialize(x)
    z, _ = codes_of(vqvae, x)
    nearest = torch.cdist(vqvae.codebook, z, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert nearest.max() < 1e-5
    assert len(vqvae.codebook.unique(dim=0)) >= min(num_embeddings, 6)


def test_the_codebook_is_state_and_by_gradient_a_parameter() -> None:
    ema, gradient = build(), build(codebook="gradient")
    assert ema.state_dict().keys() == gradient.state_dict().keys() >= {"codebook", "usage"}
    assert "codebook" not in dict(ema.named_parameters())
    assert "codebook" in dict(gradient.named_parameters())


def test_a_reduced_precision_encoder_is_quantised_in_full_precision() -> None:
    vqvae, x = build(), torch.rand(5, 2, 12, 9)
    with torch.autocast("cpu", torch.bfloat16):
        z_e, z_q, indices, *_ = vqvae.eval()(x)
    assert z_e.dtype == z_q.dtype == torch.float32
    assert torch.equal(indices, vqvae.quantize(z_e)[1])


def test_there_is_nothing_to_sample_from() -> None:
    with pytest.raises(NotImplementedError, match="nothing to sample from until a prior over its codes is learned"):
        build().sample(3)
    with pytest.raises(NotImplementedError, match=r"has no q\(z \| x\): its code is a point, which encode returns"):
        build().infer(torch.rand(1, 2, 12, 9))


@pytest.mark.parametrize(
    ("encoder", "advice"),
    [
        (MLPEncoder, "MLPEncoder lacks: take model/network=conv with model.encoder.hidden=[]"),
        (ConvEncoder, "ConvEncoder with dense layers lacks: take model.encoder.hidden=[]"),
    ],
)
def test_a_network_without_a_feature_map(encoder: type, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"quantises a feature map, which {advice}")):
        build(encoder=encoder, decoder=MLPDecoder)


def test_networks_that_disagree_on_the_map() -> None:
    with pytest.raises(
        ValueError, match=r"channels=\[8\] turns a map of \(6, 4\) into images of \(12, 9\), and the map is \(3, 2\)"
    ):
        build(decoder=partial(ConvDecoder, channels=[8]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"embedding_dim": 0}, "embedding_dim=0: a whole number, at least 1"),
        ({"image_shape": (2, 12, -9)}, "image_shape=.*: a list of whole numbers above zero"),
        ({"num_embeddings": 2.5}, "num_embeddings=2.5: a whole number"),
        ({"codebook": "kmeans"}, "codebook=kmeans: choose one of ema, gradient"),
        ({"decay": 1.1}, "decay=1.1: a number from zero to one"),
        ({"restart_below": -0.1}, "restart_below=-0.1: a number from zero to one"),
    ],
)
def test_settings_out_of_range(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**settings)


SCRIPT = """
import sys, torch, torch.distributed as dist
from test_vqvae import build
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
vqvae, x = build(decay=0.9, restart_below=0), torch.load(f"{folder}/images.pt")
vqvae.load_state_dict(torch.load(f"{folder}/start.pt"))
torch.manual_seed(rank)
vqvae(x[rank::2])
states = [{name: value.clone() for name, value in vqvae.state_dict().items()}]
vqvae.restart_below = 0.999  # all codes but the most used
vqvae(x[rank::2])
states.append({name: value.clone() for name, value in vqvae.state_dict().items()})
vqvae.initialize(x)
states.append(vqvae.state_dict())
torch.save(states, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_move_their_codes_alike(tmp_path: Path) -> None:
    """Each process gets half of the images, and without restarts the codes equal those of a single process."""
    vqvae, x = build(decay=0.9, restart_below=0), torch.rand(6, 2, 12, 9)
    torch.save(x, tmp_path / "images.pt")
    torch.save(vqvae.state_dict(), tmp_path / "start.pt")
    commands = [[sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parent) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for first, second in zip(*ranks, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in ("codebook", "usage"))
    vqvae(x)
    (moved, restarted, _), _ = ranks
    torch.testing.assert_close(moved["codebook"], vqvae.codebook)
    torch.testing.assert_close(moved["usage"], vqvae.usage)
    assert (restarted["codebook"] - moved["codebook"]).abs().amax(1).gt(0.1).sum() > 1
