"""Image data sets in MNIST's format, held in memory on the training device."""

from vaelab.data.module import MNISTDataModule

__all__ = ["MNISTDataModule"]
