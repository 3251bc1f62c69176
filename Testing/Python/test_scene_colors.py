"""Colours and display ranges of attribution maps."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from scene_cases import an_affine
from vtk.util import numpy_support

from SaliencyExplainLib.errors import SceneError
from SaliencyExplainLib.scene import make_color_node, new_scene, release_scene, set_dead_band
from SaliencyExplainLib.scene.colors import ENTRIES, colors_rgb, dead_band
from SaliencyExplainLib.scene.nodes import node_from_map
from SaliencyExplainLib.scene.windows import finite, robust_maximum, window_of


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """The forward transform, from the reference's matrices (the code has the inverse)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = (
        linear
        @ np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        ).T
    )
    return (
        np.cbrt(lms)
        @ np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        ).T
    )


def test_the_diverging_colors_are_symmetric_in_lightness_and_white_in_the_middle():
    lab = _oklab(colors_rgb(signed=True))
    np.testing.assert_allclose(lab[:, 0], lab[::-1, 0], atol=0.005)
    assert lab[ENTRIES // 2, 0] == pytest.approx(0.97, abs=1e-3)
    assert np.linalg.norm(lab[ENTRIES // 2, 1:]) < 1e-3
    blue, red = colors_rgb(signed=True)[[0, -1]]
    assert blue[2] > 0.8 > 0.2 > blue[0]
    assert red[0] > 0.7 > 0.2 > red[2]


@pytest.mark.parametrize("signed", [True, False])
def test_equal_steps_of_attribution_are_equal_steps_for_the_eye(signed):
    lab = _oklab(colors_rgb(signed))
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.min() > 0.5 * np.median(steps)
    assert steps.max() < 2.0 * np.median(steps)


def test_the_sequential_colors_only_get_lighter():
    lab = _oklab(colors_rgb(signed=False))
    assert (np.diff(lab[:, 0]) > 0).all()
    assert lab[-1, 0] - lab[0, 0] > 0.45


def _rgba(scene, values, signed, highest, fraction):
    volume = scene.AddNode(
        node_from_map(np.array(values, np.float32).reshape(-1, 1, 1), an_affine(), "v")
    )
    color = scene.AddNode(make_color_node(signed, fraction))
    display = scene.AddNode(slicer.vtkMRMLScalarVolumeDisplayNode())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-highest if signed else 0, highest)
    display.SetAndObserveColorNodeID(color.GetID())
    volume.SetAndObserveDisplayNodeID(display.GetID())
    return color, lambda: _pixels(display)


def _pixels(display):
    producer = display.GetOutputImageDataConnection().GetProducer()
    producer.Update()
    return numpy_support.vtk_to_numpy(producer.GetOutput().GetPointData().GetScalars()).astype(int)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-30, 1e6])
def test_slicers_own_pipeline_shows_the_sign_and_hides_the_dead_band(scene, scale):
    values = scale * np.array([-2, -1, -0.25, -0.15, -0.01, 0, 0.01, 0.15, 0.25, 1, 2])
    _color, pixels = _rgba(scene, values, True, scale, 0.2)
    rgba = pixels()
    assert (rgba[:, 3] > 0).tolist() == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert (rgba[:3, 2] > rgba[:3, 0]).all()
    assert (rgba[-3:, 0] > rgba[-3:, 2]).all()
    # Clamped beyond the range: the end colours, the same as at the ends.
    assert rgba[0].tolist() == rgba[1].tolist()
    assert rgba[-1].tolist() == rgba[-2].tolist()


def test_an_unsigned_map_is_clear_up_to_the_dead_band_and_below_zero(scene):
    _color, pixels = _rgba(scene, [-1, 0, 0.05, 0.15, 0.5, 1], False, 1.0, 0.1)
    assert (pixels()[:, 3] > 0).tolist() == [False, False, False, True, True, True]


def test_the_dead_band_can_be_changed_and_only_alpha_changes(scene):
    color, pixels = _rgba(scene, [-1, -0.3, 0, 0.3, 1], True, 1.0, 0.1)
    before = pixels()
    set_dead_band(color, 0.5)
    after = pixels()
    assert (before[:, 3] > 0).tolist() == [True, True, False, True, True]
    assert (after[:, 3] > 0).tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert dead_band(color) == 0.5


def test_a_dead_band_of_zero_hides_zero_only(scene):
    _color, pixels = _rgba(scene, [-0.01, 0, 0.01], True, 1.0, 0.0)
    assert (pixels()[:, 3] > 0).tolist() == [True, False, True]


def test_each_entry_says_what_it_stands_for():
    color = make_color_node(True)
    assert [color.GetColorName(index) for index in (0, ENTRIES // 2, ENTRIES - 1)] == [
        "-100.0 %",
        "+0.0 %",
        "+100.0 %",
    ]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_dead_band_out_of_range_is_refused(fraction):
    with pytest.raises(SceneError, match=r"fraction between 0 and 0.99"):
        make_color_node(True, fraction)


def test_a_foreign_color_node_is_refused():
    with pytest.raises(SceneError, match="not made by SaliencyExplain"):
        set_dead_band(slicer.vtkMRMLColorTableNode(), 0.1)


def test_the_range_of_a_small_focus_is_taken_over_the_voxels_that_are_not_zero():
    voxels = np.zeros((20, 20, 20), dtype=np.float32)
    voxels[:2, :2, :2] = np.linspace(0.3, 1, 8, dtype=np.float32).reshape(2, 2, 2)
    assert np.percentile(np.abs(voxels), 99.5) == 0  # what a percentile over everything gives
    assert robust_maximum(voxels) > 0.95


def test_the_range_is_symmetric_for_signed_maps_and_starts_at_zero_otherwise():
    voxels = np.linspace(-1, 4, 1001, dtype=np.float32)
    signed, unsigned = window_of(voxels, True), window_of(np.abs(voxels), False)
    assert signed.lowest == -signed.highest
    assert unsigned.lowest == 0
    assert 3.9 < signed.highest <= 4


@pytest.mark.parametrize(
    ("voxels", "signed", "text"),
    [
        (np.zeros((2, 2, 2), np.float32), True, "zero everywhere"),
        (np.zeros((2, 2, 2), np.float32), False, "zero everywhere"),
        (np.full((2, 2, 2), -3, np.float32), True, "same value everywhere"),
        (np.array([-1, -2, 0], np.float32), False, "no positive value"),
    ],
)
def test_maps_that_show_nothing_get_a_valid_range_and_a_warning(voxels, signed, text):
    window = window_of(voxels, signed)
    assert window.highest > window.lowest
    assert text in window.warnings[0]


def test_values_that_are_no_numbers_become_zero_and_are_counted():
    clean, count = finite(np.array([1, np.nan, np.inf, -np.inf], np.float32))
    assert clean.tolist() == [1, 0, 0, 0]
    assert count == 3
