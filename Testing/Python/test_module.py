"""What the panel asks: model, target and method.

The scene is Slicer's own (slicer-core), plain Qt widgets are real (PySide6), CTK and MRML widgets
and the application are stand-ins (slicer_stand_ins.py), and the worker is played by the test: what
is checked is wiring and what becomes of the scene, not how Slicer behaves.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
import slicer_stand_ins
from panel_cases import LOADED, a_played_panel, load, masks
from scene_cases import a_segmentation, an_affine, an_input
from widget_stand_ins import process_events

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker


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


# -- opening ---------------------------------------------------------------------------------------


def test_the_panel_opens_with_a_volume_methods_and_reasons_why_it_cannot_run(panel):
    ui = panel.ui
    assert ui.inputVolumeSelector.currentNode().GetName() == "Head"
    assert ui.methodList.count == len(sx.methods())
    assert ui.methodList.currentItem().text().startswith("Integrated gradients")
    assert "passes" in ui.methodInfoLabel.text
    assert not ui.applyButton.enabled
    assert ui.applyButton.toolTip == "Choose a model file or folder, or press Load demo."
    assert ui.setupFrame.isHidden()
    assert ui.progressBar.isHidden()
    assert panel.played.requests == {}


def test_a_label_map_or_a_result_is_not_chosen_as_input(shown, scene, monkeypatch):
    scene.AddNode(slicer.vtkMRMLLabelMapVolumeNode())
    an_input(scene, name="Result").SetAttribute("SaliencyExplain.method", "gradient")
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as panel:
        assert panel.ui.inputVolumeSelector.currentNode().GetName() == "Head"


def test_every_reason_against_apply_stands_on_a_line_of_its_own(panel):
    panel.parameters.inputVolume = None
    panel.parameters.region = panel.parameters.region.ROI
    panel.parameters.method = "magic"
    assert panel.ui.applyButton.toolTip.splitlines() == [
        "Choose an input volume.",
        "Choose a model file or folder, or press Load demo.",
        "Choose or create a box under Target.",
        "Choose a method.",
    ]


# -- model -----------------------------------------------------------------------------------------


def test_loading_a_model_lists_its_classes_and_enables_apply(panel):
    load(panel)
    box = panel.ui.outputComboBox
    assert [box.itemData(index) for index in range(box.count)] == LOADED["labels"]
    assert box.currentText == "1  lesion"
    assert "Segmentation, 3 classes, some (MONAI bundle)" in panel.ui.modelInfoLabel.text
    assert "Spacing: 1 x 1 x 2.5 mm" in panel.ui.modelInfoLabel.text
    assert panel.ui.applyButton.enabled


def test_another_path_takes_away_what_was_known_of_the_model(panel):
    load(panel)
    panel.ui.modelPathLineEdit.text = "/models/other"
    assert panel.ui.modelInfoLabel.text == "Not loaded yet."
    assert panel.ui.outputComboBox.count == 0
    assert panel.ui.applyButton.toolTip == "Press Load model; its classes are then listed."


def test_what_the_file_does_not_say_goes_to_the_worker(panel):
    panel.ui.modelLabelsLineEdit.text = "background, spleen"
    panel.ui.modelChannelsLineEdit.text = "CT"
    panel.ui.modelTaskComboBox.setCurrentIndex(1)
    load(panel)
    options = {"task": "segmentation", "labels": ["background", "spleen"], "channels": ["CT"]}
    assert panel.played.request.model.options == options


def test_a_model_that_carries_code_is_run_only_after_one_question(panel, shown):
    panel.ui.modelPathLineEdit.text = "/models/code.ts"
    panel.ui.loadModelButton.click()
    reason = "This file carries a program. If you know it, allow it with trusted=True."
    trust = worker.Trust("/models/code.ts", "c0ffee", reason)
    panel.played.failed("It is not trusted.", "UntrustedModelError", trust=trust)
    (question,) = shown.questions
    assert question.startswith("This file carries a program.\n")
    assert "c0ffee" in question
    assert len(panel.played.requests) == 1
    assert not panel.runner.busy
    shown.answer = True
    panel.ui.loadModelButton.click()
    panel.played.failed("It is not trusted.", "UntrustedModelError", trust=trust)
    assert panel.played.request.model.trusted_sha256 == "c0ffee"
    panel.played.done(LOADED)
    assert panel.ui.modelInfoLabel.text.startswith("Segmentation")
    panel.ui.applyButton.click()
    assert panel.played.request.model.trusted_sha256 == "c0ffee"


def test_a_content_that_was_trusted_once_is_not_asked_for_again_whatever_its_path(panel, shown):
    shown.answer = True
    reason = "This file carries a program."
    for path in ("/models/code.ts", "/elsewhere/copy.ts"):
        panel.ui.modelPathLineEdit.text = path
        panel.ui.loadModelButton.click()
        trust = worker.Trust(path, "c0ffee", reason)
        panel.played.failed("It is not trusted.", "UntrustedModelError", trust=trust)
        assert panel.played.request.model.trusted_sha256 == "c0ffee"
        panel.played.done(LOADED)
    assert len(shown.questions) == 1
    panel.ui.loadModelButton.click()
    changed = worker.Trust("/elsewhere/copy.ts", "bad", reason)
    panel.played.failed("It is not trusted.", "UntrustedModelError", trust=changed)
    assert len(shown.questions) == 2


def test_trust_is_not_saved_with_the_scene(shown):
    fields = shown.module.SaliencyExplainLogic().getParameterNode().allParameters
    assert not any("trust" in name.lower() for name in fields)


def test_a_model_that_is_missing_is_reported(panel, shown):
    panel.ui.loadModelButton.click()
    assert "No model is named" in shown.errors[-1][0]
    assert panel.played.requests == {}


def test_the_layers_are_asked_for_once_when_a_method_needs_one(panel):
    load(panel)
    assert len(panel.played.requests) == 1
    panel.parameters.method = "grad_cam"
    process_events()
    assert isinstance(panel.played.request, worker.Layers)
    assert "grad_cam" in panel.played.request.methods
    layers = [{"name": "model.0", "kind": "Conv3d", "shape": [8, 4, 4, 4]}]
    panel.played.done({"layers": layers, "defaults": {"grad_cam": "model.0"}})
    process_events()
    box = panel.method.form.field("layer")
    assert [box.itemData(index) for index in range(box.count)] == ["", "model.0"]
    assert box.currentText == "Automatic (model.0)"
    panel.parameters.method = "hires_cam"
    process_events()
    assert len(panel.played.requests) == 2
    assert panel.ui.applyButton.enabled


def test_several_channels_get_a_selector_each_and_none_may_be_forgotten_or_doubled(panel, scene):
    load(panel, channels=["FLAIR", "T1", "T2"])
    reasons = panel.ui.applyButton.toolTip.splitlines()
    assert reasons == [
        "Choose a volume for the channel 'T1' under Inputs.",
        "Choose a volume for the channel 'T2' under Inputs.",
    ]
    assert panel.ui.inputVolumeLabel.text == "FLAIR:"
    (first, t1), (second, t2) = panel.inputs._more
    assert (first, second) == ("T1", "T2")
    t1.setCurrentNode(an_input(scene, name="T1w"))
    t2.setCurrentNode(panel.parameters.inputVolume)
    assert panel.ui.applyButton.toolTip == "The channels 'FLAIR' and 'T2' have the same volume."
    t2.setCurrentNode(an_input(scene, name="T2w"))
    assert panel.ui.applyButton.enabled
    panel.ui.applyButton.click()
    assert np.load(panel.played.request.image["npy"]).shape[0] == 3
    panel.played.stopped()
    load(panel, path="/models/one", channels=["T1"])
    assert panel.inputs._more == []
    assert panel.ui.inputsFormWidget.layout().rowCount() == 1


# -- target ----------------------------------------------------------------------------------------


def test_the_place_is_asked_for_in_slicers_terms(panel, scene):
    load(panel)
    node = a_segmentation(scene, masks(), an_affine())
    panel.ui.segmentationSelector.setCurrentNode(node)
    panel.ui.regionComboBox.setCurrentIndex(2)
    assert not panel.ui.segmentSelector.isHidden()
    assert panel.ui.roiSelector.isHidden()
    assert "a segment under Target" in panel.ui.applyButton.toolTip
    panel.ui.segmentSelector.setCurrentSegmentID("id_left")
    assert panel.parameters.segmentID == "id_left"
    panel.ui.applyButton.click()
    question = panel.played.request.question
    assert (question.output, question.region) == ("lesion", "segment")
    assert np.load(question.segment["npy"]).sum() == masks()["left"].sum()
    assert set(panel.played.request.segment_names.values()) == {"left", "right"}


def test_a_new_box_lies_in_the_middle_of_the_volume(panel, scene):
    load(panel)
    panel.ui.regionComboBox.setCurrentIndex(3)
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    panel.target._onNewBox(roi)
    panel.ui.roiSelector.setCurrentNode(roi)
    bounds = [0.0] * 6
    panel.parameters.inputVolume.GetRASBounds(bounds)
    np.testing.assert_allclose(
        roi.GetCenter(), [(bounds[i] + bounds[i + 1]) / 2 for i in (0, 2, 4)]
    )
    panel.ui.applyButton.click()
    question = panel.played.request.question
    assert question.region == "roi"
    np.testing.assert_allclose(np.mean(question.roi_ras_mm, axis=0), roi.GetCenter())


def test_the_first_point_is_the_place(panel, scene):
    load(panel)
    panel.ui.regionComboBox.setCurrentIndex(4)
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    panel.ui.pointSelector.setCurrentNode(points)
    assert "place its first point" in panel.ui.applyButton.toolTip
    points.AddControlPoint([1.0, 2.0, 3.0])
    panel.refresh()
    panel.ui.applyButton.click()
    np.testing.assert_allclose(panel.played.request.question.point_ras_mm, (1, 2, 3))


def test_one_connected_part_is_the_largest_or_the_one_at_the_point(panel, scene):
    load(panel)
    panel.ui.regionComboBox.setCurrentIndex(5)
    assert not panel.ui.pointSelector.isHidden()
    panel.ui.applyButton.click()
    question = panel.played.request.question
    assert (question.region, question.point_ras_mm) == ("instance", None)
    panel.played.stopped()
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.AddControlPoint([1.0, 2.0, 3.0])
    panel.ui.pointSelector.setCurrentNode(points)
    panel.ui.applyButton.click()
    np.testing.assert_allclose(panel.played.request.question.point_ras_mm, (1, 2, 3))


def test_score_reduction_and_contrast_reach_the_worker(panel):
    load(panel)
    panel.ui.scoreComboBox.setCurrentIndex(2)
    panel.ui.reduceComboBox.setCurrentIndex(1)
    panel.ui.contrastComboBox.setCurrentIndex(4)
    panel.ui.contrastWeightSlider.value = 0.5
    panel.ui.applyButton.click()
    question = panel.played.request.question
    assert (question.score, question.reduce) == ("probability", "sum")
    assert (question.contrast, question.contrast_weight) == ("organ", 0.5)


def test_a_class_is_not_contrasted_with_itself(panel):
    load(panel)
    panel.parameters.contrast = "lesion"
    assert panel.ui.applyButton.toolTip == "Choose another class under 'Rather than', or none."


# -- method ----------------------------------------------------------------------------------------


def test_the_search_hides_methods_without_all_of_its_words(panel):
    panel.ui.methodSearchBox.text = "cam layer"
    names = [
        panel.method._names[row]
        for row in range(panel.ui.methodList.count)
        if not panel.ui.methodList.item(row).isHidden()
    ]
    assert "grad_cam" in names
    assert "integrated_gradients" not in names
    panel.ui.methodSearchBox.text = ""
    assert not any(
        panel.ui.methodList.item(row).isHidden() for row in range(panel.ui.methodList.count)
    )


def test_the_form_follows_the_declaration_of_each_method(panel):
    import dataclasses

    for row, name in enumerate(panel.method._names):
        panel.ui.methodList.setCurrentRow(row)
        process_events()
        fields = dataclasses.fields(sx.methods()[name])
        expected = [one.name for one in fields if one.metadata["kind"] != "labelmap"]
        assert panel.method.form.names == expected
        assert panel.parameters.method == name
        for one in fields:
            if one.name in expected and isinstance(one.default, int | float):
                widget = panel.method.form.field(one.name)
                assert widget.value == pytest.approx(one.default, abs=0.005)
                assert widget.minimum == pytest.approx(one.metadata["low"], abs=0.005)
    assert panel.parameters.methodParameters == ""


def test_only_values_that_were_changed_are_kept_and_sent(panel):
    load(panel)
    process_events()
    panel.method.form.field("steps").value = 8
    form = panel.method.form.field("baseline")
    form.setCurrentIndex(form.findData("zero"))
    kept = json.loads(panel.parameters.methodParameters)
    assert kept == {"integrated_gradients": {"steps": 8, "baseline": "zero"}}
    assert "10 passes" in panel.ui.methodInfoLabel.text
    panel.ui.applyButton.click()
    assert panel.played.request.parameters == {"steps": 8, "baseline": "zero"}
    panel.played.stopped()
    panel.method.form.field("steps").value = 20
    kept = json.loads(panel.parameters.methodParameters)
    assert kept == {"integrated_gradients": {"baseline": "zero"}}
    panel.ui.methodDefaultsButton.click()
    process_events()
    assert panel.method.form.field("steps").value == 20
    assert panel.parameters.methodParameters == "{}"


def test_each_method_keeps_its_own_values(panel):
    process_events()
    panel.method.form.field("steps").value = 8
    panel.parameters.method = "smooth_grad"
    process_events()
    panel.method.form.field("samples").value = 5
    panel.parameters.method = "integrated_gradients"
    process_events()
    assert panel.method.form.field("steps").value == 8
    kept = json.loads(panel.parameters.methodParameters)
    assert kept == {"integrated_gradients": {"steps": 8}, "smooth_grad": {"samples": 5}}


def test_a_method_that_hides_segments_gets_the_segmentation(panel, scene):
    load(panel)
    panel.parameters.method = "region_ablation"
    process_events()
    form = panel.method.form.field("regions")
    form.setCurrentIndex(form.findData("segments"))
    assert "needs a segmentation" in panel.ui.applyButton.toolTip
    panel.parameters.segmentation = a_segmentation(scene, masks(), an_affine())
    panel.ui.applyButton.click()
    request = panel.played.request
    assert request.parameters["segments"] == request.segments


def test_a_method_for_layers_is_refused_for_torchscript(panel):
    load(panel, scripted=True)
    panel.parameters.method = "grad_cam"
    assert "TorchScript" in panel.ui.applyButton.toolTip
