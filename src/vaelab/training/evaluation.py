"""Evaluation metrics as curves of the training."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from vaelab import checks
from vaelab.errors import NotOfferedError
from vaelab.evaluation.latent import latent_statistics
from vaelab.evaluation.likelihood import importance_weighted
from vaelab.evaluation.representation import representation
from vaelab.interfaces import labels


class EvaluationMetrics(Callback):
    """Adds points to the curves val_subset/* after the validation of every `every_n_epochs`-th epoch.

    They are metrics of evaluate.py on the first `num_images` validation images, at the weights that are validated:

    * active_units: units with Var_x E[z_d | x] > 0.01,
    * mutual_information: I(x; z) in nats, at most log(num_images),
    * knn_accuracy: share of images whose class their 5 nearest codes of `num_images` training images name,
    * iw_bound: the importance-weighted bound of log p(x) with `num_samples` samples, in nats per image.

    A metric that the model does not have gets no curve. Training and its random numbers do not change. Raises UserError
    for a number out of its range.
    """

    def __init__(self, every_n_epochs: int = 1, num_images: int = 500, num_samples: int = 50) -> None:
        checks.whole(every_n_epochs=every_n_epochs, num_samples=num_samples)
        checks.whole(2, num_images=num_images)
        self.every_n_epochs, self.num_images, self.num_samples = every_n_epochs, num_images, num_samples

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure after the last batch. A callback that averages weights takes the average out after this hook."""
        last = batch_idx + 1 == trainer.num_val_batches[0]
        due = last and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            pl_module.record({f"val_subset/{name}": value for name, value in self.measure(trainer, pl_module).items()})

    def measure(self, trainer: Any, module: Any) -> dict[str, float]:
        """The metrics by name."""
        model = module.model
        (x, y), (train_x, train_y) = (
            (images.to(module.device, module.dtype), classes.to(module.device))
            for images, classes in (trainer.datamodule.images(split, self.num_images) for split in ("val", "train"))
        )
        given = labels(model, y)
        statistics = latent_statistics(model, x, given)
        found = {name: statistics.metrics.get(name) for name in ("active_units", "mutual_information")}
        train_codes = model.encode(train_x, labels(model, train_y))
        found["knn_accuracy"] = representation(train_codes, train_y, statistics.codes, y).get("knn_accuracy")
        try:
            bounds = importance_weighted(model, x, given, self.num_samples).log_likelihood
            found["iw_bound"] = bounds.mean().item()
        except NotOfferedError:
            pass
        return {name: float(value) for name, value in found.items() if value is not None}
