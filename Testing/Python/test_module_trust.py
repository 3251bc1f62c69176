"""The panel's "Can it be trusted?": what it asks, what becomes of the scene, what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slicer
import slicer_stand_ins
from panel_cases import a_played_panel, explain, load, masks
from report_cases import a_row, a_sanity, an_evaluation, curve
from scene_cases import a_map, a_segmentation, an_affine, an_explanation, an_input, node_ids
from widget_stand_ins import process_events

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker
from SaliencyExplainLib.image import make_image
from SaliencyExplainLib.quality import Appraisal
from SaliencyExplainLib.scene import load_mrb, release_scene, save_mrb
from SaliencyExplainLib.worker.jobs import read_array, read_result

METHOD = {"method": "integrated_gradients", "title": "Integrated gradients"}


@pytest.fixture
def scene():
    with slicer_stand_ins.a_scene() as one:
        yield one


@pytest.fixture
def shown(monkeypatch, scene):
    return slicer_stand_ins.install(monkeypatch, scene)


@pytest.fixture
def panel(shown, scene, monkeypatch):
    an_input(scene, name="Head")
    with a_played_panel(shown, monkeypatch) as one:
        yield one


@pytest.fixture
def volume(panel):
    """A map that was just made."""
    load(panel)
    return explain(panel)


def found(*rows, sanity=None) -> Appraisal:
    made = replace(an_evaluation(*rows), **METHOD)
    return Appraisal(made, None if sanity is None else replace(sanity, **METHOD))


def measure(panel, appraisal=None, explanation=None):
    """Press the button and let the worker answer."""
    panel.ui.trustButton.click()
    assert isinstance(panel.played.request, worker.Evaluate)
    panel.played.appraised(appraisal or found(), explanation)
    process_events()


def maps_of(seed):
    return {"maps": make_image(a_map(seed=seed), an_affine())}


# Before


def test_without_a_map_nothing_can_be_measured(panel):
    ui = panel.ui
    assert not ui.trustGroupBox.enabled
    assert not ui.trustButton.enabled
    assert not ui.trustReportButton.enabled
    assert ui.trustCostLabel.text == "No map yet."
    assert ui.trustVerdictLabel.text == ""
    assert ui.trustProgressBar.isHidden()
    assert ui.trustTableView.isHidden()


def test_the_price_is_said_before_and_the_sanity_check_has_its_own(panel, volume):
    ui = panel.ui
    plan = sx.quality.plan_work(
        sx.make_method("integrated_gradients"), metrics="quick", has_map=True
    )
    assert ui.trustCostLabel.text.startswith(plan.words())
    assert " metrics (at most " in ui.trustCostLabel.text
    assert ui.trustButton.enabled
    assert plan.words() in ui.trustButton.toolTip
    # The map took 1.5 s.
    seconds = plan.passes * 1.5 / sx.quality.plan.price(plan.method)
    assert seconds == pytest.approx(0.8, abs=0.3)
    assert ui.trustCostLabel.text.endswith("At the speed of this map: 0:01 at most.")
    ui.sanityCheckBox.click()
    assert "a sanity check of 19 runs and as many gradients" in ui.trustCostLabel.text
    assert "Together at most" in ui.trustCostLabel.text


def test_the_verdict_of_a_map_that_was_not_checked_says_so(panel):
    load(panel)
    explain(panel, completeness_error=None)
    assert "Nothing was checked yet" in panel.ui.trustVerdictLabel.text


# What is asked


def test_the_same_question_is_asked_again_with_the_map_that_is_shown(panel, scene):
    load(panel)
    panel.parameters.segmentation = a_segmentation(scene, masks(), an_affine())
    panel.ui.applyButton.click()
    first = panel.played.request
    panel.played.explained()
    process_events()
    # What the panel asks next does not matter.
    panel.parameters.method = "grad_cam"
    panel.parameters.outputName = "organ"
    panel.parameters.modelPath = "/models/another"
    process_events()
    panel.ui.trustButton.click()
    asked = panel.played.request
    assert isinstance(asked, worker.Evaluate)
    for name in ("model", "question", "method", "parameters", "segment_names", "fast"):
        assert getattr(asked, name) == getattr(first, name), name
    assert (asked.metrics, asked.sanity, asked.report) == ("quick", "", "")
    assert read_array(asked.segments).voxels.max() == 2
    given = read_result(asked.explanation).explanation
    np.testing.assert_array_equal(given.maps.voxels, a_map())
    assert given.network_maps is not None
    np.testing.assert_array_equal(
        read_array(asked.image).voxels[0],
        slicer.util.arrayFromVolume(panel.parameters.inputVolume).transpose(2, 1, 0),
    )


def test_the_box_adds_the_sanity_check(panel, volume):
    panel.ui.sanityCheckBox.click()
    panel.ui.trustButton.click()
    assert (panel.played.request.sanity, panel.played.request.draws) == ("cascading", 3)


def test_the_segment_that_was_explained_is_sent_again(panel, shown, scene):
    load(panel)
    parameters = panel.parameters
    parameters.segmentation = a_segmentation(scene, masks(), an_affine())
    parameters.segmentID = "id_left"
    parameters.region = shown.module.Region.SEGMENT
    volume = explain(panel)
    parameters.region = shown.module.Region.EVERYWHERE
    panel.ui.trustButton.click()
    mask = read_array(panel.played.request.question.segment).voxels
    np.testing.assert_array_equal(mask[0], masks()["left"])
    panel.played.failed("No.")
    parameters.segmentation.GetSegmentation().RemoveSegment("id_left")
    panel.refresh()
    assert "The segment in which this map was made is not" in panel.ui.trustCostLabel.text
    assert not panel.ui.trustButton.enabled
    assert volume is parameters.result


def test_a_box_or_point_that_is_gone_is_said(panel, shown, scene):
    load(panel)
    region = shown.module.Region
    for kind, role, place, words in (
        ("vtkMRMLMarkupsROINode", "roi", region.ROI, "The box"),
        ("vtkMRMLMarkupsFiducialNode", "point", region.POINT, "The point"),
    ):
        node = scene.AddNewNodeByClass(kind)
        if role == "roi":
            node.SetSize(4, 4, 4)
        else:
            node.AddControlPoint([1.0, 2.0, 3.0])
        panel.parameters.parameterNode.SetNodeReferenceID(role, node.GetID())
        panel.parameters.region = place
        explain(panel)
        assert panel.ui.trustButton.enabled
        scene.RemoveNode(node)
        panel.refresh()
        assert panel.ui.trustCostLabel.text.startswith(words)
        assert panel.ui.trustCostLabel.text.endswith("is not in the scene any more.")


# While it is measured


def test_progress_is_shown_here_too_and_the_button_cancels(panel, scene, volume):
    ui, nodes = panel.ui, node_ids(scene)
    ui.trustButton.click()
    assert ui.trustButton.text == "Cancel"
    assert not ui.trustProgressBar.isHidden()
    assert (ui.trustProgressBar.minimum, ui.trustProgressBar.maximum) == (0, 0)
    assert not ui.sanityCheckBox.enabled
    assert not ui.trustReportButton.enabled
    assert not ui.modelCollapsibleButton.enabled
    panel.played.progress(0.25, "Deletion curve", 75.0)
    assert ui.trustProgressBar.value == 250
    assert ui.trustProgressBar.toolTip == "Deletion curve, 1:15 left"
    assert ui.statusLabel.text == "Deletion curve, 1:15 left"
    folder = Path(panel.played.request.output).parent
    assert folder.is_dir()
    ui.trustButton.click()
    assert panel.played.cancelled == [panel.played.last]
    assert (ui.trustButton.text, ui.trustButton.enabled) == ("Stopping...", False)
    panel.played.stopped()
    assert node_ids(scene) == nodes
    assert ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert (ui.trustButton.text, ui.trustButton.enabled) == ("Measure", True)
    assert ui.trustProgressBar.isHidden()
    assert not folder.exists()


def test_another_run_is_not_shown_here_and_locks_the_button(panel, volume):
    ui = panel.ui
    ui.applyButton.click()
    assert not ui.trustButton.enabled
    assert ui.trustButton.text == "Measure"
    assert ui.trustProgressBar.isHidden()
    panel.played.progress(0.5)
    assert ui.trustProgressBar.value != 500
    requests = len(panel.played.requests)
    panel.trust.measure()
    panel.trust.save("/tmp")
    assert len(panel.played.requests) == requests


# What comes back


def test_what_was_found_is_laid_beside_the_map_and_shown(panel, shown, scene, volume):
    measure(panel, found(*curve("deletion", 0.2, 0.5), a_row("complexity", 3.0)))
    assert shown.errors == []
    text = panel.ui.trustVerdictLabel.text
    verdict = sx.scene.verdict_from_map(volume)
    assert verdict.headline in text
    assert verdict.headline == "No check speaks against this map"
    assert "passed: better than a random map" in text
    assert verdict.sentence in text
    table = volume.GetNodeReference("SaliencyExplain.metrics")
    assert panel.ui.trustTableView.mrmlTableNode() is table
    assert not panel.ui.trustTableView.isHidden()
    assert panel.ui.trustTableView.model().rowCount() == 3
    assert panel.ui.statusLabel.text.startswith("No check speaks against this map. Of ")
    assert not panel.ui.trustGroupBox.collapsed
    assert not panel.runner.busy


def test_each_map_has_its_own_verdict(panel, volume):
    measure(panel, found(*curve("deletion", 0.9, 0.1)))
    bad = panel.ui.trustVerdictLabel.text
    assert "Read this map with doubt" in bad
    explain(panel, **maps_of(7))
    assert "Read this map with doubt" not in panel.ui.trustVerdictLabel.text
    assert panel.ui.trustTableView.mrmlTableNode() is None
    panel.ui.previousRunButton.click()
    process_events()
    assert panel.ui.trustVerdictLabel.text == bad
    assert panel.ui.trustTableView.mrmlTableNode() is not None


def test_measuring_again_shows_the_new_verdict(panel, volume):
    measure(panel, found(*curve("deletion", 0.9, 0.1)))
    measure(panel, found(*curve("deletion", 0.1, 0.9)))
    assert "No check speaks against this map" in panel.ui.trustVerdictLabel.text
    table = panel.ui.trustTableView.mrmlTableNode()
    assert table is volume.GetNodeReference("SaliencyExplain.metrics")


def test_the_verdict_is_told_by_sign_and_word_and_not_by_colour_alone(panel, shown):
    import SaliencyExplainPanel.trust_section as part

    told = {}
    for state, sanity, rows in (
        ("passed", a_sanity(), curve("deletion", 0.1, 0.5)),
        ("failed", a_sanity("insensitive", "It <fails> & so on."), curve("deletion", 0.1, 0.5)),
        ("unclear", a_sanity("unclear", "Who knows."), curve("deletion", 0.1, 0.5)),
    ):
        made = found(*rows, sanity=sanity)
        explanation = an_explanation(completeness_error=None)
        verdict = sx.report.verdict_of(explanation, made.evaluation, made.sanity)
        assert verdict.state == state
        told[state] = part.verdict_text(verdict)
    plain = {state: re.sub("<[^>]*>", "", text) for state, text in told.items()}
    assert len(set(plain.values())) == 3
    assert plain["passed"].startswith("✓ No check speaks against this map")
    assert plain["failed"].startswith("✗ Do not read this map as evidence")
    assert plain["unclear"].startswith("~ Read this map with care")
    assert "It &lt;fails&gt; &amp; so on." in told["failed"]
    colors = {state: re.search('color="(#[0-9a-f]+)"', text)[1] for state, text in told.items()}
    assert len(set(colors.values())) == 3


# What goes wrong


def test_another_frame_in_the_same_node_is_not_the_map_that_was_measured(panel, volume):
    measure(panel, found(*curve("deletion", 0.9, 0.1)))
    facts = json.loads(volume.GetAttribute("SaliencyExplain.provenance"))
    facts["completeness_error"] = None
    volume.SetAttribute("SaliencyExplain.provenance", json.dumps(facts))
    panel.refresh()
    assert "Nothing was checked yet" in panel.ui.trustVerdictLabel.text
    assert panel.ui.trustTableView.mrmlTableNode() is None
    assert not panel.ui.trustShowButton.enabled


def test_a_failure_is_told_and_adds_nothing(panel, shown, scene, volume):
    nodes = node_ids(scene)
    panel.ui.trustButton.click()
    panel.played.failed("The score is 1 here, but 2 was explained.", "MetricError", details="x")
    assert shown.errors[-1][0] == "The score is 1 here, but 2 was explained."
    assert node_ids(scene) == nodes
    assert panel.ui.trustButton.enabled
    panel.ui.trustButton.click()
    panel.played.done({"folder": "gone"})
    assert "is not whole" in shown.errors[-1][0]
    assert node_ids(scene) == nodes


def test_a_map_that_is_removed_meanwhile_is_an_error_and_adds_nothing(panel, shown, scene, volume):
    panel.ui.trustButton.click()
    scene.RemoveNode(volume)
    nodes = node_ids(scene)
    panel.played.appraised(found())
    assert shown.errors[-1][0].endswith("was removed from the scene. Nothing was added.")
    assert node_ids(scene) == nodes


def test_a_model_that_is_not_trusted_any_more_is_asked_about(panel, shown, volume):
    shown.answer = True
    panel.parameters.modelPath = "/models/another"
    panel.ui.trustButton.click()
    trust = worker.Trust("/models/some", "c0ffee", "It carries a program.")
    panel.played.failed("No.", "UntrustedModelError", trust=trust)
    assert "c0ffee" in shown.questions[-1]
    assert isinstance(panel.played.request, worker.Evaluate)
    assert panel.played.request.model.path == "/models/some"
    assert panel.played.request.model.trusted_sha256 == "c0ffee"


def test_only_the_last_results_are_kept_and_older_maps_are_made_again(panel, shown, scene, volume):
    folders = {Path(panel.trust._kept.of(volume))}
    for seed in range(1, 5):
        folders.add(Path(panel.trust._kept.of(explain(panel, **maps_of(seed)))))
    assert sum(one.is_dir() for one in folders) == 4
    panel.results.choose(volume)
    process_events()
    passes = sx.quality.plan.price(sx.make_method("integrated_gradients"))
    told = f"a map by Integrated gradients (at most {passes} passes)"
    assert told in panel.ui.trustCostLabel.text
    panel.ui.trustButton.click()
    assert panel.played.request.explanation == ""
    nodes = node_ids(scene)
    panel.played.appraised(found(), an_explanation(value=9.0))
    assert "This map explains 2.5; the same question gives 9 now" in shown.errors[-1][0]
    assert node_ids(scene) == nodes
    measure(panel, explanation=an_explanation(value=2.52))
    assert volume.GetNodeReference("SaliencyExplain.metrics") is not None
    home = next(iter(folders)).parent
    panel.cleanup()
    assert not home.exists()


def test_without_space_for_the_result_the_map_is_made_again(panel, monkeypatch):
    import shutil

    def full(*_):
        raise OSError(28, "No space left on device")

    load(panel)
    monkeypatch.setattr(shutil, "move", full)
    explain(panel)
    assert "a map by Integrated gradients" in panel.ui.trustCostLabel.text


def test_another_frame_in_the_same_node_is_not_the_map_that_was_kept(panel, volume):
    assert panel.trust._kept.of(volume)
    volume.SetAttribute("SaliencyExplain.value", "3.0")
    assert panel.trust._kept.of(volume) == ""


@pytest.mark.parametrize(
    "text",
    [
        None, "", "no json", "[]", "null", "3", "{}",
        '{"region": "NOWHERE"}', "method", "modelPath", "question", "labelmaps", "region",
    ],
)  # fmt: skip
def test_a_map_whose_question_is_not_known_cannot_be_measured(panel, volume, text):
    known = json.loads(volume.GetAttribute("SaliencyExplain.asked"))
    if text in known:
        text = json.dumps({**known, text: 5})
    volume.SetAttribute("SaliencyExplain.asked", text)
    panel.refresh()
    assert not panel.ui.trustButton.enabled
    assert panel.ui.trustCostLabel.text.startswith("What this map answers is not known here.")
    assert "logic.evaluate()" in panel.ui.trustButton.toolTip
    # The report needs no question.
    assert panel.ui.trustReportButton.enabled


def test_a_volume_that_is_gone_is_said(panel, scene, volume):
    scene.RemoveNode(panel.parameters.inputVolume)
    panel.refresh()
    assert "A volume that this map explains is not in the scene" in panel.ui.trustCostLabel.text


def test_the_question_and_what_was_found_come_back_with_a_scene_file(
    panel, shown, scene, volume, tmp_path, monkeypatch
):
    import SaliencyExplainPanel.remembered as remembered

    measure(panel, found(sanity=a_sanity()))
    asked, labelmaps = remembered.recall(volume)
    path = save_mrb(scene, tmp_path / "a.mrb")
    with monkeypatch.context() as patch:
        # As outside the application: into a scene of its own.
        patch.delattr(slicer, "app")
        other = load_mrb(path)
    try:
        again = other.GetFirstNodeByName(volume.GetName())
        back, names = remembered.recall(again)
        for name in ("region", "segmentID", "modelPath", "modelOptions", "question", "values"):
            assert getattr(back, name) == getattr(asked, name), name
        assert [one.GetName() for one in back.volumes] == ["Head"]
        assert names == labelmaps
        assert sx.scene.verdict_from_map(again) == sx.scene.verdict_from_map(volume)
    finally:
        release_scene(other)
    assert "trust" not in volume.GetAttribute("SaliencyExplain.asked")


def test_closing_the_scene_forgets_what_was_kept(panel, scene, volume):
    folder = Path(panel.trust._kept.of(volume))
    panel.onSceneStartClose(None, None)
    assert not folder.exists()


# The report and the tables


def test_the_report_is_written_of_what_is_known_into_a_new_folder(panel, scene, tmp_path):
    load(panel)
    panel.parameters.segmentation = a_segmentation(scene, masks(), an_affine())
    volume = explain(panel)
    measure(panel, found(sanity=a_sanity()))
    (tmp_path / "Head Integrated gradients_ tumor report").mkdir()
    panel.trust.save(str(tmp_path))
    asked = panel.played.request
    assert isinstance(asked, worker.Report)
    assert Path(asked.folder) == tmp_path / "Head Integrated gradients_ tumor report 2"
    known = read_result(asked.result)
    np.testing.assert_array_equal(known.explanation.maps.voxels, a_map())
    assert known.appraisal.sanity.sentence == a_sanity().sentence
    table = volume.GetNodeReference("SaliencyExplain.regionTable")
    assert known.regions.to_csv() == sx.scene.regions_from_table(table).to_csv()
    assert len(known.regions.rows) == 4
    assert read_array(asked.image).shape == (1, *a_map().shape[1:])
    assert asked.contour is None
    # Nothing is measured here.
    assert not panel.trust.measuring
    assert panel.ui.trustProgressBar.isHidden()
    nodes = node_ids(scene)
    panel.played.done({"folder": asked.folder, "files": []})
    assert panel.ui.statusLabel.text == f"The report was written: {asked.folder}/report.html"
    assert node_ids(scene) == nodes
    assert not Path(asked.result).exists()
    assert volume is panel.parameters.result


def test_the_segment_is_outlined_in_the_report(panel, shown, scene, tmp_path):
    load(panel)
    panel.parameters.segmentation = a_segmentation(scene, masks(), an_affine())
    panel.parameters.segmentID = "id_right"
    panel.parameters.region = shown.module.Region.SEGMENT
    explain(panel)
    panel.trust.save(str(tmp_path))
    asked = panel.played.request
    np.testing.assert_array_equal(read_array(asked.contour).voxels[0], masks()["right"])
    assert asked.contour_name == "right"


def test_a_report_that_fails_or_has_no_volume_is_told(panel, shown, scene, volume, tmp_path):
    panel.trust.save("")
    assert not isinstance(panel.played.request, worker.Report)
    panel.trust.save(str(tmp_path))
    panel.played.failed("Figures need the package matplotlib.", "MissingPackageError")
    assert shown.errors[-1][0] == "Figures need the package matplotlib."
    scene.RemoveNode(panel.parameters.inputVolume)
    panel.trust.save(str(tmp_path))
    assert "The volume that this map explains is not in the scene" in shown.errors[-1][0]
    assert not panel.runner.busy


def test_the_button_asks_for_a_folder(panel, volume, monkeypatch, tmp_path):
    import SaliencyExplainPanel.trust_section as part

    monkeypatch.setattr(part, "choose_folder", lambda title: str(tmp_path))
    panel.ui.trustReportButton.click()
    assert Path(panel.played.request.folder).parent == tmp_path


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("CT: a/b", "CT_ a_b report"),
        ("../../etc", "_.._etc report"),
        ("...", "map report"),
        ("é" * 200, "é" * 80 + " report"),
    ],
)
def test_a_folder_has_a_name_that_every_system_takes(panel, tmp_path, name, folder):
    import SaliencyExplainPanel.trust_section as part

    assert Path(part.free_folder(tmp_path, name)) == tmp_path / folder


def test_the_tables_can_be_shown_where_there_is_a_view_area(panel, volume, monkeypatch):
    import SaliencyExplainPanel.views as views

    assert not panel.ui.trustShowButton.enabled
    measure(panel, found(*curve("deletion", 0.1, 0.5), sanity=a_sanity()))
    panel.ui.trustShowButton.click()
    assert "no view area" in panel.ui.statusLabel.text
    shown = []
    monkeypatch.setattr(views, "show_table_and_plot", lambda *what: shown.append(what) or True)
    panel.ui.trustShowButton.click()
    table, chart = shown[0]
    assert table is volume.GetNodeReference("SaliencyExplain.metrics")
    assert chart is volume.GetNodeReference("SaliencyExplain.sanityChart")
