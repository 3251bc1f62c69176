"""Which method here: ranks, ties, confidence, cost; and rebuilding target and method."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from quality_cases import EVERYWHERE, an_explanation, random_volume, weighted_model
from references import StridedNet, as_model, state_of

import SaliencyExplainLib as sx
from SaliencyExplainLib.demo import demo_model
from SaliencyExplainLib.engine import Engine
from SaliencyExplainLib.errors import Cancelled, MetricError
from SaliencyExplainLib.model import Windows
from SaliencyExplainLib.model.preprocess import Preprocess
from SaliencyExplainLib.quality.shared_ranks import shared_ranks
from SaliencyExplainLib.quality.trial import explicit_target, method_of, target_of
from SaliencyExplainLib.volume import to_ras

METRICS = [
    sx.quality.make_metric("faithfulness_correlation", {"block_mm": 2.0, "sets": 20}),
    sx.quality.make_metric("deletion", {"baseline": "zero", "steps": 4}),
    sx.quality.make_metric("sparseness"),
]


@pytest.fixture
def a_ranking():
    model, image = weighted_model(), random_volume()
    boxes = sx.make_method("occlusion", {"box_mm": 4.0, "stride": 1.0, "baseline": "zero"})
    methods = ["smooth_grad", "input_x_gradient", boxes]
    return sx.quality.rank(model, image, EVERYWHERE, methods, METRICS)


def test_values_that_cannot_be_told_apart_share_their_rank():
    none = [None] * 4
    assert shared_ranks([3.0, 1.0, 2.0, 9.0], none, higher=True).tolist() == [2, 4, 3, 1]
    assert shared_ranks([3.0, 1.0, 2.0, 9.0], none, higher=False).tolist() == [3, 1, 2, 4]
    # A hundredth of the spread is no difference.
    assert shared_ranks([0.0, 0.009, 1.0, 0.5], none, higher=False).tolist() == [1.5, 1.5, 4, 3]
    intervals = [(0.5, 0.9), (0.1, 0.4), (0.6, 1.0), (0.35, 0.45)]
    ranks = shared_ranks([0.7, 0.25, 0.8, 0.4], intervals, higher=True)
    assert ranks.tolist() == [1.5, 3.5, 1.5, 3.5]
    nan = float("nan")
    assert shared_ranks([nan, 1.0, nan, 2.0], none, higher=True).tolist() == [3.5, 2, 3.5, 1]
    assert shared_ranks([nan, nan], [None] * 2, higher=True).tolist() == [1.5, 1.5]


def test_the_right_method_is_first_on_a_network_whose_answer_is_known(a_ranking):
    # Of an additive network input x gradient is the truth.
    best = a_ranking.methods[0]
    assert best.name == "input_x_gradient"
    # Of a linear network SmoothGrad is the gradient: times the image it foretells as well.
    assert best.ranks["faithfulness_correlation"] == 1.5
    assert best.rows["faithfulness_correlation"].value == pytest.approx(1.0, abs=1e-4)
    assert "Best here: Input x gradient (input_x_gradient)" in a_ranking.answer
    assert set(a_ranking.explanations) == {"smooth_grad", "input_x_gradient", "occlusion"}
    means = [one.mean_rank for one in a_ranking.methods]
    assert means == sorted(means)
    for one in a_ranking.methods:
        assert one.mean_rank == pytest.approx(np.mean(list(one.ranks.values())))
        assert one.interval[0] <= one.mean_rank <= one.interval[1]
    assert sum(one.best_share for one in a_ranking.methods) == pytest.approx(1.0)
    assert best.tied
    assert best.passes == 1
    assert best.seconds > 0


def test_a_ranking_is_written_as_csv_json_and_text(a_ranking, tmp_path):
    told = json.loads(a_ranking.save(tmp_path / "rank.json").read_text(encoding="utf-8"))
    assert told["answer"] == a_ranking.answer
    assert set(told["evaluations"]) == set(a_ranking.explanations)
    with a_ranking.save(tmp_path / "rank.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [one.name for one in a_ranking.methods]
    for row, one in zip(rows, a_ranking.methods, strict=True):
        assert float(row["mean_rank"]) == pytest.approx(one.mean_rank, rel=1e-5)
        for name in a_ranking.metrics:
            assert float(row[name]) == pytest.approx(one.rows[name].value, rel=1e-4)
    assert a_ranking.answer in a_ranking.to_text()


def test_one_metric_gives_no_confidence_and_equal_maps_are_tied():
    model, image = weighted_model(), random_volume()
    methods = ["gradient", sx.make_method("smooth_grad", {"noise": 0.0, "samples": 2})]
    found = sx.quality.rank(model, image, EVERYWHERE, methods, ["sparseness"])
    assert [one.mean_rank for one in found.methods] == [1.5, 1.5]
    assert all(one.tied and one.interval is None for one in found.methods)
    assert "One metric alone gives no confidence. Not told apart from it:" in found.answer


def test_a_method_that_fails_is_told_and_does_not_stop_the_others():
    model, image = weighted_model(), random_volume()
    wrong = sx.make_method("grad_cam", {"layer": "nowhere"})
    found = sx.quality.rank(
        model, image, EVERYWHERE, ["gradient", wrong, "input_x_gradient"], ["sparseness"]
    )
    assert {one.name for one in found.methods} == {"gradient", "input_x_gradient"}
    assert found.failed[0][0] == "grad_cam nowhere"
    assert "nowhere" in found.failed[0][1]
    with pytest.raises(MetricError, match="Fewer than two methods could be ranked"):
        sx.quality.rank(model, image, EVERYWHERE, ["gradient", wrong], ["sparseness"])


def test_one_method_with_two_settings_has_two_names():
    model = as_model(StridedNet().eval())
    methods = [sx.make_method("grad_cam", {"layer": layer}) for layer in ("act", "act2")]
    methods += ["gradient", "gradient"]
    found = sx.quality.rank(
        model, random_volume(size=12), sx.Target(output=1), methods, ["sparseness"]
    )
    names = {one.name for one in found.methods}
    assert names == {"grad_cam act", "grad_cam act2", "gradient", "gradient (2)"}


@pytest.mark.parametrize(
    ("methods", "metrics", "message"),
    [
        (["gradient"], None, "at least two methods; 1 was given"),
        (["gradient", "smooth_grad"], [], "at least one metric"),
        (["gradient", "smooth_grad"], ["density_ratio"], "has no better end"),
        (["gradient", "smooth_grad"], "sparseness", r"metrics is a list; give \['sparseness'\]"),
        (["gradient", "smooth_grad"], ["vxap"], "needs a ground truth"),
    ],
)
def test_what_cannot_be_ranked_is_refused(methods, metrics, message):
    with pytest.raises(MetricError, match=message):
        sx.quality.rank(weighted_model(), random_volume(), EVERYWHERE, methods, metrics)


def test_metrics_that_no_map_has_are_left_out_and_none_at_all_refused():
    model, image = weighted_model(), random_volume()
    asked = ["sparseness", sx.quality.make_metric("faithfulness_correlation", {"block_mm": 50.0})]
    found = sx.quality.rank(model, image, EVERYWHERE, ["gradient", "input_x_gradient"], asked)
    assert found.metrics == ("sparseness",)
    assert [name for name, _ in found.undefined] == ["faithfulness_correlation"]
    assert "are none or all" in found.to_text()
    with pytest.raises(MetricError, match="No metric is defined for any of the maps"):
        sx.quality.rank(model, image, EVERYWHERE, ["gradient", "input_x_gradient"], asked[1:])


def test_progress_rises_and_cancelling_leaves_the_network_as_it_was():
    model, image = weighted_model(), random_volume()
    told, before = [], state_of(model.network)
    sx.quality.rank(
        model, image, EVERYWHERE, ["gradient", "input_x_gradient"], ["deletion"],
        progress=lambda fraction, message: told.append((fraction, message)),
    )  # fmt: skip
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {"Gradient, metrics", "Input x gradient"} <= {message for _, message in told}
    asked = iter(range(10**6))
    with pytest.raises(Cancelled):
        sx.quality.rank(
            model, image, EVERYWHERE, ["gradient", "input_x_gradient"], ["deletion"],
            cancelled=lambda: next(asked) > 8,
        )  # fmt: skip
    assert state_of(model.network) == before


def test_a_ground_truth_serves_the_ranking():
    model, image = weighted_model(), random_volume()
    truth = sx.make_image((np.indices((8, 8, 8)).sum(0) < 8).astype(float), np.eye(4))
    found = sx.quality.rank(
        model, image, EVERYWHERE, ["gradient", "input_x_gradient"], ["vxap", "max_f1"], truth=truth
    )
    assert found.metrics == ("vxap", "max_f1")


# ------------------------------------------------------------------------------------------------
# Rebuilding what was explained


@pytest.mark.parametrize(
    "target",
    [
        sx.Target(output=1),
        sx.Target(output=1, score="probability", reduce="sum", contrast=0, contrast_weight=0.5),
        sx.Target(output=1, region="everywhere", score="soft_volume"),
        sx.Target(output=1, instance=1),
    ],
)
def test_target_and_method_are_made_again_from_the_record(target):
    model, image = as_model(StridedNet().eval()), random_volume(size=16)
    method = sx.make_method("smooth_grad", {"samples": 3, "seed": 5})
    found = sx.explain(model, image, target, method)
    assert method_of(found) == method
    again = sx.explain(model, image, target_of(found), method_of(found))
    assert again.value == found.value
    np.testing.assert_array_equal(again.maps.as_tensor(), found.maps.as_tensor())
    told = sx.quality.evaluate(found, model, image, ["off_target_leakage"])
    assert (told.rows[0].value is None) == (target.region == "everywhere")


def test_the_explicit_target_is_the_same_score_on_any_image():
    model, image = as_model(StridedNet().eval()), random_volume(size=12)
    target = sx.Target(output=1, score="probability", contrast="runner_up", contrast_weight=2.0)
    engine, other = Engine(model, image, target), random_volume(seed=4, size=12)
    with engine.running():
        same = explicit_target(engine.frozen, other)
        twin = Engine(model, other, same)
        with twin.running():
            expected = engine.value(other.as_tensor()[None])
            assert twin.start_value == pytest.approx(expected, rel=1e-6)
            assert bool((twin.frozen.mask == engine.frozen.mask).all())


def test_an_evaluation_of_a_loaded_explanation_is_that_of_the_run(tmp_path):
    model, image = as_model(StridedNet().eval()), random_volume(size=12)
    found = sx.explain(model, image, sx.Target(output=1), "gradient")
    found.save(tmp_path, network_grid=True)
    loaded = sx.Explanation.load(tmp_path)
    names = ["deletion", "sparseness", "sensitivity"]
    first = sx.quality.evaluate(found, model, image, names)
    second = sx.quality.evaluate(loaded, model, image, names)
    for row, other in zip(first.rows, second.rows, strict=True):
        assert other.value == pytest.approx(row.value, rel=1e-5)
    alone = replace(loaded, network_maps=None)
    with pytest.raises(MetricError, match="was not saved"):
        sx.quality.evaluate(alone, model, image, names)
    assert an_explanation(np.ones((3, 3, 3))).network_map.shape == (1, 3, 3, 3)


@pytest.mark.slow
def test_a_real_head_is_evaluated_through_windows(real_data):
    """Every usual metric of the demo's network on a piece of a real scan, in windows of 32."""
    head = sx.read_image(real_data / "volumes" / "t1_head.nii.gz")
    model = replace(demo_model(), inferer=Windows((32, 32, 32), (0.25, 0.25, 0.25), "gaussian"))
    network = model.prepare(head)
    shape = network.shape[1:]
    cut = tuple(slice(size // 2 - 20, size // 2 + 20) for size in shape)
    affine = network.affine.numpy().copy()
    affine[:3, 3] = to_ras(affine, [side.start for side in cut])
    piece = sx.make_image(network.as_tensor()[(slice(None), *cut)], affine)
    model = replace(model, preprocess=Preprocess())
    labels = sx.predict(model, piece)
    target, before = sx.Target(output="white matter"), state_of(model.network)
    found = sx.explain(model, piece, target, "gradient")
    truth = sx.make_image((labels.as_tensor() == 3).float(), labels.affine)
    told = sx.quality.evaluate(
        found, model, piece, truth=truth, labelmap=labels, names=dict(enumerate(model.labels))
    )
    assert told.skipped == ()
    values = {row.metric: row.value for row in told.rows}
    assert [name for name, value in values.items() if value is None] == ["completeness"]
    assert values["faithfulness_correlation"] > 0.3
    assert values["density_ratio.white matter"] > 1
    assert state_of(model.network) == before
