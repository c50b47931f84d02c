"""Image data sets, held in memory on the training device."""

from vaelab.data.binarized import BinarizedMNISTDataModule
from vaelab.data.mnist import EMNISTDataModule, MNISTDataModule, QMNISTDataModule
from vaelab.data.module import ImageDataModule

__all__ = ["BinarizedMNISTDataModule", "EMNISTDataModule", "ImageDataModule", "MNISTDataModule", "QMNISTDataModule"]
