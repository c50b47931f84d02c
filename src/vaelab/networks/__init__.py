"""Deterministic maps: image -> features, code -> likelihood parameters. No probability in here."""

from vaelab.networks.conv import ConvDecoder, ConvEncoder
from vaelab.networks.mlp import MLPDecoder, MLPEncoder

__all__ = ["ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder"]
