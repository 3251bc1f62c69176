"""The shell, ``explain``: results, words, exit statuses, and what is left after a failure."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import everything_below, explain_words, failure, replaced, write_inputs

import SaliencyExplainLib as sx
from SaliencyExplainLib import errors
from SaliencyExplainLib.cli import main
from SaliencyExplainLib.image import read_image, resample_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory):
    """Inputs; see write_inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def explain(a_folder, tmp_path):
    """Arguments of a run into ``tmp_path / "out"``; more can be appended."""
    return lambda *more: explain_words(a_folder, tmp_path / "out", *more)


# explain: results


def test_explain_writes_map_figure_provenance_and_table(explain, a_folder, tmp_path, capsys):
    more = ("--segments", a_folder / "labels.nii.gz", "--segment-names", a_folder / "names.csv")
    assert main(explain(*more)) == 0
    out = tmp_path / "out"
    files = {"explanation.json", "map.nrrd", "overlay.png", "regions.csv"}
    assert everything_below(tmp_path) == {"out"} | {f"out/{name}" for name in files}
    scan, map_ = read_image(a_folder / "scan.nii.gz"), read_image(out / "map.nrrd")
    assert map_.shape == scan.shape
    assert np.allclose(map_.affine, scan.affine, atol=1e-4)
    assert float(map_.abs().max()) > 0
    record = json.loads((out / "explanation.json").read_text(encoding="utf-8"))
    assert record["method"] == "gradient"
    assert record["target"]["output_name"] == "lesion"
    with (out / "regions.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["outside", "liver", "spleen"]
    written = capsys.readouterr()
    assert "Gradient: lesion" in written.out
    assert "spleen" in written.out
    assert f"Written to {out}" in written.out


def test_the_models_own_prediction_can_be_the_segments(explain, tmp_path):
    assert main(explain("--segments", "prediction", "--scene")) == 0
    with (tmp_path / "out" / "regions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["background", "lesion", "vessel"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-4)
    scene = sx.scene.load_mrb(tmp_path / "out" / "scene.mrb")
    segmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 2


def test_json_is_one_object_with_everything(explain, a_folder, tmp_path, capsys):
    assert main(explain("--segments", a_folder / "labels.nii.gz", "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["output"] == str(tmp_path / "out")
    assert answer["files"] == ["explanation.json", "map.nrrd", "overlay.png", "regions.csv"]
    assert [row["label"] for row in answer["regions"]] == [0, 1, 4]
    assert np.isfinite(answer["value"])


def test_quiet_keeps_standard_error_empty(explain, capsys):
    assert main(explain("--quiet", "--no-figure")) == 0
    assert capsys.readouterr().err == ""


def test_progress_is_told_in_lines_when_nobody_watches(explain, capsys):
    assert main(explain("--no-figure")) == 0
    assert "100% " in capsys.readouterr().err


def test_progress_is_a_bar_on_a_terminal(explain, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(explain("--no-figure")) == 0
    assert "%|" in capsys.readouterr().err


def test_parameters_reach_the_method(explain, tmp_path):
    words = replaced(
        explain("--param", "steps=3", "--no-figure"), "--method", "integrated_gradients"
    )
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert record["parameters"]["steps"] == 3


@pytest.mark.parametrize("names", ["names.csv", "names.json"])
def test_a_segment_can_be_the_region_by_label_or_by_name(explain, a_folder, tmp_path, names):
    given = ("--segments", a_folder / "labels.nii.gz", "--segment-names", a_folder / names)
    assert main(explain(*given, "--segment", "4")) == 0
    by_label = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert by_label["target"]["region"] == "segment"
    assert by_label["target"]["region_voxels"] == 4 * 6 * 6
    assert main(explain(*given, "--segment", "Spleen", "--no-figure")) == 0
    by_name = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert by_name["value"] == by_label["value"]


def test_a_point_is_the_region_in_ras(explain, tmp_path):
    # Voxel (4, 5, 6) of a left-handed grid.
    assert main(explain("--point", "5.0", "-4.5", "1.5", "--no-figure")) == 0
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert (record["target"]["region"], record["target"]["region_voxels"]) == ("point", 1)
    affected = np.argwhere(read_image(tmp_path / "out" / "map.nrrd")[0].numpy() != 0)
    assert affected.mean(0) == pytest.approx([4, 5, 6], abs=0.5)


def test_a_box_is_the_region_in_ras(explain, tmp_path):
    corners = ("-4.1", "-3.1", "-5", "4.1", "3.1", "5")
    assert main(explain("--roi", *corners, "--reduce", "sum", "--no-figure")) == 0
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert record["target"]["region"] == "roi"
    assert record["target"]["reduce"] == "sum"


def test_a_rival_is_subtracted(explain, tmp_path):
    assert main(explain("--contrast", "runner_up", "--no-figure")) == 0
    record = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert record["target"]["contrast_name"] in ("background", "vessel")


def test_weights_are_loaded_into_a_named_network(explain, a_folder, tmp_path):
    words = replaced(explain("--no-figure"), "--model", a_folder / "weights.pt")
    assert main([*words, "--network", "cli_cases:a_tiny_network", "--network-arguments", "{}"]) == 0


def test_the_scene_holds_image_map_and_table(explain, a_folder, tmp_path):
    pytest.importorskip("slicer", reason="the scene needs slicer-core")
    from SaliencyExplainLib import scene

    assert main(explain("--scene", "--segments", a_folder / "labels.nii.gz")) == 0
    loaded = scene.load_mrb(tmp_path / "out" / "scene.mrb")
    assert loaded.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
    assert loaded.GetFirstNodeByName("scan Gradient: lesion") is not None
    assert loaded.GetFirstNodeByName("scan Gradient: lesion (regions)") is not None
    image = scene.image_from_node(loaded.GetFirstNodeByName("scan"))
    original = read_image(a_folder / "scan.nii.gz")
    # Slicer reads a left-handed grid as a right-handed one with the first axis turned round.
    assert np.allclose(resample_image(image, original), original, atol=1e-5)
    scene.release_scene(loaded)


def test_results_of_an_earlier_run_are_replaced_and_other_files_stay(explain, a_folder, tmp_path):
    assert main(explain("--segments", a_folder / "labels.nii.gz")) == 0
    out = tmp_path / "out"
    (out / "map_of_mine.nrrd").write_text("mine")
    (out / "notes").mkdir()
    (out / "map_0.nrrd").write_text("of an earlier run with channels")
    before = (out / "explanation.json").read_text(encoding="utf-8")
    assert main(explain("--no-figure", "--score", "probability")) == 0
    assert everything_below(out) == {"explanation.json", "map.nrrd", "map_of_mine.nrrd", "notes"}
    assert (out / "explanation.json").read_text(encoding="utf-8") != before


def test_results_can_be_read_by_others_as_new_files_can(explain, tmp_path):
    before = os.umask(0o022)
    try:
        assert main(explain()) == 0
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o644}


def test_missing_folders_above_the_output_are_made(explain, tmp_path):
    words = replaced(explain("--no-figure"), "--output", tmp_path / "a" / "b" / "c")
    assert main(words) == 0
    assert (tmp_path / "a" / "b" / "c" / "map.nrrd").is_file()


# explain: failures


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model", "nowhere.ts", "There is no model at 'nowhere.ts'"),
        ("--image", "nowhere.nii.gz", "There is no file 'nowhere.nii.gz'"),
        ("--method", "gradeint", "Did you mean 'gradient'"),
        ("--target", "lesoin", "It has: 0 background, 1 lesion, 2 vessel"),
        ("--labels", "a,b", "3 outputs but 2 labels"),
    ],
)
def test_a_wrong_value_ends_in_a_sentence_and_leaves_nothing(
    explain, tmp_path, capsys, option, value, words
):
    assert main(replaced(explain(), option, value)) == 1
    assert words in failure(capsys)
    assert everything_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--param", "stepz=3"], "Gradient has no parameter 'stepz'"),
        (["--param", "steps"], "given as key=value; 'steps' was given"),
        (["--param", "a=1", "--param", "a=2"], "'a' was given twice"),
        (["--segment", "4"], "--segment needs the label map"),
        (["--region", "point"], "--region point needs --point"),
        (["--point", "0", "0", "0", "--region", "roi"], "does not go with --region roi"),
        (["--point", "0", "0", "0", "--segment", "1"], "name two regions"),
        (["--point", "900", "0", "0"], "outside the image"),
        (["--score", "value"], "does not fit a segmentation network"),
        (["--segments", "nowhere.nii.gz"], "There is no file 'nowhere.nii.gz'"),
        (["--segment-names", "nowhere.csv"], "cannot be read"),
    ],
)
def test_an_option_that_does_not_fit_ends_in_a_sentence_and_leaves_nothing(
    explain, tmp_path, capsys, more, words
):
    assert main(explain(*more)) == 1
    assert words in failure(capsys)
    assert everything_below(tmp_path) == set()


def test_an_unknown_segment_lists_those_that_are_there(explain, a_folder, capsys):
    given = ("--segments", a_folder / "labels.nii.gz", "--segment-names", a_folder / "names.csv")
    assert main(explain(*given, "--segment", "kidney")) == 1
    assert "no segment 'kidney'. It has: 1 liver, 4 spleen" in failure(capsys)


def test_a_model_with_code_in_it_needs_trust(explain, tmp_path, capsys):
    words = [word for word in explain() if word != "--trust"]
    assert main(words) == 1
    assert "--trust" in failure(capsys)
    assert everything_below(tmp_path) == set()


def test_an_image_on_another_grid_is_refused_unless_resampling_is_allowed(
    explain, a_folder, capsys
):
    words = explain("--no-figure")
    at = words.index("--image") + 2
    words = [*words[:at], str(a_folder / "smaller.nii.gz"), *words[at:]]
    assert main(words) == 1
    assert "--resample" in failure(capsys)
    assert main([*words, "--resample"]) == 1
    assert "grid" not in failure(capsys)


def test_an_output_that_is_a_file_is_refused(explain, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(explain()) == 1
    assert "is a file. Name a folder" in failure(capsys)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="the superuser and Windows may write anywhere"
)
def test_a_folder_that_cannot_be_written_is_known_before_the_run(explain, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o500)
    assert main(explain()) == 1
    assert "cannot be written" in failure(capsys)


def test_a_path_through_a_file_cannot_be_written(explain, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(replaced(explain(), "--output", tmp_path / "file" / "out")) == 1
    assert "cannot be written" in failure(capsys)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), errors.Cancelled("The run was cancelled.")])
def test_a_cancelled_run_ends_with_130_and_leaves_nothing(
    explain, tmp_path, capsys, monkeypatch, stop
):
    def stopped(*_, **__):
        raise stop

    monkeypatch.setattr("SaliencyExplainLib.explain", stopped, raising=False)
    assert main(explain("--quiet")) == 130
    assert capsys.readouterr().err == "Cancelled. Nothing was written.\n"
    assert everything_below(tmp_path) == set()


def test_a_fault_in_the_code_is_a_sentence_and_debug_shows_where(explain, capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("SaliencyExplainLib.explain", broken, raising=False)
    assert main(explain()) == 1
    assert "Unexpected ZeroDivisionError: by zero. Run again with --debug" in failure(capsys)
    assert main(explain("--debug")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_failure_while_writing_leaves_the_earlier_results(explain, tmp_path, monkeypatch, capsys):
    assert main(explain("--quiet")) == 0
    before = everything_below(tmp_path)
    monkeypatch.setattr("SaliencyExplainLib.figure.overlay", lambda *_, **__: 1 / 0)
    assert main(explain("--quiet")) == 1
    assert everything_below(tmp_path) == before


def test_json_errors_are_objects_too(explain, capsys):
    assert main(replaced(explain("--json"), "--method", "gradeint")) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"]["kind"] == "MethodError"
    assert "gradient" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain"], "The following arguments are required"),
        (["explian"], "invalid choice: 'explian'"),
        ([], "required: COMMAND"),
        (["model", "m", "--network-arguments", "[1"], "is no JSON"),
        (["model", "m", "--network-arguments", "[1]"], "is no JSON object"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_sentence(words, said, capsys):
    assert main(words) == 2
    assert said in failure(capsys)


def test_matplotlib_is_asked_for_before_the_run(explain, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(explain()) == 1
    assert "pip install 'matplotlib" in failure(capsys)


def test_slicer_is_asked_for_before_the_run(explain, capsys, monkeypatch):
    find = "SaliencyExplainLib.cli.explain.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    assert main(explain("--scene")) == 1
    assert "pip install slicer-core" in failure(capsys)
