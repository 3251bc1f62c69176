"""How far a map can be trusted, in the scene: tables and plots, all or none, saved and read."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import slicer
from report_cases import a_comparison, a_ranking, a_row, a_sanity, an_evaluation, curve
from scene_cases import (
    a_map,
    an_affine,
    an_explanation,
    an_input,
    hierarchy,
    node_ids,
    some_regions,
)

from SaliencyExplainLib.errors import MetricError, SceneError
from SaliencyExplainLib.quality import Appraisal
from SaliencyExplainLib.report import verdict_of
from SaliencyExplainLib.scene import (
    appraisal_from_map,
    explanation_from_map,
    load_mrb,
    new_scene,
    publish,
    publish_appraisal,
    regions_from_table,
    release_scene,
    save_mrb,
    verdict_from_map,
)


@pytest.fixture
def scene():
    one = new_scene()
    yield one
    release_scene(one)


@pytest.fixture
def volume(scene):
    """A published map, made by the method of the made-up findings."""
    told = a_told(image={"name": "scan.nii.gz"})
    regions = some_regions(told)
    made = publish(told, scene, input_volume=an_input(scene, name="Head"), regions=regions)
    return made.volumes[0]


def a_told(**facts):
    """A map made by the method of the made-up findings."""
    facts = {"completeness_error": None} | facts
    return an_explanation(method="gradient", title="Gradient", **facts)


def everything() -> Appraisal:
    rows = (*an_evaluation().rows, *curve("insertion", 0.6, 0.3), a_road())
    ranking = a_ranking()
    values = {one.name: an_evaluation(one.rows["deletion"]) for one in ranking.methods}
    return Appraisal(
        an_evaluation(*rows, a_row("density_ratio", 3.5, direction="none")),
        a_sanity(),
        replace(ranking, evaluations=values),
        a_comparison(),
    )


def a_road():
    details = {
        "percent": [50.0],
        "most_relevant_first": [1.0],
        "least_relevant_first": [2.0],
        "start": 3.0,
    }
    return a_row("road", 0.5, details=details)


def cells(table, column):
    array = table.GetTable().GetColumnByName(column)
    return [array.GetValue(row) for row in range(array.GetNumberOfValues())]


def columns(table):
    names = range(table.GetNumberOfColumns())
    return [table.GetTable().GetColumn(index).GetName() for index in names]


# What is in the tables


def test_the_metrics_are_told_with_value_better_end_words_and_cost(scene, volume):
    made = publish_appraisal(everything(), volume)
    table, rows = made.tables["metrics"], everything().evaluation.rows
    assert columns(table)[:4] == ["title", "value", "better", "reading"]
    assert cells(table, "metric") == [row.metric for row in rows]
    assert cells(table, "reading") == [row.reading for row in rows]
    assert cells(table, "passes") == [row.passes for row in rows]
    value = dict(zip(cells(table, "metric"), cells(table, "value"), strict=True))
    assert value["deletion"] == 0.21
    assert math.isnan(value["completeness"])
    better = dict(zip(cells(table, "metric"), cells(table, "better"), strict=True))
    assert (better["deletion"], better["insertion"]) == ("lower", "higher")
    assert better["density_ratio"] == "neither end"
    low = dict(zip(cells(table, "metric"), cells(table, "low"), strict=True))
    assert low["faithfulness_correlation"] == 0.41
    assert math.isnan(low["deletion"])
    assert table.GetColumnTitle("reading") == "In words"


def test_without_intervals_there_are_no_columns_for_them(volume):
    made = publish_appraisal(Appraisal(an_evaluation(a_row("complexity", 2.0))), volume)
    assert "low" not in columns(made.tables["metrics"])


def test_the_verdict_comes_first_in_words_and_with_a_sign(volume):
    made = publish_appraisal(everything(), volume)
    told = verdict_of(explanation_from_map(volume), made.appraisal.evaluation, a_sanity())
    table = made.tables["verdict"]
    assert made.verdict == told
    assert cells(table, "check") == [told.headline, *(one.name for one in told.checks)]
    assert cells(table, "sentence")[0] == told.sentence
    assert cells(table, "state")[1] == "✓ passed"
    assert volume.GetAttribute("SaliencyExplain.verdict") == told.headline


def test_curves_are_tables_with_a_line_for_the_map_and_one_for_the_random_map(volume):
    made = publish_appraisal(everything(), volume)
    assert set(made.charts) == {"deletion", "insertion", "road", "sanity"}
    for name, own, random in (("deletion", 0.21, 0.48), ("insertion", 0.6, 0.3)):
        table, chart = made.tables[name], made.charts[name]
        assert cells(table, "percent") == [0, 50, 100]
        assert cells(table, "curve") == [1, own, 0]
        assert cells(table, "control") == [1, random, 0]
        series = [chart.GetNthPlotSeriesNode(index) for index in range(2)]
        assert [one.GetName() for one in series] == ["this map", "random map"]
        assert [one.GetYColumnName() for one in series] == ["curve", "control"]
        assert {one.GetXColumnName() for one in series} == {"percent"}
        assert {one.GetTableNode() for one in series} == {table}
        # Not told apart by colour alone.
        assert len({one.GetLineStyle() for one in series}) == 2
        assert len({one.GetMarkerStyle() for one in series}) == 2
        assert series[0].GetColor() != series[1].GetColor()
        assert chart.GetXAxisTitle() == "Voxels changed (%)"
        assert "0 = baseline" in chart.GetYAxisTitle()
        assert chart.GetLegendVisibility()
    road = made.charts["road"]
    assert road.GetNthPlotSeriesNode(1).GetName() == "lowest away first"
    assert road.GetYAxisTitle() == "Score"


def test_a_curve_without_control_has_one_line_and_one_that_is_not_defined_has_none(volume):
    details = {"percent": [0.0, 100.0], "ordinate": "dice", "curve": [1.0, None]}
    rows = (a_row("deletion", 0.5, details=details), a_row("insertion", None))
    made = publish_appraisal(Appraisal(an_evaluation(*rows)), volume)
    assert set(made.charts) == {"deletion"}
    chart = made.charts["deletion"]
    assert chart.GetNumberOfPlotSeriesNodes() == 1
    assert chart.GetYAxisTitle() == "Score"
    assert math.isnan(cells(made.tables["deletion"], "curve")[1])


def test_of_a_metric_that_was_measured_twice_the_first_curve_is_drawn(volume):
    rows = [
        replace(one, metric=f"deletion[steps={steps}]")
        for steps, own in ((5, 0.1), (9, 0.7))
        for one in curve("deletion", own, 0.5)[:1]
    ]
    made = publish_appraisal(Appraisal(an_evaluation(*rows)), volume)
    assert cells(made.tables["deletion"], "curve")[1] == 0.1


def test_the_sanity_check_has_a_row_a_stage_and_the_gradient_as_yardstick(volume):
    check = replace(a_sanity(), details={"measure": "spearman"})
    made = publish_appraisal(Appraisal(sanity=check), volume)
    table = made.tables["sanity"]
    assert cells(table, "random_percent") == [25, 50, 75, 100]
    measures = check.stages[0].similarity
    np.testing.assert_allclose(
        cells(table, "spearman"), [one.similarity["spearman"] for one in check.stages], rtol=1e-5
    )
    assert set(measures) < set(columns(table))
    assert cells(table, "layers")[0] == "layer0.conv, layer0.norm"
    assert table.GetDescription() == check.sentence
    series = [made.charts["sanity"].GetNthPlotSeriesNode(index) for index in range(2)]
    assert [one.GetYColumnName() for one in series] == ["spearman", "gradient"]
    assert series[0].GetName() == "Gradient"


def test_a_stage_whose_map_became_constant_has_no_number(volume):
    stages = [replace(one, gradient=math.nan) for one in a_sanity().stages]
    stages[1] = replace(stages[1], similarity={"spearman_absolute": math.nan})
    made = publish_appraisal(Appraisal(sanity=replace(a_sanity(), stages=tuple(stages))), volume)
    table = made.tables["sanity"]
    assert [math.isnan(one) for one in cells(table, "spearman_absolute")] == [False, True] + [
        False
    ] * 2
    assert math.isnan(cells(table, "spearman")[1])
    assert all(math.isnan(one) for one in cells(table, "gradient"))


def test_the_ranking_lists_methods_best_first_and_what_failed_with_its_reason(volume):
    table = publish_appraisal(everything(), volume).tables["ranking"]
    assert cells(table, "title") == ["Gradient", "Grad_Cam", "score_cam"]
    assert cells(table, "mean_rank")[:2] == [1.25, 2.25]
    assert math.isnan(cells(table, "mean_rank")[2])
    assert cells(table, "note") == ["best", "not told apart", "It ran out of memory."]
    assert cells(table, "value_deletion")[:2] == [0.2, 1.2]
    assert table.GetDescription() == "Best here: gradient."


def test_the_comparison_is_a_matrix_a_measure(volume):
    names = ("gradient", "grad_cam", "gradient (2)")
    both = a_comparison(names)
    both = replace(both, matrices={**both.matrices, "top_k_iou": 2 * np.eye(3)})
    table = publish_appraisal(Appraisal(comparison=both), volume).tables["comparison"]
    assert cells(table, "measure") == ["spearman"] * 3 + ["top k iou"] * 3
    assert cells(table, "map") == [*names, *names]
    assert cells(table, "with_2") == [0.37, 1, 0.37, 0, 2, 0]
    assert math.isnan(cells(table, "with_1")[2])
    assert table.GetColumnTitle("with_3") == "gradient (2)"


# Where they are


def test_all_lies_in_one_folder_inside_that_of_the_run(scene, volume):
    made = publish_appraisal(everything(), volume)
    tree = hierarchy(scene)
    assert "Trust of Head Gradient: tumor" in tree["Gradient: tumor"]
    inside = tree["Trust of Head Gradient: tumor"]
    assert "Head Gradient: tumor (metrics)" in inside
    assert "Head Gradient: tumor (deletion curve)" in inside
    assert "Head Gradient: tumor (sanity check) (plot)" in inside
    # 8 tables, 4 charts with two lines each, the record.
    assert len(inside) == 8 + 4 * 3 + 1
    node = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    assert node.GetItemParent(node.GetItemByDataNode(made.text)) == made.folder_item


def test_the_map_refers_to_what_was_found_on_it(volume):
    made = publish_appraisal(everything(), volume)
    for role, node in made.tables.items():
        assert volume.GetNodeReference(f"SaliencyExplain.{role}") is node
    for role, node in made.charts.items():
        assert volume.GetNodeReference(f"SaliencyExplain.{role}Chart") is node
    assert json.loads(made.text.GetText()) == everything().to_dict()


def test_measuring_again_replaces_what_was_measured_and_keeps_the_rest(scene, volume):
    publish_appraisal(Appraisal(an_evaluation(), a_sanity()), volume)
    count, tree = len(node_ids(scene)), hierarchy(scene)
    newer = an_evaluation(*curve("deletion", 0.9, 0.1))
    made = publish_appraisal(Appraisal(newer), volume)
    assert cells(made.tables["metrics"], "value")[0] == 0.9
    assert made.appraisal.sanity is not None
    assert (len(node_ids(scene)), hierarchy(scene)) == (count, tree)
    again = publish_appraisal(Appraisal(an_evaluation(a_row("complexity", 1.0))), volume)
    assert set(again.charts) == {"sanity"}
    assert volume.GetNodeReference("SaliencyExplain.deletionChart") is None
    assert volume.GetNodeReference("SaliencyExplain.deletion") is None
    assert not [one for one in scene_names(scene) if "deletion" in one or "replaced" in one]


def scene_names(scene):
    return [scene.GetNthNode(index).GetName() or "" for index in range(scene.GetNumberOfNodes())]


def test_two_maps_have_findings_of_their_own(scene, volume):
    other = publish(a_told(), scene, input_volume=an_input(scene, name="Head")).volumes[0]
    publish_appraisal(Appraisal(an_evaluation()), volume)
    publish_appraisal(Appraisal(sanity=a_sanity()), other)
    assert appraisal_from_map(volume).sanity is None
    assert appraisal_from_map(other).evaluation is None
    assert volume.GetNodeReference("SaliencyExplain.metrics") is not None


# All or nothing


@pytest.mark.parametrize("which", [0, 1, 5, 12, 20])
@pytest.mark.parametrize("first", [True, False])
def test_what_fails_half_way_leaves_the_scene_as_it_was(scene, volume, monkeypatch, which, first):
    from SaliencyExplainLib.scene.additions import Additions

    if not first:
        publish_appraisal(everything(), volume)
    before = (node_ids(scene), scene_names(scene), hierarchy(scene))
    roles = [f"SaliencyExplain.{role}" for role in ("metrics", "sanityChart", "trustRecord")]
    references = [volume.GetNodeReferenceID(role) for role in roles]
    original, count = Additions.node, iter(range(1000))

    def node(self, *arguments, **options):
        added = original(self, *arguments, **options)
        if next(count) == which:
            raise RuntimeError("injected")
        return added

    monkeypatch.setattr(Additions, "node", node)
    with pytest.raises(RuntimeError, match="injected"):
        publish_appraisal(everything(), volume)
    assert (node_ids(scene), scene_names(scene), hierarchy(scene)) == before
    assert [volume.GetNodeReferenceID(role) for role in roles] == references
    assert (volume.GetAttribute("SaliencyExplain.verdict") is None) == first


def test_what_was_measured_on_another_method_is_refused(scene, volume):
    nodes = node_ids(scene)
    other = replace(an_evaluation(), method="grad_cam", title="Grad-CAM")
    with pytest.raises(SceneError, match=r"made by Gradient; what was measured belongs to Grad-CA"):
        publish_appraisal(Appraisal(other), volume)
    with pytest.raises(SceneError, match=r"belongs to LRP\. Choose the map"):
        publish_appraisal(Appraisal(sanity=replace(a_sanity(), method="l", title="LRP")), volume)
    assert node_ids(scene) == nodes


def test_a_map_that_is_gone_or_none_is_refused(scene, volume):
    with pytest.raises(SceneError, match=r"'Head' is no map that was published here"):
        publish_appraisal(everything(), scene.GetFirstNodeByName("Head"))
    scene.RemoveNode(volume)
    with pytest.raises(SceneError, match=r"is not in the scene \(any more\)\. Nothing was added"):
        publish_appraisal(everything(), volume)
    with pytest.raises(SceneError, match="not in the scene"):
        publish_appraisal(everything(), None)


# Reading back


def test_an_explanation_comes_back_from_its_map(volume):
    told = explanation_from_map(volume)
    np.testing.assert_array_equal(told.maps.voxels, a_map())
    np.testing.assert_allclose(told.maps.affine, an_affine(), atol=1e-12)
    assert (told.method, told.value, told.maps.name) == ("gradient", 2.5, "scan.nii.gz")
    assert told.network_maps is None


def test_a_region_table_comes_back_from_its_node(volume):
    regions = some_regions(an_explanation())
    found = regions_from_table(volume.GetNodeReference("SaliencyExplain.regionTable"))
    assert [row.label for row in found.rows] == [row.label for row in regions.rows]
    assert [row.name for row in found.rows][1] == "left 'amygdala'"
    for one, other in zip(found.rows, regions.rows, strict=True):
        assert one.share == pytest.approx(other.share, rel=1e-5, nan_ok=True)
        assert one.peak_s_mm == pytest.approx(other.peak_s_mm, rel=1e-5, nan_ok=True)
    assert regions_from_table(None) is None
    assert regions_from_table(volume.GetNodeReference("SaliencyExplain.summary")) is None


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"evaluation": {"rows": 3}}', "null"])
def test_a_record_that_somebody_broke_is_none_and_is_replaced(volume, text):
    made = publish_appraisal(everything(), volume)
    made.text.SetText(text)
    assert appraisal_from_map(volume) is None
    again = publish_appraisal(Appraisal(an_evaluation()), volume)
    assert again.appraisal.sanity is None
    assert verdict_from_map(volume) == again.verdict


def test_before_anything_is_measured_the_verdict_says_so(volume):
    assert appraisal_from_map(volume) is None
    assert verdict_from_map(volume).headline == "Nothing was checked yet"


def test_another_map_in_the_same_node_has_no_findings(volume):
    made = publish_appraisal(everything(), volume)
    facts = json.loads(volume.GetAttribute("SaliencyExplain.provenance"))
    # As browsing a sequence does.
    volume.SetAttribute("SaliencyExplain.provenance", json.dumps({**facts, "value": 3.0}))
    assert appraisal_from_map(volume) is None
    again = publish_appraisal(Appraisal(an_evaluation()), volume)
    assert again.appraisal.sanity is None
    volume.SetAttribute("SaliencyExplain.provenance", json.dumps(facts))
    assert appraisal_from_map(volume) is None
    assert made.verdict != again.verdict


def test_every_finding_survives_its_record():
    made = everything()
    stages = [replace(one, gradient=math.nan) for one in made.sanity.stages]
    made = replace(
        made,
        sanity=replace(made.sanity, stages=tuple(stages), alike=math.nan),
        comparison=a_comparison(("one", "two", "three")),
    )
    back = Appraisal.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back.to_dict() == made.to_dict()
    assert back.evaluation.rows == made.evaluation.rows
    assert back.sanity.sentence == made.sanity.sentence
    assert math.isnan(back.sanity.alike)
    assert back.ranking.methods[0].ranks == made.ranking.methods[0].ranks
    np.testing.assert_array_equal(
        back.comparison.matrices["spearman"], made.comparison.matrices["spearman"]
    )
    assert Appraisal.from_dict({}) == Appraisal()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("evaluation", {"rows": [{}]}),
        ("evaluation", {"rows": None}),
        ("sanity", {"verdict": "perfect"}),
        ("sanity", {"stages": [1]}),
        ("ranking", {"methods": [{"name": "x"}]}),
        ("comparison", {"matrices": {"spearman": [[1.0]]}}),
        ("comparison", {"names": 3}),
    ],
)
def test_a_record_that_is_none_is_refused_in_a_sentence(part, change):
    facts = json.loads(json.dumps(everything().to_dict()))
    facts[part].update(change)
    with pytest.raises(MetricError, match=r"no record of what was found on a map .* Measure again"):
        Appraisal.from_dict(facts)


# Scene files


def contents(scene) -> dict:
    """What a reader sees of the findings on the only map."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    volumes = [scene.GetNthNodeByClass(at, "vtkMRMLScalarVolumeNode") for at in range(count)]
    (volume,) = [one for one in volumes if one.GetAttribute("SaliencyExplain.method")]
    roles = ("verdict", "metrics", "deletion", "insertion", "road", "sanity", "ranking")
    tables = {}
    for role in (*roles, "comparison"):
        table = volume.GetNodeReference(f"SaliencyExplain.{role}")
        tables[role] = {
            "name": table.GetName(),
            "said": table.GetDescription(),
            "cells": {name: [repr(one) for one in cells(table, name)] for name in columns(table)},
            "titles": [table.GetColumnTitle(name) for name in columns(table)],
        }
    charts = {}
    for role in ("deletion", "insertion", "road", "sanity"):
        chart = volume.GetNodeReference(f"SaliencyExplain.{role}Chart")
        lines = [chart.GetNthPlotSeriesNode(at) for at in range(chart.GetNumberOfPlotSeriesNodes())]
        charts[role] = [chart.GetTitle(), chart.GetXAxisTitle(), chart.GetYAxisTitle()] + [
            [one.GetName(), one.GetXColumnName(), one.GetYColumnName(), one.GetColor(),
             one.GetLineStyleAsString(one.GetLineStyle()), one.GetTableNode().GetName()]
            for one in lines
        ]  # fmt: skip
    return {
        "tables": tables,
        "charts": charts,
        "record": appraisal_from_map(volume).to_dict(),
        "verdict": verdict_from_map(volume).to_dict(),
        "headline": volume.GetAttribute("SaliencyExplain.verdict"),
        "folder": sorted(hierarchy(scene)[f"Trust of {volume.GetName()}"]),
    }


def test_everything_is_read_back_from_a_scene_file(scene, volume, tmp_path):
    publish_appraisal(everything(), volume)
    # Measured twice, so that what was replaced is seen to be gone from the file, too.
    publish_appraisal(everything(), volume)
    other = load_mrb(save_mrb(scene, tmp_path / "trust.mrb"))
    try:
        assert other is not scene
        assert contents(other) == contents(scene)
    finally:
        release_scene(other)


def test_a_loaded_scene_can_be_measured_again(scene, volume, tmp_path):
    publish_appraisal(everything(), volume)
    other = load_mrb(save_mrb(scene, tmp_path / "trust.mrb"))
    try:
        again = other.GetFirstNodeByName(volume.GetName())
        count = other.GetNumberOfNodesByClass("vtkMRMLTableNode")
        made = publish_appraisal(Appraisal(an_evaluation(*curve("deletion", 0.9, 0.1))), again)
        assert made.appraisal.sanity.sentence == a_sanity().sentence
        # Insertion and ROAD were not measured this time.
        assert other.GetNumberOfNodesByClass("vtkMRMLTableNode") == count - 2
    finally:
        release_scene(other)
