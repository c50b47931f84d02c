"""The LightningModule's work before the first training step."""

import torch
from conftest import Compose

from vaelab import runs


def test_a_batch_may_be_images_alone(config: Compose) -> None:
    cfg = config("model.encoder.hidden=[8]", "model.decoder.hidden=[8]")
    module, x = runs.build(cfg), torch.rand(4, 1, 28, 28).round()
    terms = []
    for batch in (x, (x, None), [x, torch.arange(4)]):
        torch.manual_seed(0)
        terms.append(module.terms(batch, None)["loss"])
    assert torch.equal(terms[0], terms[1])
    assert torch.equal(terms[0], terms[2])  # this model takes no labels


def test_parts_that_must_see_data_do_so_once(config: Compose, tmp_path: object) -> None:
    from train import train
    from vaelab import runs
    from vaelab.likelihoods import BernoulliAtMean

    calls = []
    original = BernoulliAtMean.initialize
    try:
        BernoulliAtMean.initialize = lambda self, images: (calls.append(images.shape), original(self, images))[1]
        train(config("model/likelihood=bernoulli_at_mean"), tmp_path)
        cfg = runs.saved_config(tmp_path, ["trainer.max_epochs=3"])
        cfg.resume = str(tmp_path)
        train(cfg, tmp_path)
    finally:
        BernoulliAtMean.initialize = original
    assert calls == [(500, 1, 28, 28)]
