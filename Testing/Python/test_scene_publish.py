"""An explanation becomes nodes, all or none of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
from scene_cases import (
    SHAPE,
    a_map,
    a_transform,
    a_warp,
    an_affine,
    an_explanation,
    an_input,
    hierarchy,
    node_ids,
    some_regions,
)

from SaliencyExplainLib.errors import SceneError
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.scene import image_from_node, new_scene, publish, release_scene
from SaliencyExplainLib.scene.nodes import ijk_to_ras


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


def _cells(table, column):
    array = table.GetTable().GetColumnByName(column)
    return [array.GetValue(row) for row in range(array.GetNumberOfValues())]


def _summary(published):
    return dict(
        zip(_cells(published.summary, "property"), _cells(published.summary, "value"), strict=True)
    )


@pytest.mark.parametrize("left_handed", [True, False])
def test_the_map_is_published_voxel_for_voxel_at_its_place(scene, left_handed):
    explanation = an_explanation(affine=an_affine(left_handed))
    published = publish(explanation, scene, input_volume=an_input(scene, an_affine(left_handed)))
    (volume,) = published.volumes
    np.testing.assert_allclose(ijk_to_ras(volume), an_affine(left_handed), atol=1e-12)
    np.testing.assert_array_equal(image_from_node(volume).as_tensor().numpy(), a_map())


def test_the_display_is_symmetric_and_has_colors_of_its_own(scene):
    explanation = an_explanation()
    first, second = publish(explanation, scene), publish(explanation, scene)
    display = first.volumes[0].GetDisplayNode()
    assert not display.GetAutoWindowLevel()
    assert display.GetWindowLevelMin() == -display.GetWindowLevelMax()
    assert display.GetWindowLevelMax() == pytest.approx(
        np.percentile(np.abs(a_map()), 99.5), rel=1e-4
    )
    assert display.GetColorNode() is first.color
    assert first.color is not second.color


def test_an_unsigned_map_starts_at_zero(scene):
    published = publish(an_explanation(np.abs(a_map()), signed=False), scene)
    assert published.volumes[0].GetDisplayNode().GetWindowLevelMin() == 0


def test_several_channels_give_the_joined_map_first_and_share_one_range(scene):
    voxels = a_map(channels=2)
    voxels[1] *= 10
    published = publish(
        an_explanation(voxels, model={"channels": ["FLAIR", "T1"]}), scene, name="Run"
    )
    assert [node.GetName() for node in published.volumes] == ["Run", "Run (FLAIR)", "Run (T1)"]
    np.testing.assert_allclose(
        image_from_node(published.volumes[0]).as_tensor()[0], voxels.sum(0), rtol=1e-6
    )
    ranges = {node.GetDisplayNode().GetWindowLevelMax() for node in published.volumes[1:]}
    assert len(ranges) == 1


def test_a_layer_map_is_added_on_its_own_grid_when_asked(scene):
    coarse = make_image(np.ones((1, 3, 3, 4), np.float32), an_affine() @ np.diag([2, 2, 2, 1.0]))
    explanation = an_explanation(layer_map=coarse)
    assert publish(explanation, scene).layer_volume is None
    layer = publish(explanation, scene, layer_map=True).layer_volume
    assert layer.GetImageData().GetDimensions() == (3, 3, 4)
    np.testing.assert_allclose(ijk_to_ras(layer), coarse.affine, atol=1e-12)


def test_names_say_input_method_and_output_and_do_not_collide(scene):
    volume = an_input(scene, name="MRHead")
    names = [
        publish(an_explanation(), scene, input_volume=volume).volumes[0].GetName() for _ in range(3)
    ]
    assert names[0] == "MRHead Integrated gradients: tumor"
    assert len(set(names)) == 3


def test_runs_collect_in_one_folder_with_a_folder_each(scene):
    publish(an_explanation(), scene)
    publish(an_explanation(), scene)
    tree = hierarchy(scene)
    assert tree["SaliencyExplain results"] == [
        "Integrated gradients: tumor",
        "Integrated gradients: tumor (2)",
    ]
    assert "Integrated gradients: tumor" in tree["Integrated gradients: tumor"]


def test_results_go_where_the_input_is(scene):
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = tree.CreateStudyItem(tree.CreateSubjectItem(tree.GetSceneItemID(), "Patient"), "Study")
    volume = an_input(scene)
    tree.CreateItem(study, volume)
    published = publish(an_explanation(), scene, input_volume=volume)
    results = tree.GetItemParent(published.folder_item)
    assert tree.GetItemName(results) == "SaliencyExplain results"
    assert tree.GetItemParent(results) == study
    assert tree.GetItemParent(tree.GetItemByDataNode(published.volumes[0])) == published.folder_item


def test_attributes_and_references_tell_where_the_map_comes_from(scene):
    explanation = an_explanation()
    inputs = [an_input(scene), an_input(scene, name="PET")]
    published = publish(explanation, scene, input_volume=inputs, regions=some_regions(explanation))
    (volume,) = published.volumes
    assert volume.GetAttribute("SaliencyExplain.method") == "integrated_gradients"
    assert float(volume.GetAttribute("SaliencyExplain.value")) == 2.5
    assert (
        json.loads(volume.GetAttribute("SaliencyExplain.provenance"))["parameters"]["steps"] == 20
    )
    assert json.loads(published.text.GetText()) == explanation.to_dict()
    role = "SaliencyExplain.inputVolume"
    assert [volume.GetNthNodeReference(role, index) for index in range(2)] == inputs
    assert volume.GetNodeReference("SaliencyExplain.regionTable") is published.table
    assert volume.GetNodeReference("SaliencyExplain.provenance") is published.text


def test_the_provenance_is_valid_json_even_with_numbers_that_are_none(scene):
    explanation = an_explanation(value=float("nan"), completeness_error=float("inf"))
    text = publish(explanation, scene).text.GetText()
    assert json.loads(text, parse_constant=pytest.fail)["value"] is None


def test_the_region_table_is_typed_and_has_units(scene):
    explanation = an_explanation()
    regions = some_regions(explanation)
    table = publish(explanation, scene, regions=regions).table
    kinds = {
        name: table.GetTable().GetColumnByName(name).GetClassName()
        for name in ("name", "voxels", "share")
    }
    assert kinds == {"name": "vtkStringArray", "voxels": "vtkLongArray", "share": "vtkDoubleArray"}
    assert table.GetColumnUnitLabel("volume_ml") == "ml"
    assert table.GetColumnTitle("density_ratio") == "Density ratio"
    assert "no preference" in table.GetColumnDescription("density_ratio")
    assert _cells(table, "voxels") == [row.voxels for row in regions.rows]
    np.testing.assert_allclose(
        _cells(table, "share"), [row.share for row in regions.rows], rtol=1e-5
    )
    assert np.isnan(_cells(table, "peak")[-1])


def test_the_plot_shows_density_ratios_largest_first_without_empty_segments(scene):
    explanation = an_explanation()
    regions = some_regions(explanation)
    chart = publish(explanation, scene, regions=regions).chart
    series = chart.GetNthPlotSeriesNode(0)
    values = _cells(series.GetTableNode(), "density_ratio")
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    assert series.GetPlotType() == slicer.vtkMRMLPlotSeriesNode.PlotTypeBar
    assert series.GetColor() != (0, 0, 0)


def test_the_summary_says_what_was_done_and_warns(scene):
    summary = _summary(publish(an_explanation(), scene))
    assert summary["Explained value"] == "2.5"
    assert summary["Parameter steps"] == "20"
    assert summary["Completeness error"] == "1.25"
    assert summary["Warning 1"].startswith("A 'quoted' warning")


@pytest.mark.parametrize(
    ("voxels", "text"), [(0.0, "zero everywhere"), (2.0, "same value everywhere")]
)
def test_a_map_that_says_nothing_is_published_with_a_warning(scene, voxels, text):
    published = publish(an_explanation(np.full((1, *SHAPE), voxels, np.float32)), scene)
    display = published.volumes[0].GetDisplayNode()
    assert display.GetWindowLevelMax() > display.GetWindowLevelMin()
    assert text in published.warnings[-1]
    assert text in list(_summary(published).values())[-1]


def test_nan_in_a_map_becomes_zero_and_is_told(scene):
    voxels = a_map()
    voxels[0, 0, 0, :2] = [np.nan, np.inf]
    published = publish(an_explanation(voxels), scene)
    assert np.isfinite(image_from_node(published.volumes[0]).as_tensor().numpy()).all()
    assert any("2 voxels of the map were NaN" in text for text in published.warnings)


@pytest.mark.parametrize(
    "make", [lambda scene: a_transform(scene, np.diag([1.0, -1, 2, 1])), a_warp]
)
def test_the_map_moves_with_its_input(scene, make):
    volume, transform = an_input(scene), make(scene)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    published = publish(an_explanation(), scene, input_volume=volume)
    assert published.volumes[0].GetParentTransformNode() is transform
    np.testing.assert_allclose(ijk_to_ras(published.volumes[0]), ijk_to_ras(volume), atol=1e-12)
    assert "before its parent transform" in published.warnings[-1]


def test_an_input_from_another_scene_is_refused(scene):
    other = new_scene()
    try:
        with pytest.raises(SceneError, match="'CT' is not in the scene"):
            publish(an_explanation(), scene, input_volume=an_input(other))
    finally:
        release_scene(other)


def _fail_at(monkeypatch, which):
    """Let the scene refuse the n-th node of a publication."""
    from SaliencyExplainLib.scene.additions import Additions

    original, count = Additions.node, iter(range(1000))

    def node(self, *arguments, **options):
        added = original(self, *arguments, **options)
        if next(count) == which:
            raise RuntimeError("injected")
        return added

    monkeypatch.setattr(Additions, "node", node)


@pytest.mark.parametrize("which", range(9))
def test_a_publication_that_fails_leaves_the_scene_as_it_was(scene, monkeypatch, which):
    explanation = an_explanation()
    volume = an_input(scene)
    publish(explanation, scene, input_volume=volume)
    nodes, tree = node_ids(scene), hierarchy(scene)
    _fail_at(monkeypatch, which)
    with pytest.raises(RuntimeError, match="injected"):
        publish(explanation, scene, input_volume=volume, regions=some_regions(explanation))
    assert node_ids(scene) == nodes
    assert hierarchy(scene) == tree


def test_a_failed_first_publication_leaves_a_bare_scene_bare(monkeypatch):
    scene = slicer.vtkMRMLScene()
    _fail_at(monkeypatch, 1)
    with pytest.raises(RuntimeError, match="injected"):
        publish(an_explanation(), scene)
    assert scene.GetNumberOfNodes() == 0


def test_nothing_is_added_when_preparing_fails(scene):
    nodes = node_ids(scene)
    with pytest.raises(AttributeError):
        publish(an_explanation(), scene, regions="no table")
    assert node_ids(scene) == nodes


def test_a_bare_scene_made_by_somebody_else_works():
    scene = slicer.vtkMRMLScene()
    explanation = an_explanation()
    published = publish(explanation, scene, regions=some_regions(explanation))
    assert published.volumes[0].GetScene() is scene
