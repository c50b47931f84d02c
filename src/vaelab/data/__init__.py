"""Image data sets, held in memory on the training device."""

from vaelab.data.binarized import BinarizedMNISTDataModule
from vaelab.data.folder import ArraysDataModule, FolderDataModule
from vaelab.data.mnist import EMNISTDataModule, MNISTDataModule, QMNISTDataModule
from vaelab.data.module import ImageDataModule
from vaelab.data.natural import CIFAR10DataModule, OmniglotDataModule, SVHNDataModule
from vaelab.data.sprites import SpritesDataModule

__all__ = [
    "ArraysDataModule",
    "BinarizedMNISTDataModule",
    "CIFAR10DataModule",
    "EMNISTDataModule",
    "FolderDataModule",
    "ImageDataModule",
    "MNISTDataModule",
    "OmniglotDataModule",
    "QMNISTDataModule",
    "SVHNDataModule",
    "SpritesDataModule",
]
