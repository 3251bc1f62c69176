"""Results in the panel: which maps, how they are shown, compared, browsed over time, in 3D."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer_stand_ins
from panel_cases import a_played_panel, explain, load, masks
from scene_cases import SHAPE, a_map, a_segmentation, an_affine, an_input
from widget_stand_ins import process_events

from SaliencyExplainLib.image import make_image


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


# -- list of maps ----------------------------------------------------------------------------------


def test_without_a_map_the_controls_are_off(panel):
    assert not panel.ui.opacitySlider.enabled
    assert not panel.ui.jumpButton.enabled
    assert panel.ui.resultInfoLabel.text == "No map yet."


def test_a_new_map_is_shown_over_the_anatomy_with_its_facts(panel, scene):
    load(panel)
    volume = explain(panel)
    for view in views(scene):
        assert view.GetForegroundVolumeID() == volume.GetID()
        assert view.GetBackgroundVolumeID() == panel.parameters.inputVolume.GetID()
    text = panel.ui.resultInfoLabel.text
    assert "Integrated gradients of 'tumor': 2.5 output unit" in text
    assert "Completeness error: 1.2 %" in text or "Completeness error: 1.3 %" in text
    assert 'Mind: A "quoted" warning' in text


def test_next_and_previous_go_around_the_maps(panel, scene):
    load(panel)
    made = [explain(panel, **maps_of(seed)) for seed in range(3)]
    assert panel.parameters.result is made[2]
    panel.ui.nextRunButton.click()
    assert panel.parameters.result is made[0]
    panel.ui.previousRunButton.click()
    panel.ui.previousRunButton.click()
    assert panel.parameters.result is made[1]
    assert panel.ui.runComboBox.currentText == made[1].GetName()
    assert {view.GetForegroundVolumeID() for view in views(scene)} == {made[1].GetID()}


def test_choosing_a_map_in_the_list_shows_it(panel, scene):
    load(panel)
    first, _second = explain(panel), explain(panel)
    panel.ui.runComboBox.setCurrentIndex(0)
    assert panel.parameters.result is first
    assert {view.GetForegroundVolumeID() for view in views(scene)} == {first.GetID()}


def test_a_map_that_is_deleted_leaves_the_list(panel, scene):
    load(panel)
    other, first, second = explain(panel), explain(panel), explain(panel)
    process_events()
    scene.RemoveNode(other)
    process_events()
    assert panel.ui.runComboBox.count == 2
    scene.RemoveNode(second)
    process_events()
    assert panel.ui.runComboBox.count == 1
    assert panel.parameters.result is None
    assert not panel.ui.opacitySlider.enabled
    panel.ui.nextRunButton.click()
    assert panel.parameters.result is first


# -- display ---------------------------------------------------------------------------------------


def test_opacity_reaches_the_views_that_show_the_map(panel, scene):
    load(panel)
    explain(panel)
    other = views(scene)[0]
    other.SetForegroundVolumeID(None)
    other.SetForegroundOpacity(0.9)
    panel.ui.opacitySlider.value = 0.3
    assert [round(one.GetForegroundOpacity(), 3) for one in views(scene)] == [0.9, 0.3, 0.3]
    assert panel.parameters.opacity == pytest.approx(0.3)


def test_the_dead_band_is_that_of_the_chosen_map(panel):
    load(panel)
    first = explain(panel)
    panel.ui.deadBandSlider.value = 40
    colors = first.GetDisplayNode().GetColorNode()
    rgba = [0.0] * 4
    colors.GetColor(127 + 40, rgba)
    assert rgba[3] == 0
    colors.GetColor(127 + 60, rgba)
    assert rgba[3] == 1
    explain(panel)
    assert panel.ui.deadBandSlider.value == pytest.approx(10)
    panel.ui.previousRunButton.click()
    assert panel.ui.deadBandSlider.value == pytest.approx(40)


def test_the_full_color_is_set_as_a_part_of_the_largest_value(panel):
    load(panel)
    volume = explain(panel)
    peak = np.abs(slicer.util.arrayFromVolume(volume)).max()
    panel.ui.rangeSlider.value = 50
    display = volume.GetDisplayNode()
    assert display.GetWindowLevelMax() == pytest.approx(0.5 * peak, rel=1e-5)
    assert display.GetWindowLevelMin() == pytest.approx(-0.5 * peak, rel=1e-5)
    panel.refresh()
    assert panel.ui.rangeSlider.value == pytest.approx(50)


def test_a_map_of_zeros_has_no_range_and_no_maximum(panel, scene):
    load(panel)
    explain(panel, maps=make_image(np.zeros((1, *SHAPE), np.float32), an_affine()))
    assert not panel.ui.rangeSlider.enabled
    panel.ui.jumpButton.click()
    assert "zero everywhere" in panel.ui.statusLabel.text


def test_with_another_color_table_the_dead_band_is_off(panel, scene):
    load(panel)
    volume = explain(panel)
    own = volume.GetDisplayNode().GetColorNode()
    table = slicer.vtkMRMLColorTableNode()
    table.SetTypeToRainbow()
    panel.ui.colorSelector.setCurrentNode(scene.AddNode(table))
    assert volume.GetDisplayNode().GetColorNode() is table
    assert not panel.ui.deadBandSlider.enabled
    panel.ui.colorSelector.setCurrentNode(own)
    assert panel.ui.deadBandSlider.enabled


def test_the_legend_follows_its_box_and_the_chosen_map(panel):
    load(panel)
    first, second = explain(panel), explain(panel)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode
    assert [bool(legend(one).GetVisibility()) for one in (first, second)] == [False, True]
    panel.ui.legendCheckBox.click()
    assert not legend(second).GetVisibility()
    panel.ui.previousRunButton.click()
    assert not legend(first).GetVisibility()


def test_the_views_can_be_given_back_what_they_showed(panel, scene):
    load(panel)
    before = an_input(scene, name="Something else")
    for view in views(scene):
        view.SetBackgroundVolumeID(before.GetID())
        view.SetForegroundOpacity(0.0)
    assert not panel.ui.restoreViewsButton.enabled
    explain(panel)
    panel.ui.restoreViewsButton.click()
    for view in views(scene):
        assert view.GetBackgroundVolumeID() == before.GetID()
        assert view.GetForegroundVolumeID() is None


# -- tables ----------------------------------------------------------------------------------------


def test_the_region_table_of_the_run_is_in_the_panel(panel, scene):
    load(panel)
    explain(panel)
    assert not panel.ui.regionsGroupBox.enabled
    panel.parameters.segmentation = a_segmentation(scene, masks(), an_affine())
    volume = explain(panel)
    assert panel.ui.regionsGroupBox.enabled
    table = volume.GetNodeReference("SaliencyExplain.regionTable")
    assert panel.ui.regionsTableView.mrmlTableNode() is table
    assert volume.GetNodeReference("SaliencyExplain.chart").IsA("vtkMRMLPlotChartNode")
    panel.ui.regionsGroupBox.collapsed = False
    panel.ui.showTableButton.click()
    assert "no view area" in panel.ui.statusLabel.text
