"""The shell, ``evaluate``: the plan and its price, the results, and what a failure leaves."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
from cli_cases import LABELS, everything_below, failure, write_inputs

import SaliencyExplainLib as sx
from SaliencyExplainLib import errors
from SaliencyExplainLib.cli import main
from SaliencyExplainLib.cli.arguments import make_parser
from SaliencyExplainLib.cli.plan import make_plan, price
from SaliencyExplainLib.quality import USUAL

#: Fast, and enough for curves.
CHEAP = ("--metrics", "deletion,sparseness", "--metric-param", "deletion.steps=2")


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory):
    """Inputs; see write_inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def evaluate(a_folder, tmp_path):
    """Arguments of a run into ``tmp_path / "out"``; what is left out is the method."""

    def words(*more: object) -> list[str]:
        given = ["evaluate", "--model", a_folder / "model.ts", "--trust", "--labels", LABELS]
        given += ["--task", "segmentation", "--image", a_folder / "scan.nii.gz"]
        given += ["--target", "lesion", "--output", tmp_path / "out"]
        return [str(word) for word in (*given, *more)]

    return words


def planned(*words: str):
    """Plan of a run."""
    given = ["evaluate", "--model", "m", "--image", "i", "--output", "o", *words]
    return make_plan(make_parser().parse_args(given))


def names_of(plan) -> list[str]:
    return [one.name for one in plan.metrics]


def record_of(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


# The plan


def test_the_usual_metrics_that_apply_are_measured_and_the_others_named():
    plan = planned("--method", "gradient")
    skipped = dict(plan.skipped)
    assert set(names_of(plan)) | set(skipped) == set(USUAL)
    assert skipped["vxap"] == "needs --truth LABELMAP"
    assert skipped["density_ratio"] == "needs --segments LABELMAP"
    more = planned("--method", "gradient", "--truth", "t", "--segments", "s")
    assert (names_of(more), more.skipped) == (list(USUAL), ())


def test_quick_is_affordable():
    plan = planned("--method", "gradient", "--metrics", "quick", "--truth", "t", "--segments", "s")
    assert plan.passes is not None
    assert plan.passes <= 30
    assert {"deletion", "insertion", "relevance_mass", "density_ratio"} <= set(names_of(plan))
    usual = planned("--method", "gradient").passes
    assert usual is not None
    assert usual > 2 * plan.passes


def test_all_leaves_out_only_what_does_not_apply_or_needs_labels():
    plan = planned("--method", "gradient", "--metrics", "all", "--truth", "t", "--segments", "s")
    once = {name for name, one in sx.quality.metrics().items() if not one.reruns}
    assert set(names_of(plan)) == once - {"attribution_quality"}
    assert "attribution_quality.target_label=N" in dict(plan.skipped)["attribution_quality"]
    given = ("--metrics", "all", "--segments", "s")
    chosen = ("--metric-param", "attribution_quality.target_label=2")
    assert "attribution_quality" in names_of(planned("--method", "gradient", *given, *chosen))


def test_repeatability_adds_the_metrics_that_run_the_method_again():
    plan = planned("--method", "integrated_gradients", "--repeatability", "--metrics", "sparseness")
    assert names_of(plan) == [
        "sparseness",
        "sensitivity",
        "repeatability_noise",
        "repeatability_shift",
    ]
    run = price(sx.make_method("integrated_gradients"))
    assert plan.passes == run + 1 + 9 * run


def test_the_price_is_the_sum_of_its_parts_and_is_said():
    plan = planned("--method", "grad_cam", "--metrics", "deletion", "--sanity", "--draws", "2")
    run = price(sx.make_method("grad_cam"))
    gradient = price(sx.make_method("gradient"))
    assert run > gradient > 1
    assert [step.name for step in plan.steps] == ["map", "metrics", "sanity"]
    assert [step.passes for step in plan.steps] == [run, 21, 13 * (run + gradient)]
    assert plan.words() == (
        f"To do: a map by Grad-CAM (at most {run} passes); 1 metric (at most 21 passes); a sanity "
        f"check of 13 runs and as many gradients (at most {13 * (run + gradient)} passes). "
        f"Together at most {plan.passes} passes over the volume."
    )


def test_a_method_that_does_not_know_its_price_has_none():
    plan = planned("--method", "occlusion", "--metrics", "deletion", "--sanity")
    assert plan.passes is None
    assert "How many passes that takes is not known beforehand." in plan.words()


def test_the_parts_of_the_progress_fill_the_whole():
    plan = planned("--methods", "gradient,occlusion", "--sanity")
    parts = list(plan.shares().values())
    assert parts[0][0] == 0
    assert sum(parts[-1]) == pytest.approx(1)
    for (start, length), (following, _) in itertools.pairwise(parts):
        assert start + length == pytest.approx(following)


def test_methods_are_ranked_by_how_the_score_changes_unless_metrics_are_named():
    def ranking(*words: str) -> list[str]:
        plan = planned("--methods", "gradient,grad_cam", *words)
        return [one.name for one in plan.ranking_metrics]

    assert set(ranking()) == {"deletion", "insertion", "road", "faithfulness_correlation"}
    assert ranking("--metrics", "quick") == ["deletion", "insertion"]
    assert ranking("--metrics", "sparseness,deletion") == ["sparseness", "deletion"]
    assert ranking("--metrics", "quick", "--repeatability") == ["deletion", "insertion"]


def test_the_method_of_the_report_is_ranked_too_with_its_parameters():
    words = ("--method", "integrated_gradients", "--param", "steps=3")
    plan = planned(*words, "--methods", "gradient,grad_cam")
    assert [one.name for one in plan.methods] == ["integrated_gradients", "gradient", "grad_cam"]
    assert plan.methods[0].parameters()["steps"] == 3
    among = planned(*words, "--methods", "gradient,integrated_gradients")
    assert [one.parameters().get("steps") for one in among.methods] == [None, 3]
    assert among.method is among.methods[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"Name the method to evaluate \(--method NAME\)"),
        (["--param", "steps=3", "--methods", "gradient,grad_cam"], "--param needs --method"),
        (["--methods", "gradient"], "ranks at least two methods; gradient was given"),
        (["--methods", "gradient,gradient"], "'gradient' was named twice in --methods"),
        (["--method", "gradeint"], "Did you mean 'gradient'"),
        (["--methods", "gradient,gradcam"], "Did you mean 'grad_cam'"),
        (["--method", "gradient", "--metrics", "deletoin"], "Did you mean 'deletion'"),
        (["--method", "gradient", "--metrics", "deletion,deletion"], "named twice in --metrics"),
        (["--method", "gradient", "--metrics", "vxap"], "needs --truth LABELMAP. Give it"),
        (["--method", "gradient", "--metric-param", "x=1"], "'x' has no dot"),
        (["--method", "gradient", "--metric-param", "deletion.steps"], "given as key=value"),
        (["--method", "gradient", "--metric-param", "road.steps=1"], "'road', which is not"),
        (["--method", "gradient", "--metric-param", "deletion.stpes=1"], "no parameter 'stpes'"),
        (["--method", "gradient", "--metric-param", "deletion.steps=1"], "steps"),
        (
            ["--methods", "gradient,grad_cam", "--metrics", "density_ratio", "--segments", "s"],
            "None of density_ratio can rank methods",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(words, said):
    with pytest.raises(errors.SaliencyExplainError, match=said):
        planned(*words)


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
def test_draws_are_a_whole_number_from_1(count, capsys, evaluate):
    assert main(evaluate("--method", "gradient", "--draws", count)) == 2
    assert "whole number from 1 on is needed" in failure(capsys)


# Results of one method


@pytest.fixture(scope="module")
def done(a_folder, tmp_path_factory):
    """Folder of one evaluation with everything but a ranking."""
    out = tmp_path_factory.mktemp("one") / "out"
    words = ["evaluate", "--model", a_folder / "model.ts", "--trust", "--labels", LABELS]
    words += ["--task", "segmentation", "--image", a_folder / "scan.nii.gz", "--target", "lesion"]
    words += ["--output", out, "--method", "input_x_gradient", "--quiet", "--repeatability"]
    words += ["--metrics", "deletion,completeness,relevance_mass,density_ratio"]
    words += ["--metric-param", "deletion.steps=4", "--sanity", "independent", "--draws", "2"]
    words += ["--truth", a_folder / "labels.nii.gz", "--segments", a_folder / "labels.nii.gz"]
    words += ["--segment-names", a_folder / "names.csv"]
    assert main([str(word) for word in words]) == 0
    return out


def test_everything_is_written(done):
    assert everything_below(done.parent) == {
        "out",
        "out/evaluation.json",
        "out/explanation",
        "out/explanation/explanation.json",
        "out/explanation/map.nrrd",
        "out/figures",
        "out/figures/curves.png",
        "out/figures/maps.png",
        "out/figures/regions.png",
        "out/figures/sanity.png",
        "out/metrics.csv",
        "out/regions.csv",
        "out/report.html",
    }


def test_the_record_holds_every_finding(done):
    record = record_of(done)
    assert set(record) == {
        "verdict", "explanation", "regions", "evaluation", "sanity", "ranking", "comparison",
        "planned",
    }  # fmt: skip
    assert record["explanation"]["method"] == "input_x_gradient"
    assert record["sanity"]["mode"] == "independent"
    assert record["sanity"]["details"]["draws"] == 2
    assert record["ranking"] is record["comparison"] is None
    measured = [row["metric"] for row in record["evaluation"]["rows"]]
    assert measured[:3] == ["deletion", "deletion.control", "completeness"]
    assert {"relevance_mass", "density_ratio.spleen", "repeatability_shift"} <= set(measured)
    checks = {one["name"]: one["state"] for one in record["verdict"]["checks"]}
    assert checks["depends on what the network learned"] != "untested"
    assert checks["repeats"] == "passed"


def test_parameters_reach_the_metric(done):
    rows = {row["metric"]: row for row in record_of(done)["evaluation"]["rows"]}
    assert rows["deletion"]["details"]["percent"] == [0, 25, 50, 75, 100]


def test_it_costs_no_more_than_was_said(done):
    record = record_of(done)
    said = {step["name"]: step["passes"] for step in record["planned"]["steps"]}
    assert sum(row["passes"] for row in record["evaluation"]["rows"]) <= said["metrics"] + 0.01


def test_tables_and_record_agree(done):
    with (done / "metrics.csv").open() as file:
        table = {row["metric"]: row["value"] for row in csv.DictReader(file)}
    rows = {row["metric"]: row["value"] for row in record_of(done)["evaluation"]["rows"]}
    assert set(table) == set(rows)
    assert float(table["deletion"]) == pytest.approx(rows["deletion"], rel=1e-4)
    with (done / "regions.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["outside", "liver", "spleen"]


def test_the_explained_map_can_be_read_back(done, a_folder):
    read = sx.Explanation.load(done / "explanation")
    assert read.method == "input_x_gradient"
    assert read.value == record_of(done)["explanation"]["value"]
    assert read.maps.shape == sx.read_image([a_folder / "scan.nii.gz"]).shape


def test_the_page_says_what_the_record_says(done):
    page = (done / "report.html").read_text(encoding="utf-8")
    record = record_of(done)
    assert record["verdict"]["headline"] in page
    assert "spleen" in page
    assert "ground truth" in page
    assert "scan.nii.gz" in page
    assert (
        record["versions" if "versions" in record else "explanation"]["versions"]["torch"] in page
    )


def test_the_price_is_said_first_and_the_verdict_before_the_numbers(evaluate, capsys, tmp_path):
    assert main(evaluate("--method", "gradient", *CHEAP)) == 0
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines[0].startswith("To do: a map by Gradient (at most ")
    assert "; 2 metrics (at most 5 passes)" in lines[0]
    assert lines[1].startswith("Read this map") or lines[1].startswith("No check speaks")
    assert written.out.index("better than a random map") < written.out.index("metric  ")
    assert (
        lines[-1]
        == f"Open {tmp_path / 'out' / 'report.html'} in a browser, and print it from there."
    )
    assert "100% " in written.err


def test_json_is_one_object_with_everything(evaluate, capsys, tmp_path):
    assert main(evaluate("--method", "gradient", *CHEAP, "--json", "--quiet")) == 0
    written = capsys.readouterr()
    answer = json.loads(written.out)
    assert written.err == ""
    assert answer["output"] == str(tmp_path / "out")
    assert "figures/maps.png" in answer["files"]
    on_disk = record_of(tmp_path / "out")
    assert {key: answer[key] for key in on_disk} == on_disk


def test_no_metric_means_no_step_for_one(evaluate, capsys, tmp_path):
    words = ("--methods", "gradient,input_x_gradient", *CHEAP)
    assert main(evaluate(*words, "--quiet")) == 0
    steps = record_of(tmp_path / "out")["planned"]["steps"]
    assert [step["name"] for step in steps] == ["ranking"]


# Results of several methods


def test_the_best_of_several_methods_is_reported(evaluate, tmp_path, capsys):
    words = ("--methods", "gradient,input_x_gradient,integrated_gradients", *CHEAP, "--quiet")
    assert main(evaluate(*words)) == 0
    out = tmp_path / "out"
    record = record_of(out)
    best = record["ranking"]["methods"][0]["name"]
    assert record["explanation"]["method"] == best.split()[0]
    assert {"ranking.csv", "comparison.csv"} <= everything_below(out)
    with (out / "ranking.csv").open() as file:
        assert next(csv.DictReader(file))["method"] == best
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Which method here?" in page
    assert "Best here:" in capsys.readouterr().out
    assert len(record["comparison"]["names"]) == 3


def test_a_named_method_is_reported_and_made_once(evaluate, tmp_path, monkeypatch):
    made = []
    explain = sx.explain

    def counted(model, image, target, method, *rest, **more):
        made.append(method if isinstance(method, str) else method.name)
        return explain(model, image, target, method, *rest, **more)

    monkeypatch.setattr("SaliencyExplainLib.run.explain", counted)
    monkeypatch.setattr("SaliencyExplainLib.explain", counted, raising=False)
    words = ("--method", "integrated_gradients", "--param", "steps=2", "--methods", "gradient")
    assert (
        main(evaluate(*words, "--metrics", "deletion,sparseness,image_preserved", "--quiet")) == 0
    )
    assert made == ["integrated_gradients", "gradient"]
    record = record_of(tmp_path / "out")
    assert record["explanation"]["parameters"]["steps"] == 2
    rows = [row["metric"] for row in record["evaluation"]["rows"]]
    assert rows == ["deletion", "deletion.control", "sparseness", "image_preserved"]
    ranked = next(
        one for one in record["ranking"]["methods"] if one["name"] == "integrated_gradients"
    )
    assert record["evaluation"]["rows"][0]["value"] == ranked["values"]["deletion"]


def test_metrics_that_do_not_rank_are_measured_of_the_best(evaluate, a_folder, tmp_path):
    more = ("--segments", a_folder / "labels.nii.gz", "--quiet")
    words = ("--methods", "gradient,input_x_gradient", "--metrics", "sparseness,density_ratio")
    assert main(evaluate(*words, *more)) == 0
    rows = [row["metric"] for row in record_of(tmp_path / "out")["evaluation"]["rows"]]
    assert rows[:2] == ["sparseness", "density_ratio"]
    assert set(rows[2:]) == {"density_ratio.segment 1", "density_ratio.segment 4"}


def test_a_reported_method_that_fails_is_a_sentence(evaluate, capsys, tmp_path):
    # TorchScript has no layers to hook: the others could be ranked, the asked one not.
    words = ("--method", "grad_cam", "--param", "layer=first")
    assert main(evaluate(*words, "--methods", "gradient,input_x_gradient", *CHEAP)) == 1
    written = capsys.readouterr()
    assert "Grad-CAM, the method of the report, failed:" in written.err
    assert "Load the original network with its state dict" in written.err
    assert everything_below(tmp_path) == set()


# Names, earlier results, failures


def test_hostile_names_of_segments_and_files_are_text_on_the_page(evaluate, a_folder, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    scan = tmp_path / f"{hostile}.nii.gz"
    scan.write_bytes((a_folder / "scan.nii.gz").read_bytes())
    (tmp_path / "names.json").write_text(json.dumps({"1": hostile, "4": "<script>x()</script>"}))
    words = evaluate("--method", "gradient", *CHEAP, "--quiet")
    words[words.index("--image") + 1] = str(scan)
    more = ["--segments", a_folder / "labels.nii.gz", "--segment-names", tmp_path / "names.json"]
    assert main([*words, *(str(one) for one in more)]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "&lt;script&gt;x()&lt;/script&gt;" in page


def test_results_of_an_earlier_run_are_replaced_and_other_files_stay(evaluate, a_folder, tmp_path):
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    for name in ("figures/old.png", "regions.csv", "ranking.csv", "notes.txt", "map.nrrd"):
        (out / name).write_text("earlier")
    assert main(evaluate("--method", "gradient", *CHEAP, "--quiet")) == 0
    there = everything_below(out)
    assert {"notes.txt", "map.nrrd", "report.html", "figures/maps.png"} <= there
    assert not {"figures/old.png", "regions.csv", "ranking.csv"} & there


def test_a_failure_while_writing_leaves_the_earlier_results(evaluate, tmp_path, monkeypatch):
    assert main(evaluate("--method", "gradient", *CHEAP, "--quiet")) == 0
    before = everything_below(tmp_path)
    page = (tmp_path / "out" / "report.html").read_bytes()
    monkeypatch.setattr("SaliencyExplainLib.report.page._page", lambda *_: 1 / 0)
    assert main(evaluate("--method", "gradient", *CHEAP, "--quiet")) == 1
    assert everything_below(tmp_path) == before
    assert (tmp_path / "out" / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--target", "lesoin"), "It has: 0 background, 1 lesion, 2 vessel"),
        (("--truth", "nowhere.nii.gz"), "There is no file 'nowhere.nii.gz'"),
        (("--segment", "4"), "--segment needs the label map"),
        (("--metrics", "vxap"), "needs --truth LABELMAP"),
    ],
)
def test_an_error_is_one_sentence_and_leaves_nothing(evaluate, capsys, tmp_path, more, said):
    assert main(evaluate("--method", "gradient", *more, "--quiet")) == 1
    written = capsys.readouterr()
    assert said in written.err
    assert written.err.count("\n") == 1
    assert everything_below(tmp_path) == set()


def test_matplotlib_is_asked_for_before_the_run(evaluate, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(evaluate("--method", "gradient", *CHEAP)) == 1
    assert "pip install 'matplotlib" in failure(capsys)


def test_a_cancelled_run_leaves_nothing(evaluate, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("SaliencyExplainLib.quality.appraisal.evaluate", stopped)
    assert main(evaluate("--method", "gradient", *CHEAP, "--quiet")) == 130
    assert capsys.readouterr().err == "Cancelled. Nothing was written.\n"
    assert everything_below(tmp_path) == set()


def test_a_segment_is_the_region_of_everything(evaluate, a_folder, tmp_path):
    more = ("--segments", a_folder / "labels.nii.gz", "--segment", "4", "--sanity", "--draws", "1")
    assert (
        main(evaluate("--method", "gradient", "--metrics", "off_target_leakage", *more, "--quiet"))
        == 0
    )
    record = record_of(tmp_path / "out")
    assert record["explanation"]["target"]["region_voxels"] == 4 * 6 * 6
    assert record["sanity"]["target"]["region_voxels"] == 4 * 6 * 6
    assert record["evaluation"]["target"]["region"] == "segment"
    assert "segment 4" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert np.isfinite(record["evaluation"]["rows"][0]["value"])
