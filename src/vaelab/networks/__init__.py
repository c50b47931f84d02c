"""Encoder networks, image -> features, decoder networks, code -> likelihood parameters, and PixelCNN."""

from vaelab.networks.conv import ConvDecoder, ConvEncoder
from vaelab.networks.mlp import MLPDecoder, MLPEncoder
from vaelab.networks.pixelcnn import PixelCNN

__all__ = ["ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder", "PixelCNN"]
