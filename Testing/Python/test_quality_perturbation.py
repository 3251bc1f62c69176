"""Metrics that perturb the image, against exact values, dense solvers, brute force and Captum."""

from __future__ import annotations

import captum.metrics
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from quality_cases import (
    EVERYWHERE,
    SIZE,
    Weighted,
    a_trial,
    an_explanation,
    measured,
    of_weighted,
    random_volume,
    true_parts,
    weighted_model,
)
from references import StridedNet, as_model, counted_runs, state_of

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import Cancelled, MetricError
from SaliencyExplainLib.quality.correlation import fisher_interval, infidelities
from SaliencyExplainLib.quality.curves import area_under
from SaliencyExplainLib.quality.imputing import NOISE, impute, neighbour_weights
from SaliencyExplainLib.quality.outputs import predicted_mask

WINDOWS = SlidingWindowInferer((12, 12, 12), overlap=0.5, mode="gaussian")


@pytest.fixture
def a_case():
    """A Weighted network, its image, and the explanation that is right."""
    image, model = random_volume(), weighted_model()
    return model, image, of_weighted(model, image, true_parts(model, image))


# ------------------------------------------------------------------------------------------------
# Curves


def exact_curve(parts: np.ndarray, order: np.ndarray, steps: int, *, inserts: bool) -> np.ndarray:
    """The curve of a Weighted network with a zero baseline: sums of its parts."""
    done = np.concatenate([[0.0], np.cumsum(parts.ravel()[order])])
    at = [round(order.size * step / steps) for step in range(steps + 1)]
    gone = done[at] / parts.sum()
    return gone if inserts else 1 - gone


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_a_curve_of_an_additive_network_is_the_sum_of_its_parts(a_case, name):
    model, image, found = a_case
    parts = true_parts(model, image)
    order = np.argsort(-np.maximum(parts, 0).ravel(), kind="stable")
    # Up to the last positive voxel the order is certain; zeros of the evidence come at random.
    positive = int((parts > 0).sum())
    asked = sx.quality.make_metric(name, {"steps": 8, "baseline": "zero"})
    row = sx.quality.evaluate(found, model, image, [asked]).rows[0]
    exact = exact_curve(parts, order, 8, inserts=name == "insertion")
    certain = sum(round(order.size * step / 8) <= positive for step in range(9))
    assert certain >= 3
    np.testing.assert_allclose(row.details["curve"][:certain], exact[:certain], rtol=1e-4)
    np.testing.assert_allclose(row.details["curve"][-1], exact[-1], atol=1e-5)
    assert row.value == pytest.approx(np.trapezoid(row.details["curve"], dx=1 / 8))
    assert row.details["percent"] == [12.5 * step for step in range(9)]


def test_the_true_map_beats_its_control_and_its_opposite_does_not(a_case):
    model, image, found = a_case
    opposite = of_weighted(model, image, -true_parts(model, image))
    for name, better in (("deletion", np.less), ("insertion", np.greater)):
        told = sx.quality.evaluate(found, model, image, [name])
        control = told[f"{name}.control"]
        assert better(told[name].value, control.value)
        assert "better than a random map as smooth" in told[name].reading
        wrong = sx.quality.evaluate(opposite, model, image, [name])
        assert better(told[name].value, wrong[name].value)
        assert "no better than a random map as smooth" in wrong[name].reading


def test_the_area_is_that_of_trapezoids():
    assert area_under([1.0, 0.0]) == 0.5
    assert area_under([1.0, 1.0, 0.0]) == 0.75


@pytest.mark.parametrize("inferer", [None, WINDOWS], ids=["whole", "windows"])
def test_all_three_ordinates_equal_brute_force(inferer):
    model = sx.load_model(StridedNet().eval(), task="segmentation", inferer=inferer)
    image = random_volume(size=16)
    found = sx.explain(model, image, sx.Target(output=1), "gradient")
    asked = [
        sx.quality.make_metric(
            "deletion", {"ordinate": one, "steps": 4, "baseline": "zero", "control": False}
        )
        for one in ("score", "probability", "dice")
    ]
    told = sx.quality.evaluate(found, model, image, asked)
    sizes = found.network_map.as_tensor()[0].abs().flatten()
    order = torch.argsort(-sizes, stable=True)
    x, curves = image.as_tensor()[None], [[], [], []]
    for step in range(5):
        gone = x.clone().flatten()
        gone[order[: round(order.numel() * step / 4)]] = 0
        volume = gone.view(x.shape)
        with torch.no_grad():
            run = model.network if inferer is None else lambda y: WINDOWS(y, model.network)
            output, first = run(volume), run(x)
        mask, now = first[0].argmax(0) == 1, output[0].argmax(0) == 1
        curves[0].append(float(output[0, 1][mask].mean()))
        curves[1].append(float(output.softmax(1)[0, 1][mask].mean()))
        curves[2].append(2 * float((mask & now).sum()) / float(mask.sum() + now.sum()))
    scores = np.array(curves[0])
    curves[0] = ((scores - scores[-1]) / (scores[0] - scores[-1])).tolist()
    assert len({row.metric for row in told.rows}) == 3
    for row, expected in zip(told.rows, curves, strict=True):
        np.testing.assert_allclose(row.details["curve"], expected, rtol=1e-3, atol=1e-4)


def test_ordinates_of_one_evaluation_share_their_passes(a_case):
    model, image, found = a_case
    asked = [
        sx.quality.make_metric("deletion", {"ordinate": one, "steps": 4})
        for one in ("score", "probability")
    ]
    told = sx.quality.evaluate(found, model, image, asked)
    assert told.rows[0].passes > 1
    assert told.rows[2].passes == 0


def test_a_curve_between_equal_scores_has_no_shape():
    image, model = random_volume(), as_model(Weighted(np.zeros((SIZE,) * 3)))
    found = an_explanation(np.ones((SIZE,) * 3))
    row = sx.quality.evaluate(found, model, image, ["deletion"]).rows[0]
    assert row.value is None
    assert "baseline changes the score too little (from 0 to 0)" in row.reading


def test_a_baseline_that_scores_higher_than_the_image_is_refused():
    image = random_volume()
    model = as_model(Weighted(-image.as_tensor().numpy()[0]))
    found = of_weighted(model, image, np.ones((SIZE,) * 3))
    asked = [sx.quality.make_metric("insertion", {"baseline": "zero"})]
    row = sx.quality.evaluate(found, model, image, asked).rows[0]
    assert row.value is None
    assert "zero baseline raises the score (from -" in row.reading
    asked = [sx.quality.make_metric("insertion", {"baseline": "zero", "ordinate": "probability"})]
    assert sx.quality.evaluate(found, model, image, asked).rows[0].value is not None


def test_a_baseline_that_hardly_lowers_the_score_is_refused():
    class Offset(torch.nn.Module):
        """The image moves the mean logit of 5 by 0.05, and single voxels by 1."""

        def forward(self, x):
            return torch.cat([0 * x, 5 + x], 1)

    voxels = random_volume().as_tensor()
    for mean, defined in ((0.05, False), (0.5, True)):
        image = sx.make_image(voxels - voxels.mean() + mean, np.eye(4))
        target = sx.Target(output=1, region="everywhere")
        found = sx.explain(as_model(Offset()), image, target, "input_x_gradient")
        asked = [sx.quality.make_metric("deletion", {"baseline": "zero"})]
        row = sx.quality.evaluate(found, as_model(Offset()), image, asked).rows[0]
        assert (row.value is not None) == defined
        assert defined or "changes the score too little (from 5.05 to 5)" in row.reading


def test_dice_needs_voxels_and_a_prediction():
    class Zero(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x * 0 + 1, x * 0], 1)

    asked = [sx.quality.make_metric("deletion", {"ordinate": "dice", "steps": 2})]
    found = an_explanation(np.ones((SIZE,) * 3))
    row = sx.quality.evaluate(found, as_model(Zero()), random_volume(), asked).rows[0]
    assert "predicts no voxel of the explained output" in row.reading


# ------------------------------------------------------------------------------------------------
# ROAD


def test_neighbours_weigh_as_stated_and_sum_to_one():
    weights = neighbour_weights()
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[1, 1, 1]) == 0
    assert float(weights[0, 1, 1]) == 2 * float(weights[0, 0, 1]) == 2 * float(weights[0, 0, 0])
    assert int((weights == 1 / 16).sum()) == 6


def dense_imputation(x: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The linear system with all its unknowns, solved directly."""
    where = np.argwhere(removed)
    number = {tuple(place): index for index, place in enumerate(where)}
    matrix, right = np.eye(len(where)), np.zeros(len(where))
    for row, place in enumerate(where):
        weights, values = [], []
        for step in np.ndindex(3, 3, 3):
            other = tuple(place + np.array(step) - 1)
            apart = int(np.abs(np.array(step) - 1).sum())
            if apart and all(0 <= one < size for one, size in zip(other, x.shape, strict=True)):
                weights.append(2.0 if apart == 1 else 1.0)
                values.append(other)
        for weight, other in zip(np.array(weights) / sum(weights), values, strict=True):
            if other in number:
                matrix[row, number[other]] -= weight
            else:
                right[row] += weight * x[other]
    filled = x.copy()
    filled[removed] = np.linalg.solve(matrix, right)
    return filled


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_imputation_solves_the_linear_system(part):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 7, 6, 5))
    removed = generator.random((7, 6, 5)) < part
    filled = impute(
        torch.from_numpy(x)[None].float(), torch.from_numpy(removed), torch.Generator()
    )[0].numpy()
    for channel in range(2):
        expected = dense_imputation(x[channel], removed)
        scale = x[channel].std()
        noise = (filled[channel] - expected)[removed]
        assert np.abs(noise).max() < 5 * NOISE * scale
        if part > 0.4:
            assert noise.std() == pytest.approx(NOISE * scale, rel=0.3)
        np.testing.assert_array_equal(filled[channel][~removed], x[channel][~removed].astype("f"))


def test_a_ramp_is_imputed_as_a_ramp():
    # A weighted mean over symmetric neighbours reproduces what is linear, away from the border.
    ramp = torch.arange(12.0).view(1, 1, 12, 1, 1).expand(1, 1, 12, 12, 12).contiguous()
    removed = torch.zeros(12, 12, 12, dtype=torch.bool)
    removed[3:9, 3:9, 3:9] = True
    filled = impute(ramp, removed, torch.Generator().manual_seed(0))
    assert float((filled - ramp).abs().max()) < 5 * NOISE * float(ramp.std())
    assert float((filled - ramp).abs().max()) > 0


def test_a_large_gap_is_solved_and_an_empty_one_changes_nothing():
    x = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    gap = torch.zeros(24, 24, 24, dtype=torch.bool)
    assert torch.equal(impute(x, gap, torch.Generator()), x)
    gap[1:] = True  # the whole volume but one slice
    filled = impute(x, gap, torch.Generator())
    assert torch.isfinite(filled).all()
    with pytest.raises(MetricError, match="Every voxel would be removed"):
        impute(x, torch.ones_like(gap), torch.Generator())


def test_imputing_can_be_stopped():
    def stop():
        raise Cancelled("stopped")

    x = torch.randn(1, 1, 8, 8, 8)
    gap = torch.zeros(8, 8, 8, dtype=torch.bool)
    gap[2:6] = True
    with pytest.raises(Cancelled):
        impute(x, gap, torch.Generator(), stop)


def test_road_is_half_the_mean_difference_of_imputed_scores(a_case):
    model, image, found = a_case
    asked = sx.quality.make_metric("road", {"steps": 3, "control": False})
    row = sx.quality.evaluate(found, model, image, [asked]).rows[0]
    parts = np.maximum(true_parts(model, image), 0).ravel()
    weights = model.network.weights.detach().numpy()
    order = np.argsort(-parts, kind="stable")
    x = image.as_tensor().numpy()[0].astype(float)
    for step, (most, least) in enumerate(
        zip(row.details["most_relevant_first"], row.details["least_relevant_first"], strict=True)
    ):
        count = round(parts.size * (step + 1) / 4)
        if count > (parts > 0).sum():
            continue
        removed = np.zeros(parts.size, dtype=bool)
        removed[order[:count]] = True
        expected = (weights * dense_imputation(x, removed.reshape(x.shape))).sum()
        assert most == pytest.approx(expected, abs=6 * NOISE * float(np.linalg.norm(weights)))
        assert least > most
    lists = row.details["least_relevant_first"], row.details["most_relevant_first"]
    assert row.value == pytest.approx(np.mean(np.subtract(*lists)) / 2)
    assert row.details["percent"] == [25.0, 50.0, 75.0]


def test_road_of_the_true_map_beats_a_random_one_as_smooth(a_case):
    model, image, found = a_case
    told = sx.quality.evaluate(found, model, image, ["road"])
    assert told["road"].value > 3 * abs(told["road.control"].value)
    assert "; better than a random map as smooth" in told["road"].reading
    few = an_explanation(np.ones((2, 2, 2)), value=0.0)
    small = as_model(Weighted(np.ones((2, 2, 2))))
    empty = sx.make_image(np.zeros((2, 2, 2)), np.eye(4))
    row = sx.quality.evaluate(few, small, empty, ["road"]).rows[0]
    assert "8 voxels are too few for 5 percentages" in row.reading


# ------------------------------------------------------------------------------------------------
# Correlation and infidelity


@pytest.mark.parametrize("block_mm", [0.0, 2.0])
def test_the_true_parts_foretell_every_change(a_case, block_mm):
    model, image, found = a_case
    options = {"sets": 12, "block_mm": block_mm, "baseline": "zero"}
    r = measured("faithfulness_correlation", found, model, image, **options)
    assert r == pytest.approx(1.0, abs=1e-6)
    assert measured("infidelity", found, model, image, **options) == pytest.approx(0.0, abs=1e-6)
    opposite = of_weighted(model, image, -true_parts(model, image))
    r = measured("faithfulness_correlation", opposite, model, image, **options)
    assert r == pytest.approx(-1.0, abs=1e-6)


def test_a_gradient_is_multiplied_by_the_change_of_the_image():
    model, image = weighted_model(), random_volume()
    slopes = sx.explain(model, image, EVERYWHERE, "gradient")
    for baseline in ("zero", "blurred", "minimum"):
        options = {"sets": 8, "baseline": baseline, "block_mm": 2}
        found = measured("faithfulness_correlation", slopes, model, image, **options)
        assert found == pytest.approx(1.0, abs=1e-5)
        lost = measured("infidelity", slopes, model, image, **options)
        assert lost == pytest.approx(0.0, abs=1e-5)


def test_the_predicted_mask_is_that_of_the_network(unet):
    image = random_volume(size=16)
    for activation in ("softmax", "sigmoid"):
        model = as_model(unet, activation=activation)
        target = sx.Target(output=1, region="everywhere")
        found = sx.explain(model, image, target, "gradient")
        with a_trial(found, model, image, target) as trial, torch.no_grad():
            output = unet(image.as_tensor()[None])
            mask = predicted_mask(output, trial.frozen, "A test")
        if activation == "softmax":
            expected = output[0].argmax(0) == 1
            # Of three classes the largest may have less than one half.
            assert bool((expected & (output.softmax(1)[0, 1] < 0.5)).any())
        else:
            expected = output[0, 1].sigmoid() > 0.5
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("inferer", [None, WINDOWS], ids=["whole", "windows"])
def test_correlation_and_infidelity_equal_brute_force_and_captum(inferer):
    model = sx.load_model(StridedNet().eval(), task="segmentation", inferer=inferer)
    image, target = random_volume(size=16), sx.Target(output=1)
    found = sx.explain(model, image, target, "gradient")
    options = {"sets": 10, "hidden": 30.0, "block_mm": 4.0, "baseline": "zero", "seed": 3}
    asked = [
        sx.quality.make_metric(name, options) for name in ("faithfulness_correlation", "infidelity")
    ]
    told = sx.quality.evaluate(found, model, image, asked)
    with a_trial(found, model, image, target) as trial:
        sets = list(asked[0]._sets(trial))
        mask = trial.frozen.mask
    assert {int(one.sum()) for one in sets} == {round(0.3 * 64) * 64}
    x = image.as_tensor()[None]

    def score(volume: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            run = model.network(volume) if inferer is None else WINDOWS(volume, model.network)
        return run[:, 1][:, mask].mean(1)

    a = found.network_maps.as_tensor()
    foretold = np.array([float((a * x[0])[0][torch.from_numpy(one)].sum()) for one in sets])
    changes = np.array([float(score(x) - score(x * ~torch.from_numpy(one))) for one in sets])
    r = np.corrcoef(foretold, changes)[0, 1]
    assert told["faithfulness_correlation"].value == pytest.approx(r, abs=1e-4)
    waiting = iter(sets)

    def perturb(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        change = inputs * torch.from_numpy(next(waiting))
        return change, inputs - change

    theirs = captum.metrics.infidelity(
        score, perturb, x, a[None], n_perturb_samples=len(sets), max_examples_per_batch=1
    )
    assert told["infidelity"].value == pytest.approx(float(theirs), rel=1e-3)
    waiting = iter(sets)
    normal = captum.metrics.infidelity(
        score, perturb, x, a[None], n_perturb_samples=len(sets), max_examples_per_batch=1,
        normalize=True,
    )  # fmt: skip
    scaled = float(normal) / (changes**2).mean()
    assert told["infidelity.scaled"].value == pytest.approx(scaled, rel=1e-3)
    # The second metric had all it needs.
    assert told["infidelity"].passes == 0


def test_the_scaled_infidelity_does_not_depend_on_the_maps_unit():
    generator = np.random.default_rng(0)
    foretold, changes = generator.normal(size=(2, 40))
    plain, scaled = infidelities(foretold, changes)
    assert plain == pytest.approx(((foretold - changes) ** 2).mean())
    assert infidelities(1e3 * foretold, changes)[1] == pytest.approx(scaled)
    uncentred = (foretold * changes).sum() ** 2 / ((foretold**2).sum() * (changes**2).sum())
    assert scaled == pytest.approx(1 - uncentred)
    assert infidelities(0 * foretold, changes)[1] == pytest.approx(1.0)
    assert np.isnan(infidelities(foretold, 0 * changes)[1])


def test_the_interval_of_a_correlation_is_fishers():
    from scipy.stats import pearsonr

    generator = np.random.default_rng(1)
    a = generator.normal(size=30)
    b = a + generator.normal(size=30)
    found = pearsonr(a, b)
    expected = found.confidence_interval(0.95)
    ours = fisher_interval(found.statistic, 30)
    assert ours == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert fisher_interval(0.5, 3) == (-1.0, 1.0)


def test_sets_that_change_nothing_or_hide_nothing_say_so(a_case):
    model, image, found = a_case
    asked = [sx.quality.make_metric("faithfulness_correlation", {"block_mm": 8.0})]
    row = sx.quality.evaluate(found, model, image, asked).rows[0]
    assert "20 % of 1 blocks of 8 mm are none or all" in row.reading
    even = of_weighted(model, image, np.ones((SIZE,) * 3))
    asked = [sx.quality.make_metric("faithfulness_correlation", {"block_mm": 2.0})]
    row = sx.quality.evaluate(even, model, image, asked).rows[0]
    assert row.value is None
    assert "map's sums do not differ" in row.reading


# ------------------------------------------------------------------------------------------------
# Cost, cancelling, traces


def test_only_windows_that_reach_the_region_are_run():
    network = StridedNet().eval()
    model = sx.load_model(network, task="segmentation", inferer=WINDOWS)
    image = random_volume(size=24)
    target = sx.Target(output=1, region="point", point_ras_mm=(2.0, 2.0, 2.0))
    found = sx.explain(model, image, target, "gradient")
    windows = 27
    asked = [sx.quality.make_metric("deletion", {"steps": 4, "control": False})]
    with counted_runs(network) as runs:
        told = sx.quality.evaluate(found, model, image, asked, target)
    # The sweep that fixes the region, and one window for each of four images.
    assert len(runs) <= windows + 5
    assert told.rows[0].passes <= 5 / windows + 1e-6


@pytest.mark.parametrize(
    "name", ["deletion", "insertion", "road", "faithfulness_correlation", "prediction_preserved"]
)
def test_no_more_passes_are_computed_than_announced(name):
    network = StridedNet().eval()
    model = sx.load_model(network, task="segmentation")
    image = random_volume(size=16)
    found = sx.explain(model, image, sx.Target(output=1), "gradient")
    with counted_runs(network) as runs:
        told = sx.quality.evaluate(found, model, image, [name])
    # Two more: the region, and the perturber's own check of its partial passes.
    announced = sx.quality.make_metric(name).passes()
    assert told.rows[0].passes <= announced + 2
    assert len(runs) <= announced + 3


def test_progress_rises_to_one_and_names_the_metrics(a_case):
    model, image, found = a_case
    told = []
    sx.quality.evaluate(
        found, model, image, ["deletion", "sparseness", "road"],
        progress=lambda fraction, message: told.append((fraction, message)),
    )  # fmt: skip
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(set(fractions)) > 10
    assert {"Deletion curve", "Sparseness", "ROAD"} <= {message for _, message in told}


@pytest.mark.parametrize("after", [0, 3, 30])
def test_a_cancelled_evaluation_leaves_the_network_as_it_was(a_case, after):
    model, image, found = a_case
    before, asked = state_of(model.network), iter(range(10**6))
    with pytest.raises(Cancelled):
        sx.quality.evaluate(
            found, model, image, ["sparseness", "deletion", "road", "sensitivity"],
            cancelled=lambda: next(asked) >= after,
        )  # fmt: skip
    assert state_of(model.network) == before


def test_an_evaluation_leaves_the_network_and_the_image_as_they_were():
    network = StridedNet().train()
    model = sx.load_model(network, task="segmentation")
    image = random_volume(size=16)
    found = sx.explain(model, image, sx.Target(output=1), "gradient")
    before, voxels = state_of(network), image.as_tensor().clone()
    maps = found.maps.as_tensor().clone()
    sx.quality.evaluate(
        found, model, image, ["deletion", "road", "sensitivity", "repeatability_shift"]
    )
    assert state_of(network) == before
    assert torch.equal(image.as_tensor(), voxels)
    assert torch.equal(found.maps.as_tensor(), maps)
