"""The picture of posterior predictive checks shows the histograms, the maps and the p-values that it is given."""

import pytest
import torch
from torch import Tensor

from vaelab import pictures
from vaelab.evaluation.predictive import STATISTICS, predictive


def test_histograms_and_maps_are_those_of_the_images(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:160].float() / 255
    found = predictive(images[:60], images[60:], images, splits=19)
    figure, record = pictures.predictive_checks(found), found.record()
    assert "60 samples against 100 test images" in figure.get_suptitle()
    assert f"p = {found.p_value:.3g}" in figure.get_suptitle()
    for axes, name in zip(figure.axes[:6], STATISTICS, strict=True):
        assert (
            axes.get_title()
            == f"{name.replace('_', ' ')}\nD = {found.distances[name]:.3f}, p = {found.p_values[name]:.3g}"
        )
        lines = [patch.get_data() for patch in axes.patches if not patch.get_fill()]
        for line, of in zip(lines, ("samples", "tests"), strict=True):
            assert line.values.tolist() == pytest.approx(record[name][of]["shares"])
            assert line.edges.tolist() == pytest.approx(record[name]["edges"])
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    for image, drawn in zip(found.maps.flatten(0, 1), shown, strict=True):
        assert torch.equal(image, torch.as_tensor(drawn.get_array()))
    assert shown[0].get_clim() == shown[1].get_clim() == (0, found.maps[0].max().item())
