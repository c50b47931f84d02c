"""Callbacks of published protocols: the distribution of the first weights, and a stop that waits for a warm-up."""

from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn

from vaelab import checks

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class InitialWeights(Callback):
    """Draws the first weights of all dense and convolutional layers of the model from another distribution.

    * glorot: uniform on +-sqrt(6 / (inputs + outputs)), biases zero: Glorot & Bengio 2010,
      https://proceedings.mlr.press/v9/glorot10a.html
    * he: normal with variance 2 / inputs, biases as torch draws them: He et al. 2015, https://arxiv.org/abs/1502.01852

    A resumed run keeps the weights of its checkpoint. Raises UserError for another distribution.
    """

    def __init__(self, distribution: str = "glorot") -> None:
        checks.one_of(("glorot", "he"), distribution=distribution)
        self.distribution = distribution

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":  # Lightning reads a checkpoint after this hook
            return
        for layer in pl_module.model.modules():
            if not isinstance(layer, LAYERS):
                continue
            if self.distribution == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                continue
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DelayedEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, which does not look at the first `first_epoch` epochs, such as those of a warm-up.

    `settings` are those of EarlyStopping. Raises UserError for a negative number.
    """

    def __init__(self, first_epoch: int, **settings: Any) -> None:
        checks.whole(0, first_epoch=first_epoch)
        super().__init__(**settings)
        self.first_epoch = first_epoch

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch >= self.first_epoch:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch >= self.first_epoch:
            super().on_train_epoch_end(trainer, pl_module)
