"""Export a run: its weights, ONNX graphs that agree with torch, and a model card."""

from vaelab.export.card import card
from vaelab.export.files import check, pictures, weights, write
from vaelab.export.onnx import NO_MEAN, Graph, graphs

__all__ = ["NO_MEAN", "Graph", "card", "check", "graphs", "pictures", "weights", "write"]
