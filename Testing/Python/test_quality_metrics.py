"""Metrics of the map alone, against formulas written again, sklearn and exact values."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from quality_cases import (
    an_explanation,
    measured,
    of_weighted,
    random_volume,
    true_parts,
    weighted_model,
)
from references import as_model, counted_runs
from sklearn.metrics import average_precision_score, f1_score

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import MetricError
from SaliencyExplainLib.quality import base
from SaliencyExplainLib.quality.complexity import entropy, gini
from SaliencyExplainLib.quality.localisation import precision_recall, rank_inside
from SaliencyExplainLib.quality.maps import evidence, ranking, smooth_random, smoothness
from SaliencyExplainLib.quality.segments import blocks_of, bootstrap_density, density_ratios
from SaliencyExplainLib.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(sx.quality.metrics())
EVERY_METRIC = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def a_map() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(9, 8, 7))


@pytest.fixture
def a_mask() -> np.ndarray:
    mask = np.zeros((9, 8, 7), dtype=bool)
    mask[2:6, 3:6, 1:4] = True
    return mask


def image_of(mask: np.ndarray, affine: np.ndarray | None = None) -> object:
    return sx.make_image(mask.astype(np.float32), np.eye(4) if affine is None else affine)


# ------------------------------------------------------------------------------------------------
# Declarations


def test_the_metrics_that_were_promised_are_there():
    wanted = {
        "prediction_preserved",
        "image_preserved",
        "excess_prediction",
        "relative_entropy",
        "attribution_quality",
        "deletion",
        "insertion",
        "road",
        "faithfulness_correlation",
        "infidelity",
        "sensitivity",
        "completeness",
        "effective_complexity",
        "sparseness",
        "off_target_leakage",
        "pointing_game",
        "relevance_mass",
        "relevance_rank",
        "vxap",
        "max_f1",
        "density_ratio",
        "repeatability_noise",
        "repeatability_shift",
    }
    assert wanted <= set(NAMES)


@EVERY_METRIC
def test_every_metric_says_what_it_is_and_what_it_costs(name):
    cls = sx.quality.metrics()[name]
    assert cls.name == name
    for text in (cls.title, cls.family, cls.summary, cls.paper, cls.scale, cls.unit):
        assert text.strip() == text != ""
    assert cls.summary.endswith("?")
    assert cls.direction in base.DIRECTIONS
    assert set(cls.needs) <= set(base.NEEDS)
    made = sx.quality.make_metric(name)
    assert made.passes() >= (1 if cls.reruns else 0)
    card = sx.quality.describe_metric(name)
    assert name in card
    assert base.DIRECTIONS[cls.direction] in card
    for one in fields(cls):
        assert one.metadata["help"] in card
    json.dumps(made.parameters())


def test_a_metric_with_reruns_says_so_on_its_card():
    assert "3 runs of the method" in sx.quality.describe_metric("sensitivity")
    assert "1 pass at most" in sx.quality.describe_metric("completeness")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("delletion", {}, "There is no metric 'delletion'. Did you mean 'deletion'"),
        ("deletion", {"step": 3}, "has no parameter 'step'. Did you mean 'steps'"),
        ("sparseness", {"a": 3}, "has no parameter 'a'. It has none"),
        ("deletion", {"steps": 1}, "steps must be a whole number from 2 to 1000"),
        ("deletion", {"steps": "many"}, "steps must be a whole number"),
        ("deletion", {"ordinate": "auc"}, "must be one of score, probability, dice"),
    ],
)
def test_a_wrong_name_or_parameter_is_refused(name, parameters, message):
    with pytest.raises(MetricError, match=message.replace("(", r"\(")):
        sx.quality.make_metric(name, parameters)


def test_texts_of_a_shell_become_parameters():
    made = sx.quality.make_metric("deletion", {"steps": "4", "control": "no"})
    assert (made.steps, made.control) == (4, False)


def test_a_name_that_is_taken_is_refused(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", {})

    def declare():
        facts = dict.fromkeys(("title", "family", "summary", "paper", "scale"), "x")

        @base.metric("one", direction="higher", **facts)
        @dataclass(frozen=True)
        class One(base.Metric):
            pass

        return One

    cls = declare()
    with pytest.raises(MetricError, match="Two metrics are called 'one'"):
        declare()
    with pytest.raises(MetricError, match="does not say how it measures"):
        cls().measure(None)


def test_listing_metrics_and_measuring_a_map_alone_import_no_torch():
    code = """
import sys
import numpy as np
import SaliencyExplainLib as sx
for name in sx.quality.metrics():
    sx.quality.describe_metric(name)
    sx.quality.make_metric(name).passes()
from SaliencyExplainLib.volume import Volume
maps = Volume(np.random.default_rng(0).normal(size=(6, 6, 6)), np.eye(4))
told = dict(value=1.0, target={}, method="gradient", title="Gradient", parameters={}, signed=True)
first = sx.Explanation(maps=maps, network_maps=maps, **told)
other = Volume(maps.voxels**3, maps.affine)
second = sx.Explanation(maps=other, network_maps=other, **told)
truth = Volume(np.ones((6, 6, 6)) * (np.arange(6) < 2), np.eye(4))
found = sx.quality.evaluate(first, truth=truth, labelmap=truth)
assert found["relevance_mass"].value > 0 and found["density_ratio"].value > 0
sx.quality.compare({"a": first, "b": second})
print(*[name for name in ("torch", "monai") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == ([], "")


# ------------------------------------------------------------------------------------------------
# Evidence and order


def test_slopes_count_by_magnitude_and_other_maps_by_their_positive_part():
    values = np.array([[[-2.0, 0.0, 1.0]]])
    slopes = an_explanation(values, unit="score / intensity")
    parts = an_explanation(values)
    assert evidence(values, slopes).ravel().tolist() == [2, 0, 1]
    assert evidence(values, parts).ravel().tolist() == [0, 0, 1]
    assert evidence(values, parts, "absolute").ravel().tolist() == [2, 0, 1]
    with pytest.raises(MetricError, match="has no positive value, so it names no evidence"):
        evidence(-(values**2), parts)


def test_the_order_is_by_value_and_random_among_equal_voxels():
    values = np.zeros(1000)
    values[[7, 500]] = [1.0, 2.0]
    order = ranking(values, seed=0)
    assert order[:2].tolist() == [500, 7]
    assert sorted(order.tolist()) == list(range(1000))
    # In the order of memory the first hundred zeros would lie in the first tenth.
    assert 300 < order[2:102].mean() < 700


@pytest.mark.parametrize("sigma", [(0.8, 1.5, 3.0), (2.0, 2.0, 2.0)])
def test_the_smoothness_of_a_random_field_is_found_again(sigma):
    field = smooth_random((64, 64, 64), np.array(sigma), seed=3)
    np.testing.assert_allclose(smoothness(field), sigma, rtol=0.12)


def test_white_noise_and_a_constant_have_the_least_smoothness(a_map):
    assert smoothness(a_map).max() < 0.6
    assert smoothness(np.ones((4, 4, 1))).tolist() == [0.3] * 3


# ------------------------------------------------------------------------------------------------
# Spread


def test_sparseness_and_complexity_of_extreme_maps_are_exact():
    single, even = np.zeros(100), np.full(100, -3.0)
    single[4] = -7
    assert gini(single) == pytest.approx(0.99)
    assert gini(even) == pytest.approx(0.0, abs=1e-12)
    assert entropy(single) == 0.0
    assert entropy(even) == pytest.approx(np.log(100))


def test_sparseness_equals_the_mean_absolute_difference_of_all_pairs(a_map):
    sizes = np.abs(a_map.ravel())
    expected = np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean())
    assert measured("sparseness", an_explanation(a_map)) == pytest.approx(expected, rel=1e-6)


def test_complexity_equals_scipys_entropy(a_map):
    from scipy.stats import entropy as reference

    expected = reference(np.abs(a_map.ravel()))
    assert measured("complexity", an_explanation(a_map)) == pytest.approx(expected, rel=1e-6)


def test_effective_complexity_counts_voxels_above_a_part_of_the_maximum():
    values = np.array([[[-10.0, 1.5, 1.0, 0.5, 6.0]]])
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    found = an_explanation(values, affine=affine)
    assert measured("effective_complexity", found) == 3
    assert measured("effective_complexity", found, epsilon=0.55) == 2
    row = sx.quality.evaluate(found, metrics=["effective_complexity"]).rows[0]
    assert row.details["volume_ml"] == pytest.approx(0.03)


# ------------------------------------------------------------------------------------------------
# Ground truth


def test_relevance_mass_and_rank_equal_their_formulas(a_map, a_mask):
    found, truth = an_explanation(a_map), image_of(a_mask)
    positive = np.maximum(a_map, 0)
    mass = positive[a_mask].sum() / positive.sum()
    assert measured("relevance_mass", found, truth=truth) == pytest.approx(mass, rel=1e-6)
    sizes = np.abs(a_map)
    both = measured("relevance_mass", found, truth=truth, part="absolute")
    assert both == pytest.approx(sizes[a_mask].sum() / sizes.sum(), rel=1e-6)
    top = np.argsort(-positive.ravel())[: a_mask.sum()]
    rank = a_mask.ravel()[top].mean()
    assert measured("relevance_rank", found, truth=truth) == pytest.approx(rank)


def test_voxels_of_equal_value_count_as_the_mean_of_their_orders():
    values = np.array([3.0, 1.0, 1.0, 1.0, 0.0])
    mask = np.array([False, True, True, False, False])
    # The first place is a miss, the second one of three equal voxels of which two are right.
    assert rank_inside(values, mask) == pytest.approx((2 / 3) / 2)


def test_vxap_equals_sklearns_average_precision(a_map, a_mask):
    coarse = np.maximum(np.round(a_map * 4) / 4, 0)
    found = measured("vxap", an_explanation(coarse), truth=image_of(a_mask))
    expected = average_precision_score(a_mask.ravel(), coarse.ravel())
    assert found == pytest.approx(expected, rel=1e-6)


def test_max_f1_equals_the_best_of_sklearns(a_map, a_mask):
    values = np.maximum(a_map, 0)
    found = measured("max_f1", an_explanation(a_map), truth=image_of(a_mask))
    best = max(f1_score(a_mask.ravel(), values.ravel() >= cut) for cut in np.unique(values))
    assert found == pytest.approx(best, rel=1e-6)


def test_a_perfect_map_has_the_best_values(a_mask):
    found = an_explanation(a_mask.astype(float))
    for name in ("relevance_mass", "relevance_rank", "vxap", "max_f1", "pointing_game"):
        assert measured(name, found, truth=image_of(a_mask)) == pytest.approx(1.0)
    precision, recall, _ = precision_recall(np.ones(8), np.arange(8) < 2)
    assert (precision.tolist(), recall.tolist()) == ([0.25], [1.0])


def test_the_pointing_game_measures_in_mm(a_mask):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    values = np.zeros(a_mask.shape)
    values[3, 4, 5] = 2.0  # two voxels of 3 mm beyond the mask
    found, truth = an_explanation(values, affine=affine), image_of(a_mask, affine)
    assert measured("pointing_game", found, truth=truth) == 0
    assert measured("pointing_game", found, truth=truth, tolerance_mm=5.9) == 0
    assert measured("pointing_game", found, truth=truth, tolerance_mm=6.0) == 1
    row = sx.quality.evaluate(found, metrics=["pointing_game"], truth=truth).rows[0]
    assert row.details["peak_ras_mm"] == [3.0, 4.0, 15.0]
    assert "6.0 mm from the ground truth" in row.reading


def test_of_several_maxima_the_part_that_hits_counts(a_mask):
    values = np.zeros(a_mask.shape)
    values[2, 3, 1] = values[8, 7, 6] = values[0, 0, 0] = 1.0
    found = measured("pointing_game", an_explanation(values), truth=image_of(a_mask))
    assert found == pytest.approx(1 / 3)


def test_a_ground_truth_on_another_grid_is_taken_by_world_position(a_map, a_mask):
    shift = np.eye(4)
    shift[:3, 3] = (2, 3, 1)
    cut = image_of(a_mask[2:, 3:, 1:], shift)
    found = an_explanation(a_map)
    whole = measured("relevance_mass", found, truth=image_of(a_mask))
    assert measured("relevance_mass", found, truth=cut) == pytest.approx(whole)
    shift[:3, 3] = 100
    row = sx.quality.evaluate(
        found, metrics=["relevance_mass"], truth=image_of(a_mask, shift)
    ).rows[0]
    assert row.value is None
    assert "no voxel above 0 inside the map" in row.reading


# ------------------------------------------------------------------------------------------------
# Segments


def test_density_ratios_are_those_of_the_region_table(a_map):
    labels = np.zeros(a_map.shape)
    labels[:3], labels[5:] = 1, 4
    found, labelmap = an_explanation(a_map), image_of(labels)
    names = {1: "left", 4: "right"}
    table = sx.region_table(found, labelmap, names)
    chosen = [sx.quality.make_metric("density_ratio", {"block_mm": 2})]
    told = sx.quality.evaluate(found, metrics=chosen, labelmap=labelmap, names=names)
    for name in ("left", "right"):
        row = told[f"density_ratio.{name}"]
        assert row.value == pytest.approx(table[name].density_ratio, rel=1e-5)
        assert row.interval[0] < row.value < row.interval[1]
    densest = max(("left", "right"), key=lambda name: table[name].density_ratio)
    assert told.rows[0].value == told[f"density_ratio.{densest}"].value
    assert densest in told.rows[0].reading


def test_the_interval_of_a_density_ratio_holds_the_truth_in_95_of_100_volumes():
    # Independent blocks: the ratio is truly 1 and the bootstrap's promise can be counted.
    labels = np.zeros((16, 16, 16), dtype=int)
    labels[:8] = 1
    blocks = blocks_of(labels.shape, np.array([2.0, 2.0, 2.0]))
    hits, widths = 0, []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        sizes = np.kron(generator.exponential(size=(8, 8, 8)), np.ones((2, 2, 2)))
        lows, highs = bootstrap_density(sizes, labels, [1], blocks, 300, seed)
        hits += lows[0] <= 1 <= highs[0]
        widths.append(highs[0] - lows[0])
    assert 88 <= hits <= 99
    # Delta method: m1 / ((m1 + m2) / 2) of two means over 256 blocks of spread 1.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.5 / 256), rel=0.1)


def test_blocks_as_large_as_the_pattern_give_wider_intervals_than_voxels():
    generator = np.random.default_rng(1)
    sizes = np.kron(generator.exponential(size=(4, 4, 4)), np.ones((4, 4, 4)))
    labels = np.zeros(sizes.shape, dtype=int)
    labels[:8] = 1
    widths = []
    for edge in (1.0, 4.0):
        blocks = blocks_of(labels.shape, np.full(3, edge))
        lows, highs = bootstrap_density(sizes, labels, [1], blocks, 400, 0)
        widths.append(highs[0] - lows[0])
    # 64 voxels a block: the interval is about sqrt(64) wider.
    assert 5 < widths[1] / widths[0] < 12
    assert density_ratios(sizes, labels, [1])[0] == pytest.approx(sizes[:8].mean() / sizes.mean())


def test_too_few_blocks_give_no_interval(a_map):
    labels = np.zeros(a_map.shape)
    labels[:3], labels[8, 7, 6] = 1, 2
    for edge, known in ((16.0, []), (2.0, [1])):
        chosen = [sx.quality.make_metric("density_ratio", {"block_mm": edge})]
        told = sx.quality.evaluate(an_explanation(a_map), metrics=chosen, labelmap=image_of(labels))
        for label in (1, 2):
            row = told[f"density_ratio.segment {label}"]
            assert (row.interval is not None) == (label in known)
            assert ("too few for an interval" in row.reading) == (label not in known)


def test_blocks_are_boxes_of_the_wanted_edge():
    blocks = blocks_of((4, 3, 2), np.array([2.0, 0.2, 5.0]))
    assert blocks.max() + 1 == 2 * 3 * 1
    assert (blocks[0] == blocks[1]).all()
    assert (blocks[1] != blocks[2]).all()


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        (np.zeros((4, 4, 4)), np.ones((4, 4, 4)), "No segment lies inside the map"),
        (np.ones((4, 4, 4)), np.zeros((4, 4, 4)), "zero everywhere"),
    ],
)
def test_a_segment_without_voxels_or_a_map_without_values_says_so(labels, values, message):
    found = sx.quality.evaluate(
        an_explanation(values), metrics=["density_ratio"], labelmap=image_of(labels)
    )
    assert found.rows[0].value is None
    assert message in found.rows[0].reading


def test_leakage_is_what_lies_outside_the_region():
    image = random_volume()
    model = weighted_model()
    mask = torch.zeros(1, 8, 8, 8)
    mask[0, :4] = 1
    target = sx.Target(output=1, segment=sx.make_image(mask, np.eye(4)))
    found = sx.explain(model, image, target, "gradient")
    inside = found.network_map.as_tensor()[0][:4].abs().sum()
    told = sx.quality.evaluate(found, model, image, ["off_target_leakage"], target)
    assert float(inside) > 0
    assert told.rows[0].value == pytest.approx(0.0, abs=1e-6)
    even = replace(found, network_maps=sx.make_image(np.ones((8, 8, 8)), np.eye(4)))
    told = sx.quality.evaluate(even, model, image, ["off_target_leakage"], target)
    assert told.rows[0].value == pytest.approx(0.5)
    assert told["off_target_leakage.density_ratio"].value == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------
# Completeness


def test_completeness_of_the_true_parts_is_zero_and_of_twice_them_one():
    image, model = random_volume(), weighted_model()
    parts = true_parts(model, image)
    for factor, expected in ((1.0, 0.0), (2.0, 1.0), (0.5, 0.5)):
        found = of_weighted(model, image, factor * parts)
        error = measured("completeness", found, model, image)
        assert error == pytest.approx(expected, abs=1e-5)


def test_completeness_takes_the_error_that_the_method_measured_itself():
    image, model = random_volume(), weighted_model()
    found = sx.explain(
        model, image, sx.Target(output=1, region="everywhere"), "integrated_gradients"
    )
    with counted_runs(model.network) as runs:
        told = measured("completeness", found, model, image)
    assert told == found.completeness_error
    assert len(runs) == 1  # to freeze the region


def test_slopes_have_no_sum_to_keep():
    image, model = random_volume(), weighted_model()
    found = sx.explain(model, image, sx.Target(output=1, region="everywhere"), "gradient")
    row = sx.quality.evaluate(found, model, image, ["completeness"]).rows[0]
    assert row.value is None
    assert "no parts of the score" in row.reading


# ------------------------------------------------------------------------------------------------
# The evaluation itself


def test_without_a_model_the_metrics_of_the_map_are_measured_and_the_others_named(a_map, a_mask):
    told = sx.quality.evaluate(an_explanation(a_map), truth=image_of(a_mask))
    measured_names = {row.metric for row in told.rows}
    assert {"sparseness", "relevance_mass", "pointing_game"} <= measured_names
    skipped = dict(told.skipped)
    assert "needs the model and the image" in skipped["deletion"]
    assert "needs segments" in skipped["density_ratio"]


def test_a_metric_that_was_named_and_lacks_something_is_refused(a_map):
    with pytest.raises(MetricError, match=r"Deletion curve needs the model and the image"):
        sx.quality.evaluate(an_explanation(a_map), metrics=["deletion"])
    with pytest.raises(MetricError, match=r"needs a ground truth of the evidence"):
        sx.quality.evaluate(an_explanation(a_map), metrics=["vxap"])
    with pytest.raises(MetricError, match=r"metrics is a list; give \['vxap'\]"):
        sx.quality.evaluate(an_explanation(a_map), metrics="vxap")


def test_an_evaluation_is_written_as_csv_and_json(a_map, a_mask, tmp_path):
    truth = image_of(a_mask)
    told = sx.quality.evaluate(an_explanation(np.zeros_like(a_map)), truth=truth)
    assert all(row.value is None for row in told.rows)
    told = sx.quality.evaluate(an_explanation(a_map), truth=truth, labelmap=truth)
    json.loads(told.save(tmp_path / "a" / "quality.json").read_text(encoding="utf-8"))
    with told.save(tmp_path / "quality.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == [row.metric for row in told.rows]
    assert float(rows[0]["value"]) == pytest.approx(told.rows[0].value, rel=1e-5)
    assert "higher is better" in {row["direction"] for row in rows}
    assert told.rows[0].reading in told.to_text()
    with pytest.raises(MetricError, match=r"must end in \.json or \.csv"):
        told.save(tmp_path / "quality.txt")
    with pytest.raises(MetricError, match="'deletion' was not measured"):
        _ = told["deletion"]


def test_one_metric_may_be_asked_twice_with_other_parameters(a_map):
    asked = [
        sx.quality.make_metric("effective_complexity"),
        sx.quality.make_metric("effective_complexity", {"epsilon": 0.5}),
    ]
    told = sx.quality.evaluate(an_explanation(a_map), metrics=asked)
    first, second = told["effective_complexity"], told["effective_complexity[epsilon=0.5]"]
    assert first.value > second.value


def test_another_model_image_or_target_than_the_explained_one_is_refused():
    image, model = random_volume(), weighted_model()
    found = of_weighted(model, image, true_parts(model, image))
    with pytest.raises(MetricError, match=r"The score is .* here, but .* was explained"):
        sx.quality.evaluate(found, model, random_volume(seed=5), ["completeness"])
    small = weighted_model(size=6)
    with pytest.raises(MetricError, match=r"The map has \(8, 8, 8\) voxels on the network's grid"):
        sx.quality.evaluate(found, small, random_volume(size=6), ["completeness"])
    drawn = replace(found, target={**found.target, "region": "segment"})
    with pytest.raises(MetricError, match="region is a segment, which its record does not hold"):
        sx.quality.evaluate(drawn, model, image, ["completeness"])
    unsaved = replace(found, network_maps=None)
    with pytest.raises(MetricError, match="network_grid=True"):
        sx.quality.evaluate(unsaved, model, image, ["completeness"])


def test_maps_of_a_volume_without_torch_give_the_same_values(a_map, a_mask):
    with_torch = an_explanation(a_map)
    volume = Volume(a_map, np.eye(4))
    without = replace(with_torch, maps=volume, network_maps=volume)
    truth = image_of(a_mask)
    for name in ("vxap", "sparseness"):
        options = {"truth": truth} if name == "vxap" else {}
        assert measured(name, without, **options) == measured(name, with_torch, **options)


def test_a_regression_has_no_probability_to_preserve():
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3, 4))

    image = sx.make_image(random_volume().as_tensor() + 1, np.eye(4))
    model = as_model(Mean(), task="regression", activation="none")
    found = sx.explain(model, image, sx.Target(), "gradient")
    told = sx.quality.evaluate(
        found,
        model,
        image,
        ["prediction_preserved", "off_target_leakage", "deletion"],
    )
    assert [row.value is None for row in told.rows[:3]] == [True, True, False]
    assert "needs probabilities; this network gives a value" in told.rows[0].reading
    assert "no region" in told.rows[1].reading
