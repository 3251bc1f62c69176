"""The logic for the Python console, on a real scene, and the self-test of the module."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer_stand_ins
import torch
from panel_cases import a_played_panel, masks
from scene_cases import a_segmentation, an_affine, an_input, hierarchy, node_ids

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
def panel(shown, scene, monkeypatch):
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as one:
        yield one


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 2, 3, padding=1)


def test_the_logic_explains_a_volume_and_publishes_nodes(shown, scene, network):
    volume = an_input(scene)
    node = a_segmentation(scene, masks(), an_affine())
    told = []
    logic = shown.module.SaliencyExplainLogic()
    published = logic.explain(
        volume,
        network,
        logic.makeTarget("lesion", shown.module.Region.EVERYWHERE),
        "gradient",
        segmentationNode=node,
        progress=lambda fraction, message: told.append(fraction),
        modelOptions=OPTIONS,
        name="Mine",
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
    assert published.volumes[0].GetName() == "Mine"
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
    titles = [node.GetName().rpartition("(")[2] for node in published.volumes[1:]]
    assert titles == ["FLAIR)", "T1)"]


def test_a_segment_can_be_the_region(shown, scene, network):
    volume, node = an_input(scene), a_segmentation(scene, masks(), an_affine())
    logic = shown.module.SaliencyExplainLogic()
    region = shown.module.Region.SEGMENT
    target = logic.makeTarget("lesion", region, volume, node, "id_left")
    published = logic.explain(volume, network, target, "gradient", modelOptions=OPTIONS)
    voxels = sx.scene.image_from_node(published.volumes[0]).as_tensor()[0]
    # The gradient of a 3 x 3 x 3 convolution reaches one voxel beyond the segment.
    assert voxels[:3].abs().min() > 0
    assert voxels[3:].abs().max() == 0


def test_a_box_or_a_point_can_be_the_region(shown, scene):
    volume = an_input(scene)
    logic, region = shown.module.SaliencyExplainLogic(), shown.module.Region
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetSize(4, 4, 4)
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.AddControlPoint([1.0, 2.0, 3.0])
    box = logic.makeTarget("lesion", region.ROI, volume, markupsNode=roi, score="probability")
    assert box.region == "roi"
    assert box.score == "probability"
    np.testing.assert_allclose(box.roi_ras_mm, [(-2, -2, -2), (2, 2, 2)])
    point = logic.makeTarget("lesion", region.POINT, volume, markupsNode=points)
    np.testing.assert_allclose(point.point_ras_mm, (1, 2, 3))


@pytest.mark.parametrize("way", ["cancelled", "wrong method", "wrong class", "removed"])
def test_a_run_of_the_logic_that_fails_leaves_the_scene_as_it_was(shown, scene, network, way):
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


def test_the_self_test_of_the_module_passes_or_says_why_not(shown, panel, monkeypatch):
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: panel, raising=False)
    test = shown.module.SaliencyExplainTest("runTest")
    # This one waits for a real worker; see test_module_process.py.
    test.test_thePanelExplainsTheDemoInAnotherProcess = lambda: test.skipTest("needs a process")
    result = test.run()
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
