"""Two maps compared in the panel: numbers, linked views; maps over time and in 3D."""

from __future__ import annotations

import types

import numpy as np
import pytest
import slicer
import slicer_stand_ins
from panel_cases import a_played_panel, explain, load
from scene_cases import SHAPE, a_map, a_transform, an_affine, an_input
from scipy import stats
from widget_stand_ins import process_events

import SaliencyExplainLib as sx
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.scene.nodes import node_from_map


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        for _index in range(3):
            one.AddNode(slicer.vtkMRMLSliceCompositeNode())
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def panel(shown, scene, monkeypatch):
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as one:
        yield one


def maps_of(seed):
    return {"maps": make_image(a_map(seed=seed), an_affine())}


def views(scene):
    return [
        scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode")
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode"))
    ]


# -- compare ---------------------------------------------------------------------------------------


def test_two_maps_are_compared_in_numbers(panel):
    load(panel)
    first, second = explain(panel, **maps_of(0)), explain(panel, **maps_of(1))
    panel.ui.compareGroupBox.collapsed = False
    panel.ui.compareComboBox.setCurrentIndex(0)
    assert panel.parameters.compareWith is first
    expected = stats.spearmanr(
        slicer.util.arrayFromVolume(second).ravel(), slicer.util.arrayFromVolume(first).ravel()
    ).statistic
    assert f"(Spearman): {expected:.2f}\n" in panel.ui.similarityLabel.text
    panel.ui.compareButton.click()
    assert "no view area" in panel.ui.statusLabel.text
    assert not panel.ui.compareButton.checked


def test_a_constant_map_has_no_rank_correlation_and_no_strongest_voxels(shown):
    from SaliencyExplainPanel.similarity import compare

    found = compare(np.zeros(100), np.arange(100.0))
    assert np.isnan(found.spearman)
    assert np.isnan(found.overlap)


def test_the_overlap_is_that_of_the_strongest_5_percent(shown):
    from SaliencyExplainPanel.similarity import compare

    values = np.arange(100.0)
    assert compare(values, -values).overlap == 1
    assert compare(values, np.roll(values, 2)).overlap == pytest.approx(3 / 7)


def test_maps_on_different_grids_and_transforms_are_compared_in_space(shown, scene):
    from SaliencyExplainPanel.similarity import similarity

    voxels = a_map()[0]
    first = scene.AddNode(node_from_map(voxels, an_affine(), "a"))
    # The same voxels, stored along another axis order, moved away and moved back.
    turned = an_affine()[:, [2, 1, 0, 3]]
    shift = np.eye(4)
    shift[:3, 3] = (5, -7, 9)
    second = scene.AddNode(
        node_from_map(voxels.transpose(2, 1, 0), np.linalg.inv(shift) @ turned, "b")
    )
    second.SetAndObserveTransformNodeID(a_transform(scene, shift).GetID())
    found = similarity(first, second)
    assert found.voxels == voxels.size
    assert found.spearman == pytest.approx(1.0)
    second.SetAndObserveTransformNodeID(None)
    assert similarity(first, second).spearman < 0.9
    far = an_affine()
    far[:3, 3] += 1000
    assert similarity(first, scene.AddNode(node_from_map(voxels, far, "c"))) is None


def test_the_layout_of_the_comparison_is_well_formed(shown):
    import xml.etree.ElementTree as ET

    from SaliencyExplainPanel.views import compare_layout, view_name

    tree = ET.fromstring(compare_layout())
    names = [one.get("singletontag") for one in tree.iter("view")]
    assert names == [view_name(side, row) for side in "AB" for row in range(3)]
    columns = [
        [one.text for one in column.iter("property") if one.get("name") == "orientation"]
        for column in tree.findall("item")
    ]
    assert columns == [["Axial", "Sagittal", "Coronal"]] * 2


class PlayedLayout:
    """A layout manager with the calls that the comparison makes."""

    def __init__(self, scene):
        self.layout, self._scene, self.composites = 3, scene, {}
        self._node = slicer.vtkMRMLLayoutNode()

    def layoutLogic(self):
        return types.SimpleNamespace(GetLayoutNode=lambda: self._node)

    def setLayout(self, layout):
        self.layout = layout

    def sliceWidget(self, name):
        if name not in self.composites:
            self.composites[name] = self._scene.AddNode(slicer.vtkMRMLSliceCompositeNode())
        return types.SimpleNamespace(mrmlSliceCompositeNode=lambda: self.composites[name])


def test_two_maps_stand_side_by_side_in_linked_views(panel, shown, scene, monkeypatch):
    load(panel)
    first, second = explain(panel, **maps_of(0)), explain(panel, **maps_of(1))
    manager = PlayedLayout(scene)
    monkeypatch.setattr(shown.app, "layoutManager", lambda: manager)
    monkeypatch.setattr(shown.app, "processEvents", lambda: None, raising=False)
    monkeypatch.setattr(slicer.util, "resetSliceViews", lambda: None)
    panel.ui.compareComboBox.setCurrentIndex(0)
    panel.ui.compareButton.click()
    assert manager.layout == 5501
    shown_maps = {name: one.GetForegroundVolumeID() for name, one in manager.composites.items()}
    assert shown_maps == {
        **{f"SaliencyA{row}": second.GetID() for row in (1, 2, 3)},
        **{f"SaliencyB{row}": first.GetID() for row in (1, 2, 3)},
    }
    assert all(one.GetLinkedControl() for one in manager.composites.values())
    panel.ui.compareButton.click()
    assert manager.layout == 3


# -- frames ----------------------------------------------------------------------------------------


@pytest.fixture
def a_sequence(scene):
    """Three frames with a proxy volume, as Slicer loads them."""
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Beating")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for index in range(3):
        voxels = np.full(SHAPE, index, np.float32)
        sequence.SetDataNodeAtValue(node_from_map(voxels, an_affine(), "frame"), f"{index / 2}")
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.AddSynchronizedSequenceNode(sequence)
    volume = an_input(scene, name="Heart")
    browser.AddProxyNode(volume, sequence, False)
    browser.SetSelectedItemNumber(1)
    return types.SimpleNamespace(sequence=sequence, browser=browser, volume=volume)


def test_a_volume_without_a_sequence_offers_no_frames(panel):
    assert panel.ui.everyFrameCheckBox.isHidden()


def test_every_frame_is_explained_and_the_maps_are_browsed_with_the_volume(
    panel, scene, a_sequence
):
    panel.parameters.inputVolume = a_sequence.volume
    assert not panel.ui.everyFrameCheckBox.isHidden()
    assert panel.ui.everyFrameCheckBox.text == "Every frame of the sequence (3)"
    load(panel)
    panel.ui.everyFrameCheckBox.click()
    panel.ui.applyButton.click()
    maps = [a_map(seed=seed) for seed in range(3)]
    for index, voxels in enumerate(maps):
        sent = np.load(panel.played.request.image["npy"])
        assert np.unique(sent).tolist() == [index]
        panel.played.progress(0.5)
        assert panel.ui.progressBar.value == pytest.approx(1000 * (index + 0.5) / 3, abs=1)
        assert panel.parameters.result is None
        panel.played.explained(maps=make_image(voxels, an_affine()), value=10.0 + index)
    result = panel.parameters.result
    sequence = a_sequence.browser.GetSequenceNode(result)
    assert sequence.GetNumberOfDataNodes() == 3
    assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("time", "s")
    assert sequence.GetNthIndexValue(2) == "1.0" or float(sequence.GetNthIndexValue(2)) == 1.0
    for index, voxels in enumerate(maps):
        node = sequence.GetNthDataNode(index)
        found = slicer.util.arrayFromVolume(node).transpose(2, 1, 0)
        np.testing.assert_allclose(found, voxels[0])
        np.testing.assert_allclose(sx.scene.volume_from_node(node).affine, an_affine(), atol=1e-9)
    summary = result.GetNodeReference("SaliencyExplain.summary").GetTable()
    values = summary.GetColumnByName("value")
    assert "11" in [values.GetValue(row) for row in range(4)], "frame 1 is shown, and published"
    colors = result.GetDisplayNode().GetColorNode()
    for index in (1, 2, 0):
        a_sequence.browser.SetSelectedItemNumber(index)
        _sequences_logic(scene).UpdateProxyNodesFromSequences(a_sequence.browser)
        shown_now = slicer.util.arrayFromVolume(result).transpose(2, 1, 0)
        np.testing.assert_allclose(shown_now, maps[index][0])
        assert result.GetAttribute("SaliencyExplain.method") == "integrated_gradients"
        assert float(result.GetAttribute("SaliencyExplain.value")) == 10 + index
        assert result.GetName() == "Heart Integrated gradients: tumor"
        assert result.GetDisplayNode().GetColorNode() is colors
        assert result.GetNodeReference("SaliencyExplain.inputVolume") is a_sequence.volume
    process_events()
    assert panel.ui.runComboBox.count == 1


def _sequences_logic(scene):
    from SaliencyExplainLib.scene import host

    return next(one for one in host._LOGICS[scene] if one.IsA("vtkSlicerSequencesLogic"))


def test_a_frame_that_fails_publishes_nothing(panel, scene, shown, a_sequence):
    panel.parameters.inputVolume = a_sequence.volume
    load(panel)
    panel.ui.everyFrameCheckBox.click()
    count = scene.GetNumberOfNodes()
    panel.ui.applyButton.click()
    panel.played.explained(**maps_of(0))
    panel.played.failed("The class is not predicted in this frame.", "TargetError")
    assert scene.GetNumberOfNodes() == count
    assert "not predicted" in shown.errors[-1][0]


# -- 3D --------------------------------------------------------------------------------------------


@pytest.fixture
def volume_rendering(monkeypatch, scene):
    """Slicer's own volume rendering logic, as the module gives it."""
    from SaliencyExplainLib.scene import host

    logic = next(one for one in host._LOGICS[scene] if one.IsA("vtkSlicerVolumeRenderingLogic"))
    module = types.SimpleNamespace(logic=lambda: logic)
    return lambda: monkeypatch.setattr(slicer.modules, "volumerendering", module, raising=False)


def test_without_the_volume_rendering_module_its_box_is_off(panel):
    load(panel)
    explain(panel)
    assert not panel.ui.renderingCheckBox.enabled


def test_the_map_is_rendered_in_3d_with_its_own_colors_and_dead_band(panel, volume_rendering):
    volume_rendering()
    load(panel)
    panel.ui.show3DCheckBox.click()
    volume = explain(panel)
    assert panel.ui.renderingCheckBox.checked
    logic = slicer.modules.volumerendering.logic()
    display = logic.GetFirstVolumeRenderingDisplayNode(volume)
    assert display.GetVisibility()
    properties = display.GetVolumePropertyNode().GetVolumeProperty()
    high = volume.GetDisplayNode().GetWindowLevelMax()
    opacity, color = properties.GetScalarOpacity(), properties.GetRGBTransferFunction()
    assert opacity.GetValue(0.05 * high) == 0
    assert opacity.GetValue(high) == pytest.approx(0.6, abs=0.01)
    assert opacity.GetValue(-high) == pytest.approx(0.6, abs=0.01)
    red, blue = color.GetColor(high), color.GetColor(-high)
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    panel.ui.deadBandSlider.value = 60
    assert opacity.GetValue(0.5 * high) == 0
    panel.ui.renderingCheckBox.click()
    assert not display.GetVisibility()
