"""The Attribution Quality family on a made-up network that needs evidence outside of its target."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from quality_cases import an_explanation, measured
from references import as_model
from scipy.ndimage import gaussian_filter

import SaliencyExplainLib as sx
from SaliencyExplainLib.quality.attribution_quality import external_peaks, relative_entropy
from SaliencyExplainLib.quality.maps import relative_mask

SIZE = 24
CORE, SPIKES = 3, 2
ONES = np.ones(3)


class Spiculated(torch.nn.Module):
    """Predicts bodies (intensity 1) that have spikes (2) near; other bodies stay background."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = torch.relu(1 - 4 * (x - 1).abs())
        spikes = torch.nn.functional.max_pool3d(torch.relu(x - 1.5), 9, stride=1, padding=4)
        logit = 60 * body * spikes - 15
        return torch.cat([torch.zeros_like(logit), logit], 1)


@pytest.fixture
def labels() -> np.ndarray:
    """A plain body (1), and a core (3) with two spikes (2)."""
    found = np.zeros((SIZE,) * 3)
    found[3:8, 3:8, 3:8] = 1
    found[14:20, 14:20, 14:20] = CORE
    found[9:14, 16:18, 16:18] = SPIKES
    found[16:18, 9:14, 16:18] = SPIKES
    return found


@pytest.fixture
def image(labels: np.ndarray):
    noise = 0.05 * np.random.default_rng(0).normal(size=labels.shape)
    bodies = (labels == 1) | (labels == CORE)
    return sx.make_image(bodies + 2.0 * (labels == SPIKES) + noise, np.eye(4))


@pytest.fixture
def a_case(image, labels):
    model = as_model(Spiculated())
    found = sx.explain(model, image, sx.Target(output=1), "gradient")
    return model, image, found, sx.make_image(labels, np.eye(4))


def quality_of(a_case, voxels: np.ndarray, name: str = "attribution_quality", **options):
    model, image, found, labelmap = a_case
    made = an_explanation(voxels, value=found.value, target=found.target)
    asked = sx.quality.make_metric(name, options)
    return sx.quality.evaluate(made, model, image, [asked], labelmap=labelmap)


def test_an_even_map_has_exactly_one(a_case):
    for constant in (1.0, 0.037, 5e3):
        told = quality_of(a_case, np.full((SIZE,) * 3, constant))
        assert told["attribution_quality"].value == 1.0
        parts = {row.metric.split(".")[1]: row.value for row in told.rows[1:]}
        assert parts == {
            "prediction_preserved": 1.0,
            "relative_entropy": 1.0,
            "relative_foreground": 0.0,
            "external_peaks": 0.0,
        }


def test_the_ideal_map_is_above_one_and_random_ones_are_not(a_case, labels):
    ideal = quality_of(a_case, np.isin(labels, (CORE, SPIKES)).astype(float), peak_mm3=10)
    quality = ideal["attribution_quality"].value
    assert quality > 2
    assert "better than an even map" in ideal.rows[0].reading
    for seed in range(3):
        noise = np.random.default_rng(seed).random(labels.shape)
        assert quality_of(a_case, noise)["attribution_quality"].value < 1.1
    only_core = quality_of(a_case, (labels == CORE).astype(float))
    # Without the spikes the network does not see its prediction.
    assert only_core["attribution_quality.prediction_preserved"].value < 0.1
    plain = quality_of(a_case, (labels == 1).astype(float))
    assert plain["attribution_quality"].value < only_core["attribution_quality"].value < quality


def test_the_score_is_made_of_its_parts(a_case, labels):
    smooth = gaussian_filter(np.isin(labels, (CORE, SPIKES)).astype(float), 1.0)
    smooth += labels == SPIKES
    told = quality_of(a_case, smooth, peak_mm3=5)
    pp, re, rfa, epa = (row.value for row in told.rows[1:])
    assert epa == 1
    assert 0.2 < rfa < 0.9
    assert told.rows[0].value == pytest.approx(pp / re + rfa * (1 + epa))
    mask = smooth / smooth.max()
    expected = mask[labels == CORE].mean() - mask[labels == 0].mean()
    assert rfa == pytest.approx(expected, abs=1 / 255)


def test_preserved_and_excess_prediction_equal_their_formulas(a_case, labels):
    model, image, found, _ = a_case
    # Core and one spike are seen in full; half as bright, the other spike looks like a body.
    first = (np.arange(SIZE) < 15)[:, None, None]
    values = 4.0 * (labels == CORE) + (labels == SPIKES) * np.where(first, 4.0, 2.0)
    values[17:20, 14:20, 14:20] = 1.0
    mask = torch.from_numpy(np.round(values / values.max() * 255) / 255).float()
    x = image.as_tensor()[None]
    with torch.no_grad():
        p, masked = (model.network(one).softmax(1)[0, 1].double() for one in (x, x * mask))
    preserved = float(torch.minimum(p, masked).sum() / p.sum())
    excess = float((masked - p).clamp(min=0).sum() / p.sum())
    made = an_explanation(values, value=found.value, target=found.target)
    assert measured("prediction_preserved", made, model, image) == pytest.approx(preserved)
    assert measured("excess_prediction", made, model, image) == pytest.approx(excess)
    assert 0.05 < preserved < 0.99
    assert excess > 0.01
    kept = measured("image_preserved", made)
    assert kept == pytest.approx(float(mask.mean()), rel=1e-6)


def test_through_windows_the_fused_probability_is_taken(a_case, labels):
    model, image, _found, _ = a_case
    windows = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")
    fused = sx.load_model(model.network, task="segmentation", inferer=windows)
    values = (labels >= SPIKES).astype(float)
    made = sx.explain(fused, image, sx.Target(output=1), "gradient")
    made = replace(made, network_maps=sx.make_image(values, np.eye(4)))
    with torch.no_grad():
        x = image.as_tensor()[None]
        p, masked = (
            windows(one, model.network).softmax(1)[0, 1]
            for one in (x, x * torch.from_numpy(values).float())
        )
    expected = float(torch.minimum(p, masked).sum() / p.sum())
    assert measured("prediction_preserved", made, fused, image) == pytest.approx(expected, rel=1e-5)


def test_the_family_shares_its_two_passes(a_case, labels):
    model, image, found, labelmap = a_case
    made = an_explanation((labels >= SPIKES) + 0.1, value=found.value, target=found.target)
    names = ["prediction_preserved", "excess_prediction", "attribution_quality"]
    told = sx.quality.evaluate(made, model, image, names, labelmap=labelmap)
    assert [told[name].passes for name in names] == [2, 0, 0]


def test_the_fill_shines_through_where_the_map_is_below_one(a_case, labels):
    values = np.full(labels.shape, 0.95)
    values[0, 0, 0] = 1.0
    zero = quality_of(a_case, values, "prediction_preserved").rows[0].value
    blurred = quality_of(a_case, values, "prediction_preserved", fill="blurred").rows[0].value
    assert zero < blurred < 1


def test_relative_entropy_has_no_negative_zeros_and_no_float_tails():
    x = gaussian_filter(np.random.default_rng(0).normal(size=(48, 48, 48)), 2.0)
    top = float(np.abs(x).max())
    empty = relative_entropy(x, x * 0.0, top)
    assert empty < 0.002
    # Zero times a negative number: as floats they would have cost 35 times as much.
    assert np.signbit(x * 0.0).any()
    assert relative_entropy(x, np.zeros_like(x), top) == empty
    grid = np.stack(np.meshgrid(*[np.arange(48) - 23.5] * 3, indexing="ij"))
    soft = np.exp(-(grid**2).sum(0) / (2 * 4.0**2))
    as_floats = len(zlib.compress((x * soft).astype("f").tobytes())) / len(
        zlib.compress(x.astype("f").tobytes())
    )
    assert as_floats > 0.9
    mask = relative_mask(soft, an_explanation(soft))
    np.testing.assert_allclose(mask, np.round(soft / soft.max() * 255) / 255)
    assert relative_entropy(x, x * mask, top) < 0.2


# ------------------------------------------------------------------------------------------------
# External peaks


def boxes(*places: tuple[slice, ...]) -> np.ndarray:
    found = np.zeros((40, 40, 40))
    for place in places:
        found[place] = 1.0
    return found


def cube(start: int, size: int = 5) -> tuple[slice, ...]:
    return (slice(start, start + size),) * 3


NOTHING = np.zeros((40, 40, 40), dtype=bool)


def test_a_peak_on_evidence_hits_and_one_beside_it_misses():
    outside = boxes(cube(10)) > 0
    assert external_peaks(boxes(cube(10)), NOTHING, outside, ONES, 100, 10) == (1.0, 1, 0)
    assert external_peaks(boxes(cube(25)), NOTHING, outside, ONES, 100, 10) == (0.0, 0, 1)
    both = boxes(cube(10), cube(25))
    assert external_peaks(both, NOTHING, outside, ONES, 100, 10) == (0.5, 1, 1)


def test_small_peaks_and_the_target_itself_do_not_count():
    outside, small = boxes(cube(10)) > 0, boxes(cube(10, 4))
    assert external_peaks(small, NOTHING, outside, ONES, 100, 10) == (0.0, 0, 0)
    assert external_peaks(small, NOTHING, outside, ONES, 64, 10) == (1.0, 1, 0)
    # The same voxels are 512 mm3 where a voxel has 8.
    assert external_peaks(small, NOTHING, outside, 2 * ONES, 100, 10) == (1.0, 1, 0)
    target = boxes(cube(10)) > 0
    assert external_peaks(boxes(cube(10)), target, outside, ONES, 100, 10) == (0.0, 0, 0)


def test_a_peak_that_touches_evidence_far_away_or_barely_is_a_miss():
    long = boxes((slice(0, 40), slice(10, 13), slice(10, 13))) > 0
    end = boxes((slice(0, 8), slice(9, 14), slice(9, 14)))
    # The middle of the evidence is 16 mm away.
    assert external_peaks(end, NOTHING, long, ONES, 100, 10) == (0.0, 0, 1)
    assert external_peaks(end, NOTHING, long, ONES, 100, 17) == (1.0, 1, 0)
    barely = boxes((slice(10, 20), slice(10, 15), slice(10, 15)))
    outside = boxes((slice(19, 26), slice(10, 15), slice(10, 15))) > 0
    # A tenth of the peak is evidence, a seventh of the evidence is covered.
    assert external_peaks(barely, NOTHING, outside, ONES, 100, 10) == (0.0, 0, 1)


def test_evidence_that_is_covered_hits_though_the_peak_is_large():
    peak = boxes(cube(10, 8))
    inside = boxes((slice(12, 14), slice(12, 14), slice(12, 14))) > 0
    # 8 of 512 voxels are evidence, but all of the evidence is in the peak.
    assert external_peaks(peak, NOTHING, inside, ONES, 100, 10) == (1.0, 1, 0)
    half = boxes((slice(16, 22), slice(12, 14), slice(12, 14))) > 0
    assert external_peaks(peak, NOTHING, half, ONES, 100, 10)[1:] == (0, 1)
    three = np.zeros_like(half)
    for start in (11, 13, 15):
        three[start, 11, 11] = True
    wide = half | three
    wide[16:22, 15:17, 15:17] = wide[16:22, 10:11, 15:17] = wide[16:22, 15:17, 10:11] = True
    # Four pieces covered to a third, three wholly: the median fails, three covered ones do not.
    assert external_peaks(peak, NOTHING, wide, ONES, 100, 10) == (1.0, 1, 0)


def test_labels_that_are_missing_are_named(a_case):
    told = quality_of(a_case, np.ones((SIZE,) * 3), target_label=7)
    assert told.rows[0].value is None
    assert "no voxel 7 on the map's grid" in told.rows[0].reading
