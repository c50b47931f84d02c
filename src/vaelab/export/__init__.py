"""Export a run: its weights, ONNX graphs that agree with torch, a page that runs them, and a model card."""

from vaelab.export.card import card
from vaelab.export.files import check, pictures, weights, write
from vaelab.export.onnx import NO_IMAGE, NO_MEAN, Graph, graphs
from vaelab.export.page import check_page, page

__all__ = [
    "NO_IMAGE", "NO_MEAN", "Graph", "card", "check", "check_page", "graphs", "page", "pictures", "weights", "write",
]  # fmt: skip
