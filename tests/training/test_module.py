"""The LightningModule's work before the first training step."""

from conftest import Compose


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
