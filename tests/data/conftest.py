"""Tests of data do not connect to a real mirror."""

from collections.abc import Iterator

import pytest
import torchvision

from vaelab.data import files


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests do not connect to a real mirror."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    files.reachable.cache_clear()
    yield
    files.reachable.cache_clear()
