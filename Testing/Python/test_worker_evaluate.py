"""The worker says how far a map can be trusted: as this process does, in plain data, or not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worker_cases import (
    QUESTION,
    Cancel,
    a_scan,
    a_source,
    an_environment,
    explain,
)

import SaliencyExplainLib as sx
from SaliencyExplainLib import worker
from SaliencyExplainLib.errors import (
    Cancelled,
    MethodError,
    MetricError,
    SaliencyExplainError,
    WorkerError,
)
from SaliencyExplainLib.quality.plan import QUICK, plan_work
from SaliencyExplainLib.worker.appraising import planned
from SaliencyExplainLib.worker.jobs import write_result
from SaliencyExplainLib.worker.protocol import decode, encode, request_from, request_message

ROOT = Path(__file__).resolve().parents[2]
TARGET = sx.Target(output="lesion", region="everywhere")
#: Fast, and enough for curves; the score of this network hardly changes, its probability does.
FEW = {
    "metrics": ["deletion", "sparseness"],
    "metric_parameters": {"deletion": {"steps": 2, "ordinate": "probability"}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def shared() -> Iterator[worker.Worker]:
    """One worker for many tests."""
    with worker.Worker(threads=1, environ=an_environment(), hang_s=20) as made:
        yield made


@pytest.fixture(scope="module")
def a_map(shared, models) -> sx.Explanation:
    """A map that the worker has made."""
    return explain(shared, a_source(models)).explanation


@pytest.fixture(scope="module")
def model(models) -> sx.Model:
    """The same model in this process."""
    source = a_source(models)
    return sx.load_model(source.path, **source.options)


def evaluate(one: worker.Worker, source: worker.ModelSource, **more) -> worker.Result:
    """A small evaluation."""
    return one.evaluate(source, a_scan(), QUESTION, **(FEW | more))


def labels(first: int = 2) -> worker.Volume:
    voxels = np.zeros((1, 8, 9, 10))
    voxels[:, first : first + 3, 2:7, 2:7] = 3
    return worker.Volume(voxels, a_scan().affine)


def numbers(evaluation) -> dict[str, float | None]:
    return {row.metric: row.value for row in evaluation.rows}


# What it gives


def test_a_map_is_made_and_measured_as_in_this_process(shared, models, model):
    told, by_probability = [], {"deletion": {"ordinate": "probability"}}
    found = evaluate(
        shared,
        a_source(models),
        method="smooth_grad",
        parameters={"samples": 3},
        metrics="quick",
        metric_parameters=by_probability,
        progress=lambda *step: told.append(step),
    )
    image = a_scan().as_image()
    here = sx.explain(model, image, TARGET, "smooth_grad", samples=3)
    method = sx.make_method("smooth_grad", {"samples": 3})
    plan = plan_work(method, metrics="quick", metric_parameters=by_probability)
    expected = sx.quality.evaluate(here, model, image, plan.metrics, TARGET)
    there = found.appraisal.evaluation
    assert there["deletion"].value is not None
    np.testing.assert_array_equal(found.explanation.maps.voxels, here.maps.numpy())
    assert list(numbers(there)) == list(numbers(expected))
    for row in expected.rows:
        assert (there[row.metric].value is None) == (row.value is None)
        assert row.value is None or there[row.metric].value == pytest.approx(row.value, rel=1e-6)
    assert [row.reading for row in there.rows] == [row.reading for row in expected.rows]
    assert [row.details for row in there.rows] == json.loads(
        json.dumps([dict(row.details) for row in expected.rows])
    )
    assert dict(there.skipped)["vxap"] == "needs a mask of the evidence (truth)"
    assert {row.metric.partition(".")[0] for row in there.rows} < set(QUICK)
    assert found.appraisal.sanity is found.appraisal.ranking is None
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_map_that_is_given_is_not_made_again(shared, models, a_map, tmp_path):
    given = evaluate(shared, a_source(models), explanation=a_map)
    assert given.explanation is None
    made = evaluate(shared, a_source(models), method="gradient")
    assert numbers(given.appraisal.evaluation) == numbers(made.appraisal.evaluation)
    # Another map, so that it is seen which one was measured.
    voxels = np.random.default_rng(3).normal(size=a_map.maps.shape)
    other = replace(
        a_map,
        maps=worker.Volume(voxels, a_map.maps.affine),
        network_maps=worker.Volume(voxels, a_map.network_maps.affine),
    )
    assert numbers(evaluate(shared, a_source(models), explanation=other).appraisal.evaluation)[
        "sparseness"
    ] != pytest.approx(numbers(made.appraisal.evaluation)["sparseness"], rel=1e-3)
    other.save(tmp_path / "saved", network_grid=True)
    saved = evaluate(shared, a_source(models), explanation=tmp_path / "saved")
    known = evaluate(shared, a_source(models), explanation=other, method="gradient")
    assert numbers(saved.appraisal.evaluation) == numbers(known.appraisal.evaluation)


def test_truth_and_segments_are_measured_against(shared, models, a_map):
    found = evaluate(
        shared,
        a_source(models),
        explanation=a_map,
        metrics=["relevance_mass", "density_ratio"],
        metric_parameters={},
        truth=labels(4),
        segments=labels(),
        segment_names={3: "liver"},
    )
    evaluation = found.appraisal.evaluation
    inside = labels(4).voxels > 0
    sizes = np.abs(a_map.maps.voxels)
    positive = np.maximum(a_map.maps.voxels, 0)
    shares = (sizes[inside].sum() / sizes.sum(), positive[inside].sum() / positive.sum())
    assert any(evaluation["relevance_mass"].value == pytest.approx(one) for one in shares)
    here = sx.region_table(a_map, labels(), {3: "liver"})
    assert found.regions.to_csv() == here.to_csv()
    assert evaluation["density_ratio.liver"].value == pytest.approx(found.regions[3].density_ratio)


def test_the_segment_of_the_question_arrives(shared, models):
    found = shared.evaluate(
        a_source(models), a_scan(), worker.Question("lesion"), "gradient", segment=labels(), **FEW
    )
    assert found.explanation.target["region"] == "segment"
    assert found.explanation.target["region_voxels"] == 75


def test_the_sanity_check_comes_back_with_its_verdict(shared, models, model):
    found = evaluate(
        shared, a_source(models), method="gradient", sanity="cascading", draws=2, metrics=[],
        metric_parameters={},
    )  # fmt: skip
    here = sx.quality.sanity_check(
        model, a_scan().as_image(), TARGET, "gradient", "cascading", draws=2
    )
    there = found.appraisal.sanity
    assert found.appraisal.evaluation is None
    assert (there.verdict, there.sentence) == (here.verdict, here.sentence)
    assert [stage.layers for stage in there.stages] == [stage.layers for stage in here.stages]
    for one, other in zip(there.stages, here.stages, strict=True):
        assert one.similarity == pytest.approx(other.similarity, nan_ok=True)
    assert there.details["draws"] == 2


def test_methods_are_ranked_and_compared_and_the_best_ones_map_comes_back(shared, models):
    found = evaluate(
        shared, a_source(models), methods=["gradient", "input_x_gradient", "smooth_grad"]
    )
    ranking = found.appraisal.ranking
    best = ranking.methods[0]
    assert found.explanation.method == best.name
    assert sorted(one.name for one in ranking.methods) == [
        "gradient",
        "input_x_gradient",
        "smooth_grad",
    ]
    assert ranking.metrics == ("deletion", "sparseness")
    assert best.rows["deletion"].value == found.appraisal.evaluation["deletion"].value
    assert ranking.answer.startswith("Best here: ")
    assert found.appraisal.comparison.names == tuple(ranking.evaluations)
    assert np.diag(found.appraisal.comparison["spearman"]) == pytest.approx([1, 1, 1])


def test_a_ranking_beside_a_given_map_leaves_the_map_as_it_is(shared, models, a_map):
    found = evaluate(
        shared, a_source(models), explanation=a_map, methods=["input_x_gradient", "smooth_grad"]
    )
    assert found.explanation is None
    assert found.appraisal.evaluation.method == "gradient"
    assert len(found.appraisal.ranking.methods) == 3


def test_the_answer_says_the_verdict_the_price_and_the_files(shared, models, tmp_path):
    folder = tmp_path / "report"
    with worker.JobFolder(tmp_path) as job:
        request = worker.Evaluate(
            a_source(models), job.put("image", a_scan()), QUESTION, job.output(), "gradient",
            report=str(folder), **FEW,
        )  # fmt: skip
        told = shared._ask(request)
        found = worker.read_result(request.output)
    verdict = sx.report.verdict_of(found.explanation, found.appraisal.evaluation, None)
    assert told["verdict"] == verdict.to_dict()
    assert told["planned"] == 7
    assert sum(row.passes for row in found.appraisal.evaluation.rows) <= 5.01
    files = {str(file) for file in folder.rglob("*") if file.is_file()}
    assert set(told["report"]) == files
    assert verdict.headline in (folder / "report.html").read_text(encoding="utf-8")


def test_a_page_is_written_of_what_is_known_without_measuring_again(
    shared, models, a_map, tmp_path
):
    found = evaluate(
        shared, a_source(models), explanation=a_map, segments=labels(), sanity="cascading", draws=1,
        segment_names={3: "my liver"}, methods=["input_x_gradient", "smooth_grad"],
    )  # fmt: skip
    files = shared.report(
        a_scan(),
        a_map,
        tmp_path / "page",
        regions=found.regions,
        appraisal=found.appraisal,
        contour=labels(),
        contour_name="my outline",
    )
    page = files[0].read_text(encoding="utf-8")
    assert files[0] == tmp_path / "page" / "report.html"
    for words in ("my liver", "my outline", "Sanity check", "Which method here?"):
        assert words in page
    assert {"curves.png", "maps.png", "regions.png", "sanity.png"} <= {one.name for one in files}
    bare = shared.report(a_scan(), a_map, tmp_path / "bare")[0].read_text(encoding="utf-8")
    assert "Nothing was checked yet" in bare


# What it refuses


@pytest.fixture
def a_request(tmp_path):
    """Make a request that was not sent."""

    def make(**changes):
        image = {"npy": "/none.npy", "ijk_to_ras": np.eye(4).tolist()}
        given = {"method": "gradient", **changes}
        return worker.Evaluate(
            worker.ModelSource("/none.pt"), image, QUESTION, str(tmp_path / "out"), **given
        )

    return make


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"method": ""}, WorkerError, r"needs a map \(explanation\), the method that makes it"),
        ({"method": "gradeint"}, MethodError, "Did you mean 'gradient'"),
        ({"method": 3}, WorkerError, "The field 'method' of the request Evaluate must be"),
        ({"method": None}, WorkerError, "The field 'method' of the request"),
        ({"parameters": [1]}, WorkerError, "The field 'parameters' of the request"),
        ({"parameters": {"stpes": 1}}, MethodError, "no parameter 'stpes'"),
        ({"metrics": 5}, WorkerError, "The field 'metrics' of the request"),
        ({"metrics": ["deletion", 5]}, WorkerError, "The field 'metrics' of the request"),
        ({"metrics": {"deletion": 1}}, WorkerError, "The field 'metrics' of the request"),
        ({"metrics": ["deletoin"]}, MetricError, "Did you mean 'deletion'"),
        ({"metrics": "vxap"}, MetricError, r"needs a mask of the evidence \(truth\)\. Give it"),
        ({"metrics": ["density_ratio"]}, MetricError, r"needs segments\. Give it"),
        ({"metric_parameters": {"deletion": 3}}, WorkerError, "The field 'metric_parameters'"),
        ({"metric_parameters": []}, WorkerError, "The field 'metric_parameters' of"),
        ({"metric_parameters": {"road": {}}}, MetricError, "metric_parameters names 'road'"),
        (
            {"metric_parameters": {"deletion": {"steps": 1}}},
            MetricError,
            "steps must be a whole number from 2 to 1000",
        ),
        ({"methods": "gradient"}, WorkerError, "The field 'methods' of the request"),
        ({"methods": [None]}, WorkerError, "The field 'methods' of the request"),
        ({"methods": ["gradient"]}, MethodError, "methods ranks at least two methods"),
        ({"sanity": "maybe"}, MetricError, "no mode 'maybe'. Modes: cascading, independent"),
        ({"sanity": True}, WorkerError, "The field 'sanity' of the request"),
        ({"draws": 0}, MetricError, "draws is a whole number from 1 on; 0 was given"),
        ({"draws": True}, WorkerError, "The field 'draws' of the request"),
        ({"draws": "3"}, WorkerError, "The field 'draws' of the request"),
        ({"explanation": "/nowhere"}, SaliencyExplainError, "'/nowhere' holds no explanation"),
        ({"report": ["x"]}, WorkerError, "The field 'report' of the request"),
        ({"output": 1}, WorkerError, "The field 'output' of the request"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(a_request, changes, kind, words):
    message = request_message(a_request(), "1") | changes
    with pytest.raises(kind, match=words):
        planned(request_from(decode(encode(message))))


@pytest.mark.parametrize("draws", [0, True, "3", 1.5])
def test_draws_are_a_whole_number_from_1(draws):
    with pytest.raises(MetricError, match=f"draws is a whole number from 1 on; {draws!r} was"):
        plan_work(sx.make_method("gradient"), draws=draws)


def test_a_given_map_and_no_metric_is_nothing_to_do(a_request, a_map, tmp_path):
    write_result(tmp_path / "result", a_map)
    given = a_request(explanation=str(tmp_path / "result"), metrics=[])
    with pytest.raises(MetricError, match=r"Nothing is to be measured\. Name some metrics"):
        planned(given)
    work = planned(replace(given, metrics=["sensitivity"], method=""))
    assert work.plan.method.name == "gradient"
    assert "map" not in [step.name for step in work.plan.steps]


def test_a_result_without_a_map_is_refused(a_request, tmp_path):
    write_result(tmp_path / "result", labels=labels())
    with pytest.raises(WorkerError, match=r"The result in .* holds no explanation"):
        planned(a_request(explanation=str(tmp_path / "result")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is not whole"),
        ('{"explanation": null, "regions": null, "label_names": null, "arrays": {}, '
         '"appraisal": {"evaluation": 3}}', "is not whole .*no record of what was found"),
        ("[", "is not whole"),
    ],
)  # fmt: skip
def test_a_result_that_somebody_broke_is_told_in_a_sentence(a_request, tmp_path, text, words):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "result.json").write_text(text)
    with pytest.raises(WorkerError, match=words):
        planned(a_request(explanation=str(tmp_path / "result")))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"metrics": 5}, WorkerError, "The field 'metrics' of the request Evaluate must be"),
        ({"segment_names": {"liver": "3"}}, WorkerError, "segment_names maps the numbers of lab"),
        ({"truth": {"npy": "/no", "ijk_to_ras": []}}, WorkerError, "'/no' cannot be read"),
        ({"method": "grad_cam", "parameters": {"layer": "x"}}, SaliencyExplainError, "no layer"),
        ({"output": "/nowhere/out"}, WorkerError, "could not be written to '/nowhere/out'"),
    ],
)
def test_a_worker_that_refuses_says_so_in_a_sentence_and_goes_on(
    shared, models, tmp_path, changes, kind, words
):
    with worker.JobFolder(tmp_path) as job:
        request = worker.Evaluate(
            a_source(models), job.put("image", a_scan()), QUESTION, job.output(), "gradient", **FEW
        )
        with pytest.raises(kind, match=words) as told:
            shared._ask(replace(request, **changes))
        assert "\n" not in str(told.value)
        shared._ask(request)


def test_a_map_of_another_image_is_refused(shared, models, a_map):
    with pytest.raises(MetricError, match=r"The score is .* was explained\. Give the model"):
        evaluate(shared, a_source(models), explanation=replace(a_map, value=123.0))
    saved = replace(a_map, network_maps=None)
    with pytest.raises(MetricError, match=r"network's grid was not saved.* network_grid=True"):
        evaluate(shared, a_source(models), explanation=saved)


def test_a_report_of_nothing_or_into_nowhere_is_refused(shared, a_map, tmp_path):
    with pytest.raises(SaliencyExplainError, match=r"cannot be written into '/dev/null/x'"):
        shared.report(a_scan(), a_map, "/dev/null/x")
    write_result(tmp_path / "result", labels=labels())
    with worker.JobFolder(tmp_path) as job:
        image = job.put("image", a_scan())
        request = worker.Report(image, str(tmp_path / "result"), str(tmp_path / "page"))
        with pytest.raises(WorkerError, match="The result holds no explanation"):
            shared._ask(request)
        write_result(tmp_path / "whole", a_map)
        with pytest.raises(WorkerError, match="The report needs a folder"):
            shared._ask(worker.Report(image, str(tmp_path / "whole"), ""))
    assert not (tmp_path / "page").exists()


# Cancelling


def test_a_cancelled_evaluation_stops_at_once_and_leaves_nothing(shared, models, tmp_path):
    cancel = Cancel(after=0.3)
    source = a_source(models, "Slow")
    with pytest.raises(Cancelled):
        evaluate(
            shared, source, method="gradient", metrics="usual", metric_parameters={},
            report=tmp_path / "page", cancelled=cancel, progress=cancel.progress,
        )  # fmt: skip
    assert cancel.seconds() < 2
    assert not (tmp_path / "page").exists()
    assert evaluate(shared, a_source(models), method="gradient").appraisal.evaluation is not None


@pytest.mark.parametrize("step", ["map", "ranking", "metrics", "sanity"])
def test_each_step_can_be_cancelled(model, step):
    methods = ("gradient", "input_x_gradient") if step == "ranking" else ()
    plan = plan_work(
        sx.make_method("gradient"), methods, metrics=["deletion", "insertion", "infidelity"],
        sanity="cascading", draws=1,
    )  # fmt: skip
    start, length = plan.shares()[step]
    reached = []

    def cancelled() -> bool:
        return bool(reached) and reached[-1] > start + 0.3 * length

    with pytest.raises(Cancelled):
        sx.quality.appraise(
            plan, model, a_scan().as_image(), TARGET,
            progress=lambda fraction, _: reached.append(fraction), cancelled=cancelled,
        )  # fmt: skip
    assert reached[-1] < start + length + 0.02


# Without torch

PUBLISH = """
import sys
for name in ("torch", "monai", "skimage", "matplotlib"): sys.modules[name] = None
import numpy as np
from SaliencyExplainLib import scene, worker
from SaliencyExplainLib.quality.plan import plan_work
from SaliencyExplainLib.methods import make_method

assert plan_work(make_method("gradient"), sanity="cascading", has_map=True).passes > 20
made = scene.new_scene()
result, found = worker.read_result({map!r}), worker.read_result({found!r})
published = scene.publish(result.explanation, made, show=False)
told = scene.publish_appraisal(found.appraisal, published.volumes[0])
assert told.verdict.headline and told.charts.keys() == {{"deletion", "sanity"}}, told
assert scene.appraisal_from_map(published.volumes[0]).to_dict() == found.appraisal.to_dict()
scene.save_mrb(made, {found!r} + "/a.mrb")
scene.release_scene(made)
"""


def test_what_was_found_is_published_in_a_process_without_torch(shared, models, a_map, tmp_path):
    pytest.importorskip("slicer")
    found = evaluate(shared, a_source(models), explanation=a_map, sanity="cascading", draws=1)
    write_result(tmp_path / "map", a_map)
    write_result(tmp_path / "found", appraisal=found.appraisal)
    code = PUBLISH.format(map=str(tmp_path / "map"), found=str(tmp_path / "found"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_folder_of_a_job_is_known_to_whoever_has_to_remove_it(a_request, tmp_path):
    from SaliencyExplainLib.worker.server import _folder_of

    with worker.JobFolder(tmp_path) as job:
        assert _folder_of(replace(a_request(), output=job.output())) == job.path
        image = a_request().image
        assert _folder_of(worker.Report(image, job.output(), "/page")) == job.path
        # Never a folder of somebody else.
        assert _folder_of(a_request()) is None
        assert _folder_of(worker.Report(image, str(tmp_path / "x"), "/page")) is None
