"""The scripted module: its logic on a real scene, its panel on strict stand-ins, its .ui file.

The panel's widgets are stand-ins (see slicer_stand_ins.py): these tests check the wiring, not Qt.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import slicer
import slicer_stand_ins
import torch
from scene_cases import SHAPE, a_segmentation, an_affine, an_input, hierarchy, node_ids

import SaliencyExplainLib as sx

OPTIONS = {"task": "segmentation", "labels": ["background", "lesion"], "channels": ["T1"]}


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    """The module file, run under stand-ins, and what they showed."""
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def panel(shown, scene):
    an_input(scene, name="Head")
    with slicer_stand_ins.a_panel(shown) as one:
        yield one


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 2, 3, padding=1)


def _load(panel, monkeypatch, network, **options):
    """Load a network through the panel's button, without a file."""
    model = sx.load_model(network, **{**OPTIONS, **options})
    monkeypatch.setitem(vars(sx), "load_model", lambda path, trusted=False: model)
    panel.ui.modelPathLineEdit.text = "some model.ts"
    panel.ui.loadModelButton.click()


def _masks():
    left, right = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    left[:2], right[4:] = 1, 1
    return {"left": left, "right": right}


# -- logic ---------------------------------------------------------------------------------------


def test_the_logic_explains_a_volume_and_publishes_nodes(shown, scene, network):
    volume = an_input(scene)
    node = a_segmentation(scene, _masks(), an_affine())
    told = []
    published = shown.module.SaliencyExplainLogic().explain(
        volume,
        network,
        sx.Target(output="lesion", region="everywhere"),
        "gradient",
        segmentationNode=node,
        progress=lambda fraction, message: told.append(fraction),
        modelOptions=OPTIONS,
    )
    expected = sx.explain(
        sx.load_model(network, **OPTIONS),
        sx.scene.image_from_node(volume),
        sx.Target(output="lesion", region="everywhere"),
        "gradient",
    )
    found = sx.scene.image_from_node(published.volumes[0])
    np.testing.assert_allclose(found.as_tensor(), expected.map.as_tensor(), rtol=1e-6)
    np.testing.assert_allclose(found.affine, an_affine(), atol=1e-9)
    names = published.table.GetTable().GetColumnByName("name")
    assert [names.GetValue(row) for row in range(3)] == ["outside", "left", "right"]
    assert published.volumes[0].GetName() == "CT Gradient: lesion"
    assert told[-1] == pytest.approx(1.0)
    assert "SaliencyExplain results" in hierarchy(scene)


def test_several_volumes_are_the_channels(shown, scene):
    volumes = [an_input(scene, name="FLAIR"), an_input(scene, name="T1")]
    published = shown.module.SaliencyExplainLogic().explain(
        volumes,
        torch.nn.Conv3d(2, 2, 1),
        sx.Target(output=1, region="everywhere"),
        "input_x_gradient",
        modelOptions={"task": "segmentation"},
    )
    assert [node.GetName().rpartition("(")[2] for node in published.volumes[1:]] == [
        "FLAIR)",
        "T1)",
    ]


def test_a_segment_can_be_the_region(shown, scene, network):
    volume, node = an_input(scene), a_segmentation(scene, _masks(), an_affine())
    logic = shown.module.SaliencyExplainLogic()
    region = shown.module.Region.SEGMENT
    target = logic.makeTarget("lesion", region, volume, node, "id_left")
    published = logic.explain(volume, network, target, "gradient", modelOptions=OPTIONS)
    voxels = sx.scene.image_from_node(published.volumes[0]).as_tensor()[0]
    # The gradient of a 3 x 3 x 3 convolution reaches one voxel beyond the segment.
    assert voxels[:3].abs().min() > 0
    assert voxels[3:].abs().max() == 0


@pytest.mark.parametrize("way", ["cancelled", "wrong method", "wrong class", "removed"])
def test_a_run_that_fails_or_is_cancelled_leaves_the_scene_as_it_was(shown, scene, network, way):
    volume = an_input(scene)
    nodes, tree = node_ids(scene), hierarchy(scene)
    target = sx.Target(output="tumor" if way == "wrong class" else "lesion", region="everywhere")
    progress = (lambda *_: scene.RemoveNode(volume)) if way == "removed" else None
    with pytest.raises(sx.SaliencyExplainError):
        shown.module.SaliencyExplainLogic().explain(
            volume,
            network,
            target,
            "magic" if way == "wrong method" else "gradient",
            progress=progress,
            cancelled=lambda: way == "cancelled",
            modelOptions=OPTIONS,
        )
    assert [one for one in nodes if one != volume.GetID()] == [
        one for one in node_ids(scene) if one != volume.GetID()
    ]
    assert hierarchy(scene) == tree


# -- panel ---------------------------------------------------------------------------------------


def test_the_panel_opens_with_a_volume_methods_and_reasons_why_it_cannot_run(panel):
    assert panel.ui.inputVolumeSelector.currentNode().GetName() == "Head"
    assert panel.ui.methodComboBox.count == len(sx.methods())
    assert panel.ui.methodComboBox.currentText == "Integrated gradients"
    assert "passes" in panel.ui.methodInfoLabel.text
    assert not panel.ui.applyButton.enabled
    assert panel.ui.applyButton.toolTip == "Load a model; its outputs are then listed."
    assert not panel.ui.setupLabel.visible


def test_a_label_map_or_a_result_is_not_chosen_as_input(shown, scene):
    scene.AddNode(slicer.vtkMRMLLabelMapVolumeNode())
    an_input(scene, name="Result").SetAttribute("SaliencyExplain.method", "gradient")
    an_input(scene, name="Head")
    with slicer_stand_ins.a_panel(shown) as panel:
        assert panel.ui.inputVolumeSelector.currentNode().GetName() == "Head"


def test_loading_a_model_lists_its_outputs_and_enables_apply(panel, monkeypatch, network):
    _load(panel, monkeypatch, network)
    box = panel.ui.outputComboBox
    assert [box.itemData(index) for index in range(box.count)] == ["background", "lesion"]
    assert box.currentText == "1 lesion"
    assert "segmentation" in panel.ui.modelInfoLabel.text
    assert panel.ui.applyButton.enabled


def test_apply_computes_shows_progress_and_publishes(panel, shown, scene, monkeypatch, network):
    _load(panel, monkeypatch, network)
    panel.ui.regionComboBox.setCurrentIndex(3)
    panel.ui.methodComboBox.setCurrentIndex(panel.ui.methodComboBox.findData("gradient"))
    seen = []
    ui = panel.ui
    shown.app.on_events = lambda: seen.append(
        (ui.applyButton.enabled, ui.cancelButton.enabled, ui.progressBar.value)
    )
    panel.ui.applyButton.click()
    assert shown.errors == []
    assert scene.GetFirstNodeByName("Head Gradient: lesion") is not None
    assert seen
    assert all(state[:2] == (False, True) for state in seen)
    assert seen[-1][2] == 100
    assert ui.messageLabel.text.startswith("Done: Head Gradient: lesion")
    assert ui.applyButton.enabled
    assert not ui.cancelButton.enabled


def test_cancel_stops_between_two_passes_and_adds_nothing(
    panel, shown, scene, monkeypatch, network
):
    _load(panel, monkeypatch, network)
    panel.ui.regionComboBox.setCurrentIndex(3)
    nodes = node_ids(scene)
    shown.app.on_events = panel.ui.cancelButton.click
    panel.ui.applyButton.click()
    assert panel.ui.messageLabel.text == "Cancelled; the scene is as it was."
    assert node_ids(scene) == nodes
    assert shown.errors == []
    assert panel.ui.applyButton.enabled


def test_an_error_is_shown_as_its_sentence(panel, shown, monkeypatch, network):
    _load(panel, monkeypatch, network, labels=["a", "b", "c"])
    panel.ui.applyButton.click()
    ((text, options),) = shown.errors
    assert "3 labels were declared" in text
    assert options == {}
    assert panel.ui.applyButton.enabled


def test_an_unforeseen_error_has_its_traceback_in_the_details(panel, shown, monkeypatch, network):
    _load(panel, monkeypatch, network)

    def explain(*_arguments, **_options):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(panel.logic, "explain", explain)
    panel.ui.applyButton.click()
    ((text, options),) = shown.errors
    assert text == "This failed unexpectedly: oops"
    assert "ZeroDivisionError" in options["detailedText"]


def test_a_segment_must_be_chosen_for_the_region_of_that_name(
    panel, shown, scene, monkeypatch, network
):
    _load(panel, monkeypatch, network)
    panel.ui.regionComboBox.setCurrentIndex(2)
    assert "Choose a segment" in panel.ui.applyButton.toolTip
    node = a_segmentation(scene, _masks(), an_affine())
    panel.ui.segmentSelector.setCurrentNode(node)
    panel.ui.segmentSelector.setCurrentSegmentID("id_left")
    assert panel._parameterNode.segmentID == "id_left"
    assert panel.ui.applyButton.enabled
    panel.ui.applyButton.click()
    assert shown.errors == []
    assert scene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode") == 1


def test_another_path_takes_the_model_and_the_trust_away(panel, monkeypatch, network):
    panel.ui.trustModelCheckBox.checked = True
    _load(panel, monkeypatch, network)
    panel.ui.trustModelCheckBox.checked = True
    panel.ui.modelPathLineEdit.text = "other.ts"
    assert not panel.ui.trustModelCheckBox.checked
    assert not panel.ui.applyButton.enabled
    assert panel.ui.modelInfoLabel.text == "No model is loaded."
    assert panel.ui.outputComboBox.count == 0


def test_trust_is_not_saved_with_the_scene(shown):
    assert not any(
        "trust" in name.lower() for name in shown.module.SaliencyExplainParameterNode.fields
    )


def test_a_model_that_is_missing_is_reported(panel, shown):
    panel.ui.loadModelButton.click()
    assert "No model is named" in shown.errors[-1][0]
    panel.ui.modelPathLineEdit.text = "/no/such/model.ts"
    panel.ui.loadModelButton.click()
    assert "no/such/model.ts" in shown.errors[-1][0]


def test_a_model_with_several_channels_says_how_to_run_it(panel, monkeypatch):
    _load(panel, monkeypatch, torch.nn.Conv3d(2, 2, 1), channels=["FLAIR", "T1"])
    assert "needs 2 volumes (FLAIR, T1)" in panel.ui.applyButton.toolTip


def test_closing_the_scene_stops_the_run_and_binds_the_panel_anew(panel, scene):
    old = panel._parameterNode
    scene.Clear()
    assert panel._cancelRequested
    assert panel._parameterNode is not old
    assert panel.ui.inputVolumeSelector.currentNode() is None
    panel.ui.modelPathLineEdit.text = "x"
    assert panel._parameterNode.modelPath == "x"


def test_cleanup_unbinds_the_panel(panel):
    node = panel._parameterNode
    panel.cleanup()
    panel.ui.modelPathLineEdit.text = "x"
    assert node.modelPath == ""
    assert panel._cancelRequested


def test_reload_drops_the_library_so_that_its_new_code_is_used(panel, monkeypatch):
    kept = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith("SaliencyExplainLib")
    }
    for name, module in kept.items():
        monkeypatch.setitem(sys.modules, name, module)  # put back after the test
    panel.onReload()
    assert panel.reloaded
    assert not any(name.split(".")[0] == "SaliencyExplainLib" for name in sys.modules)


def test_the_self_test_of_the_module_passes(shown, monkeypatch):
    result = shown.module.SaliencyExplainTest("runTest").run()
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
