"""A run of the panel from Apply to the scene, and the panel's life with its scene.

The scene is Slicer's own (slicer-core), plain Qt widgets are real (PySide6), CTK and MRML widgets
and the application are stand-ins (slicer_stand_ins.py), and the worker is played by the test: what
is checked is wiring and what becomes of the scene, not how Slicer behaves.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import slicer_stand_ins
from panel_cases import a_played_panel, explain, load, masks
from scene_cases import SHAPE, a_segmentation, an_affine, an_input, node_ids
from widget_stand_ins import process_events

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker
from SaliencyExplainLib.volume import Volume
from SaliencyExplainLib.worker.jobs import write_result


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    """The module file, run under stand-ins, and what they showed."""
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def panel(shown, scene, monkeypatch):
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as one:
        yield one


# -- a run -----------------------------------------------------------------------------------------


def test_apply_computes_shows_progress_and_publishes(panel, shown, scene):
    load(panel)
    ui, nodes = panel.ui, node_ids(scene)
    ui.applyButton.click()
    assert ui.applyButton.text == "Cancel"
    assert not ui.modelCollapsibleButton.enabled
    assert (ui.progressBar.minimum, ui.progressBar.maximum) == (0, 0)
    panel.played.progress(0.25, "pass 3 of 12", 75.0)
    assert ui.progressBar.value == 250
    assert ui.statusLabel.text == "pass 3 of 12, 1:15 left"
    assert node_ids(scene) == nodes
    folder = panel.played.request.output
    panel.played.explained()
    assert shown.errors == []
    assert scene.GetFirstNodeByName("Head Integrated gradients: tumor") is not None
    assert ui.statusLabel.text.startswith("Done: Head Integrated gradients: tumor")
    assert ui.applyButton.text == "Apply"
    assert ui.applyButton.enabled
    assert ui.progressBar.isHidden()
    assert not Path(folder).parent.exists()
    assert panel.parameters.result.GetName() == "Head Integrated gradients: tumor"


def test_cancel_adds_nothing(panel, scene):
    load(panel)
    nodes = node_ids(scene)
    panel.ui.applyButton.click()
    panel.ui.applyButton.click()
    assert panel.played.cancelled == [panel.played.last]
    assert panel.ui.applyButton.text == "Stopping..."
    assert not panel.ui.applyButton.enabled
    panel.played.progress(0.9)
    assert panel.ui.statusLabel.text == "Stopping..."
    panel.played.stopped()
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert node_ids(scene) == nodes
    assert panel.ui.applyButton.enabled


def test_a_result_that_overtakes_the_wish_to_stop_is_not_published(panel, scene):
    load(panel)
    nodes = node_ids(scene)
    panel.ui.applyButton.click()
    panel.ui.applyButton.click()
    panel.played.explained()
    assert node_ids(scene) == nodes
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."


def test_a_worker_that_dies_is_told_in_a_sentence_and_adds_nothing(panel, shown, scene):
    load(panel)
    nodes = node_ids(scene)
    panel.ui.applyButton.click()
    panel.played.failed("The worker ran out of memory.", "OutOfMemoryError", "Killed")
    ((text, options),) = shown.errors
    assert text == "The worker ran out of memory."
    assert options == {"detailedText": "Killed"}
    assert node_ids(scene) == nodes
    assert not panel.runner.busy
    assert "Killed" in panel.ui.logText.plainText


def test_a_result_that_cannot_be_read_is_an_error_and_adds_nothing(panel, shown, scene):
    load(panel)
    nodes = node_ids(scene)
    panel.ui.applyButton.click()
    panel.played.done({"folder": "gone"})
    assert "is not whole" in shown.errors[-1][0]
    assert node_ids(scene) == nodes
    assert not panel.runner.busy


def test_a_volume_that_is_removed_meanwhile_is_an_error_and_adds_nothing(panel, shown, scene):
    load(panel)
    panel.ui.applyButton.click()
    scene.RemoveNode(panel.parameters.inputVolume)
    nodes = node_ids(scene)
    panel.played.explained()
    assert shown.errors[-1][0] == "'Head' was removed from the scene. Nothing was added."
    assert node_ids(scene) == nodes


def test_an_unforeseen_error_has_its_traceback_in_the_details(panel, shown, monkeypatch):
    load(panel)

    def publish(*_arguments, **_options):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(sx.scene, "publish", publish)
    panel.ui.applyButton.click()
    panel.played.explained()
    ((text, options),) = shown.errors
    assert text == "This failed unexpectedly: oops"
    assert "ZeroDivisionError" in options["detailedText"]
    assert not panel.runner.busy


def test_what_is_changed_during_a_run_does_not_touch_it(panel, scene):
    load(panel)
    panel.ui.runNameLineEdit.text = "First"
    panel.ui.applyButton.click()
    panel.parameters.runName = "Second"
    panel.played.explained()
    assert panel.parameters.result.GetName() == "First"


def test_results_accumulate_and_nothing_is_overwritten(panel, scene):
    load(panel)
    first, second = explain(panel), explain(panel)
    assert first is not second
    assert second.GetName() == "Head Integrated gradients: tumor (2)"
    assert panel.ui.runComboBox.count == 2


def test_the_models_own_prediction_can_become_the_segments(panel, scene):
    load(panel)
    panel.ui.predictButton.click()
    request = panel.played.request
    assert isinstance(request, worker.Predict)
    labels = np.zeros((1, *SHAPE), np.float32)
    labels[0, :2] = 1
    names = {0: "background", 1: "lesion", 2: "organ"}
    write_result(request.output, labels=Volume(labels, an_affine(), ""), label_names=names)
    panel.played.done({"folder": request.output})
    node = panel.parameters.segmentation
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    assert node.GetSegmentation().GetNthSegment(0).GetName() == "lesion"


# -- scene and life --------------------------------------------------------------------------------


def test_closing_the_scene_ends_the_run_and_binds_the_panel_anew(panel, scene):
    load(panel)
    panel.ui.applyButton.click()
    old, stops = panel.parameters, panel.played.stops
    scene.Clear()
    process_events()
    assert panel.played.stops == stops + 1
    assert not panel.runner.busy
    assert panel.parameters is not old
    assert panel.ui.inputVolumeSelector.currentNode() is None
    assert panel.ui.modelPathLineEdit.text == ""
    panel.ui.layerMapCheckBox.checked = True
    assert panel.parameters.layerMap


def test_an_answer_after_the_scene_was_closed_is_not_published(panel, scene):
    load(panel)
    panel.ui.applyButton.click()
    scene.Clear()
    nodes = node_ids(scene)
    panel.played.done({"folder": "x"})
    assert node_ids(scene) == nodes


@pytest.mark.parametrize("fast", [False, True])
def test_the_box_for_the_fast_mode_is_sent_with_the_run(panel, fast):
    load(panel)
    panel.ui.fastCheckBox.checked = fast
    assert panel.parameters.fast is fast
    panel.ui.applyButton.click()
    assert panel.played.request.fast is fast


def test_a_saved_scene_restores_the_panel(panel, shown, scene, tmp_path, monkeypatch):
    load(panel)
    node = a_segmentation(scene, masks(), an_affine())
    panel.parameters.segmentation = node
    panel.ui.regionComboBox.setCurrentIndex(2)
    panel.ui.segmentSelector.setCurrentSegmentID("id_right")
    process_events()
    panel.method.form.field("steps").value = 7
    panel.ui.contrastComboBox.setCurrentIndex(1)
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    panel.ui.roiSelector.setCurrentNode(roi)
    explain(panel)
    panel.parameters.opacity = 0.25
    path = sx.scene.save_mrb(scene, tmp_path / "saved.mrb")
    scene.Clear()
    process_events()
    assert panel.ui.outputComboBox.count == 0
    _read_again(scene, path)
    process_events()
    parameters, ui = panel.parameters, panel.ui
    assert parameters.inputVolume.GetName() == "Head"
    assert ui.segmentSelector.currentSegmentID() == "id_right"
    assert ui.outputComboBox.currentText == "1  lesion"
    assert ui.contrastComboBox.itemData(ui.contrastComboBox.currentIndex) == "runner_up"
    assert panel.method.form.field("steps").value == 7
    assert ui.opacitySlider.value == 0.25
    assert ui.runComboBox.currentText == "Head Integrated gradients: tumor"
    assert ui.roiSelector.currentNode() is not None
    assert ui.applyButton.enabled


def _read_again(scene, path):
    from SaliencyExplainLib.scene.host import enable_reading

    enable_reading(scene)
    assert scene.ReadFromMRB(str(path), True)


def test_cleanup_unbinds_the_panel_and_ends_the_process(panel):
    node = panel.parameters
    panel.cleanup()
    panel.ui.layerMapCheckBox.checked = True
    assert not node.layerMap
    assert panel.played.closed


def test_reload_drops_the_packages_so_that_their_new_code_is_used(panel, monkeypatch):
    packages = ("SaliencyExplainLib", "SaliencyExplainPanel")
    kept = {name: one for name, one in sys.modules.items() if name.split(".")[0] in packages}
    for name, module in kept.items():
        monkeypatch.setitem(sys.modules, name, module)  # put back after the test
    panel.onReload()
    assert panel.reloaded
    assert not any(name.split(".")[0] in packages for name in sys.modules)
