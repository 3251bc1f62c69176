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


# -- trust -----------------------------------------------------------------------------------------


def a_logic_with_a_map(shown, scene, network, **more):
    """Logic, map node and what was explained."""
    volume = an_input(scene)
    logic = shown.module.SaliencyExplainLogic()
    target = logic.makeTarget("lesion", shown.module.Region.EVERYWHERE)
    published = logic.explain(
        volume, network, target, "input_x_gradient", modelOptions=OPTIONS, show=False, **more
    )
    return logic, published.volumes[0], target


def test_the_logic_measures_a_map_and_lays_the_answer_beside_it(shown, scene, network):
    logic, node, target = a_logic_with_a_map(shown, scene, network)
    segmentation = a_segmentation(scene, masks(), an_affine())
    told = []
    found = logic.evaluate(
        node,
        network,
        metrics=["prediction_preserved", "relevance_mass", "density_ratio"],
        sanityCheck=True,
        segmentationNode=segmentation,
        truthSegmentID="id_left",
        modelOptions=OPTIONS,
        progress=lambda fraction, message: told.append(fraction),
    )
    model = sx.load_model(network, **OPTIONS)
    image = sx.scene.image_from_nodes([node.GetNodeReference("SaliencyExplain.inputVolume")])
    here = sx.explain(model, image, target, "input_x_gradient")
    mask = sx.scene.mask_from_segment(segmentation, "id_left", image_node(node))
    expected = sx.quality.evaluate(
        here, model, image, ["prediction_preserved", "relevance_mass"], target, truth=mask
    )
    for row in expected.rows:
        assert found.appraisal.evaluation[row.metric].value == pytest.approx(row.value, rel=1e-5)
    assert found.appraisal.evaluation["density_ratio.right"].value is not None
    assert found.appraisal.sanity.verdict in ("sensitive", "insensitive", "unclear")
    assert node.GetNodeReference("SaliencyExplain.sanity") is found.tables["sanity"]
    assert told == sorted(told)
    assert f"Trust of {node.GetName()}" in hierarchy(scene)


def image_node(node):
    return node.GetNodeReference("SaliencyExplain.inputVolume")


def test_a_map_of_another_logic_is_made_again_and_must_be_the_same(shown, scene, network):
    _logic, node, target = a_logic_with_a_map(shown, scene, network)
    other = shown.module.SaliencyExplainLogic()
    found = other.evaluate(node, network, metrics=["sparseness"], modelOptions=OPTIONS)
    assert found.appraisal.evaluation["sparseness"].value is not None
    nodes = node_ids(scene)
    torch.nn.init.constant_(network.bias, 9.0)
    with pytest.raises(sx.SaliencyExplainError, match=r"the same question gives .* now"):
        other.evaluate(node, network, metrics=["sparseness"], modelOptions=OPTIONS)
    assert node_ids(scene) == nodes
    assert target.region == "everywhere"


def test_the_logic_keeps_the_network_grid_of_its_last_maps(shown, scene, network, monkeypatch):
    logic, node, _target = a_logic_with_a_map(shown, scene, network)
    monkeypatch.setattr(sx, "explain", None)
    monkeypatch.setattr("SaliencyExplainLib.run.explain", None)
    logic.evaluate(node, network, metrics=["deletion"], modelOptions=OPTIONS)
    monkeypatch.undo()


def test_a_label_map_that_the_record_does_not_hold_is_given_again(shown, scene, network):
    volume = an_input(scene)
    segmentation = a_segmentation(scene, masks(), an_affine())
    labels = sx.scene.labelmap_from_segmentation(segmentation, volume).labelmap
    logic = shown.module.SaliencyExplainLogic()
    node = logic.explain(
        volume, network, logic.makeTarget("lesion", shown.module.Region.EVERYWHERE),
        "region_ablation", parameters={"regions": "segments", "segments": labels},
        modelOptions=OPTIONS, show=False,
    ).volumes[0]  # fmt: skip
    given = {"metrics": ["sparseness"], "modelOptions": OPTIONS}
    with pytest.raises(sx.SaliencyExplainError, match="was made with segments, which its record"):
        logic.evaluate(node, network, **given)
    found = logic.evaluate(node, network, parameters={"segments": labels}, **given)
    assert found.appraisal.evaluation["sparseness"].value is not None


def test_only_the_last_maps_are_kept_by_the_logic(shown, scene, network):
    logic, node, target = a_logic_with_a_map(shown, scene, network)
    volume = image_node(node)
    for _ in range(4):
        logic.explain(volume, network, target, "gradient", modelOptions=OPTIONS, show=False)
    assert len(logic._made) == 4
    assert logic._known(node) is None


def test_the_logic_ranks_methods_and_writes_the_page(shown, scene, network, tmp_path):
    segmentation = a_segmentation(scene, masks(), an_affine())
    logic, node, _target = a_logic_with_a_map(shown, scene, network, segmentationNode=segmentation)
    found = logic.evaluate(
        node, network, metrics=["sparseness"], methods=["gradient"], modelOptions=OPTIONS
    )
    assert set(found.tables) == {"verdict", "metrics", "ranking", "comparison"}
    page = logic.saveReport(node, tmp_path / "page")
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "page" / "report.html"
    assert "Which method here?" in text
    assert "right" in text
    assert found.verdict.headline in text
    scene.RemoveNode(image_node(node))
    for call in (
        lambda: logic.saveReport(node, tmp_path / "other"),
        lambda: logic.evaluate(node, network, modelOptions=OPTIONS),
    ):
        with pytest.raises(sx.SaliencyExplainError, match="is not in the scene any more"):
            call()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("way", ["cancelled", "metric", "no map"])
def test_a_measurement_of_the_logic_that_fails_leaves_the_scene_as_it_was(
    shown, scene, network, way
):
    logic, node, _target = a_logic_with_a_map(shown, scene, network)
    nodes, tree = node_ids(scene), hierarchy(scene)
    with pytest.raises(sx.SaliencyExplainError):
        logic.evaluate(
            image_node(node) if way == "no map" else node,
            network,
            metrics=["deletoin"] if way == "metric" else ["deletion"],
            cancelled=lambda: way == "cancelled",
            modelOptions=OPTIONS,
        )
    assert (node_ids(scene), hierarchy(scene)) == (nodes, tree)


def test_the_self_test_of_the_module_passes_or_says_why_not(shown, panel, monkeypatch):
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: panel, raising=False)
    test = shown.module.SaliencyExplainTest("runTest")
    # This one waits for a real worker; see test_module_process.py.
    test.test_thePanelExplainsTheDemoInAnotherProcess = lambda: test.skipTest("needs a process")
    result = test.run()
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


def test_a_study_runs_from_the_console_into_the_scene(shown, scene, monkeypatch, tmp_path):
    from SaliencyExplainLib.studies import Study, StudyResult
    from SaliencyExplainLib.studies.results import Case, StudyTable

    def conduct(work):
        image = sx.Volume(np.ones((3, 4, 5)), np.eye(4), "scan")
        table = StudyTable("dice", "Dice by tissue", ("Dice",), ((0.5 if work.quick else 1.0,),))
        return StudyResult("", "", "", "", ("Done.",), tables=(table,), cases=(Case("one", image),))

    study = Study("made_up", "A made-up study", "Does it hold?", "", 1, 1, conduct)
    monkeypatch.setattr(sx.studies, "studies", lambda: {"made_up": study})
    logic = shown.module.SaliencyExplainLogic()
    nodes = logic.runStudy("made_up", tmp_path, quick=True)
    assert [one.GetName() for one in nodes.volumes] == ["one"]
    assert nodes.tables[0].GetTable().GetValue(0, 0).ToDouble() == 0.5
    again = logic.publishStudy(tmp_path)
    assert again.volumes[0].GetName() == "one (2)"
    before = node_ids(scene)
    with pytest.raises(sx.errors.StudyError, match=r"no study 'none'\. The studies are made_up"):
        logic.runStudy("none")
    with pytest.raises(sx.errors.StudyError, match="holds no finished study"):
        logic.publishStudy(tmp_path / "work")
    assert node_ids(scene) == before
