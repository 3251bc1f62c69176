"""Slice views are nodes: what can be checked of the display without the application."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
from scene_cases import a_map, a_transform, an_affine, an_explanation, an_input

from SaliencyExplainLib.errors import SceneError
from SaliencyExplainLib.image import to_ras
from SaliencyExplainLib.scene import (
    jump_to_peak,
    new_scene,
    peak_world_ras,
    publish,
    release_scene,
    restore_layers,
    show_legend,
    show_over,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


@pytest.fixture
def views(scene):
    """Slice node and composite node of two views."""
    made = []
    for name in ("Red", "Green"):
        view = slicer.vtkMRMLSliceNode()
        view.SetSingletonTag(name)
        view.SetName(name)
        view.SetLayoutName(name)
        composite = slicer.vtkMRMLSliceCompositeNode()
        composite.SetSingletonTag(name)
        composite.SetLayoutName(name)
        made.append((scene.AddNode(view), scene.AddNode(composite)))
    return made


def test_a_published_map_lies_over_its_input_in_all_views(scene, views):
    volume = an_input(scene)
    published = publish(an_explanation(), scene, input_volume=volume)
    for _view, composite in views:
        assert composite.GetBackgroundVolumeID() == volume.GetID()
        assert composite.GetForegroundVolumeID() == published.volumes[0].GetID()
        assert composite.GetForegroundOpacity() == 0.6


def test_nothing_is_shown_when_not_asked(scene, views):
    publish(an_explanation(), scene, input_volume=an_input(scene), show=False)
    assert all(composite.GetForegroundVolumeID() is None for _view, composite in views)


def test_what_was_shown_before_can_be_restored(scene, views):
    old, new, gone = (
        an_input(scene, name="old"),
        an_input(scene, name="new"),
        an_input(scene, name="gone"),
    )
    show_over(gone, old, 0.25, scene)
    before = show_over(new, new, 1.0, scene)
    scene.RemoveNode(gone)
    restore_layers(before, scene)
    for _view, composite in views:
        assert composite.GetBackgroundVolumeID() == old.GetID()
        assert composite.GetForegroundVolumeID() is None
        assert composite.GetForegroundOpacity() == 0.25


def test_an_opacity_out_of_range_is_refused(scene):
    with pytest.raises(SceneError, match=r"opacity must lie between 0 and 1; 1.5"):
        show_over(an_input(scene), opacity=1.5, scene=scene)


def test_the_views_go_to_the_peak_in_the_world(scene, views):
    voxels = a_map()
    voxels[0, 4, 1, 6] = -5
    volume = an_input(scene)
    shift = np.eye(4)
    shift[:3, 3] = (7, 8, 9)
    volume.SetAndObserveTransformNodeID(a_transform(scene, shift).GetID())
    published = publish(an_explanation(voxels), scene, input_volume=volume)
    peak = np.add(to_ras(an_affine(), [4, 1, 6]), (7, 8, 9))
    np.testing.assert_allclose(peak_world_ras(published.volumes[0]), peak, atol=1e-9)
    for view, _composite in views:
        matrix = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
        np.testing.assert_allclose(matrix[:3, 3], peak, atol=1e-9)


def test_a_map_of_zeros_has_no_peak(scene, views):
    published = publish(an_explanation(np.zeros_like(a_map())), scene)
    assert jump_to_peak(published.volumes[0], scene) is False
    with pytest.raises(SceneError, match="has no peak"):
        peak_world_ras(published.volumes[0])


def test_a_legend_is_made_once_and_can_be_hidden(scene):
    (volume,) = publish(an_explanation(), scene).volumes
    legend = show_legend(volume, title="Integrated gradients")
    assert legend.GetTitleText() == "Integrated gradients"
    assert legend.GetVisibility()
    assert show_legend(volume, visible=False) is legend
    assert not legend.GetVisibility()
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode") == 1


def test_a_scene_that_knows_no_legends_is_left_alone():
    scene = slicer.vtkMRMLScene()
    (volume,) = publish(an_explanation(), scene).volumes
    assert show_legend(volume) is None


def test_importing_the_scene_floor_imports_neither_slicer_nor_torch():
    code = (
        "import sys, SaliencyExplainLib.scene as s; dir(s)\n"
        "print([n for n in ('slicer', 'torch', 'vtk') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_without_slicer_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['slicer'] = None\n"
        "import SaliencyExplainLib.scene as s\n"
        "try: s.publish\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "MissingPackageError" in done.stdout
    assert "pip install slicer-core" in done.stdout
