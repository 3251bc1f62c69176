"""Colours and grey values of a panel."""

import numpy as np
import pytest

from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.panels import colour_limit, coloured, font_families, grey_window

pytest.importorskip("matplotlib", reason="figures need matplotlib")


def test_zero_is_transparent_and_signs_have_their_colours():
    colours, opacity = coloured(np.array([-1.0, -0.01, 0.0, 0.01, 1.0, np.nan]), 1.0, True)
    assert opacity[:, 0].tolist() == [0.9, 0.0, 0.0, 0.0, 0.9, 0.0]
    assert colours[0, 2] > 0.7 > colours[0, 0]
    assert colours[4, 0] > 0.7 > colours[4, 2]


def test_opacity_rises_with_the_magnitude():
    _, opacity = coloured(np.linspace(0, 1, 50), 1.0, False)
    assert (np.diff(opacity[:, 0]) >= 0).all()


def test_the_colour_bar_ends_near_the_largest_magnitude_and_one_wild_voxel_does_not_move_it():
    voxels = np.random.default_rng(0).normal(size=(20, 20, 20))
    limit = colour_limit(make_image(voxels, np.eye(4)))
    assert 2.0 < limit < np.abs(voxels).max()
    voxels[0, 0, 0] = 20.0
    assert colour_limit(make_image(voxels, np.eye(4))) == pytest.approx(limit, rel=0.1)
    assert colour_limit(make_image(np.zeros((2, 2, 2)), np.eye(4))) == 0


def test_grey_values_are_spread_over_the_tissue_of_a_ct():
    generator = np.random.default_rng(1)
    voxels = np.full((30, 30, 30), -1000.0)
    voxels[5:25, 5:25, 5:25] = generator.normal(40, 40, (20, 20, 20))
    low, high = grey_window(make_image(voxels, np.eye(4)))
    assert -300 < low < 0
    assert 100 < high < 300
    assert grey_window(make_image(np.zeros((3, 3, 3)), np.eye(4))) == (0.0, 1.0)


def test_only_fonts_of_this_machine_are_named_and_the_usual_one_is_first(monkeypatch):
    from matplotlib import font_manager

    monkeypatch.setattr(
        font_manager, "get_font_names", lambda: ["Arial", "WenQuanYi Micro Hei", "DejaVu Sans"]
    )
    assert font_families() == ["DejaVu Sans", "WenQuanYi Micro Hei"]
    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["Arial"])
    assert font_families() == ["DejaVu Sans"]
