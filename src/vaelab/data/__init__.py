"""Image data sets, held in memory on the training device."""

from vaelab.data.binarized import BinarizedMNISTDataModule
from vaelab.data.folder import ArraysDataModule, FolderDataModule
from vaelab.data.mnist import EMNISTDataModule, MNISTDataModule, QMNISTDataModule
from vaelab.data.module import ImageDataModule
from vaelab.data.sprites import SpritesDataModule

__all__ = [
    "ArraysDataModule",
    "BinarizedMNISTDataModule",
    "EMNISTDataModule",
    "FolderDataModule",
    "ImageDataModule",
    "MNISTDataModule",
    "QMNISTDataModule",
    "SpritesDataModule",
]
