"""Similarity of maps against scipy and scikit-image, and the comparison of explanations."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_cases import an_explanation
from skimage.metrics import structural_similarity

import SaliencyExplainLib as sx
from SaliencyExplainLib.errors import MetricError, MissingPackageError
from SaliencyExplainLib.quality import pearson, spearman, ssim, top_k_iou


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(10, 9, 8))
    return one, one + generator.normal(size=one.shape)


def test_rank_correlation_equals_scipys_with_ties_and_mask(pair):
    one, other = (np.round(values * 2) for values in pair)
    expected = scipy.stats.spearmanr(one.ravel(), other.ravel()).statistic
    assert spearman(one, other) == pytest.approx(expected)
    mask = one > -1
    expected = scipy.stats.spearmanr(one[mask], other[mask]).statistic
    assert spearman(one, other, mask) == pytest.approx(expected)
    expected = scipy.stats.spearmanr(abs(one).ravel(), abs(other).ravel()).statistic
    assert spearman(one, other, absolute=True) == pytest.approx(expected)
    expected = scipy.stats.pearsonr(one.ravel(), other.ravel()).statistic
    assert pearson(one, other) == pytest.approx(expected)


def test_ssim_equals_scikit_image_on_scaled_magnitudes(pair):
    scaled = [np.clip(abs(one) / np.percentile(abs(one), 99.9), 0, 1) for one in pair]
    mean, full = structural_similarity(*scaled, data_range=1.0, win_size=7, full=True)
    assert ssim(*pair) == pytest.approx(mean)
    mask = pair[0] > 0
    assert ssim(*pair, mask) == pytest.approx(full[mask].mean())
    small = [one[:4, :4, :4] for one in pair]
    assert ssim(*small) < 1
    assert ssim(pair[0][None], pair[1][None]) == ssim(*pair)


def test_the_overlap_of_the_highest_voxels_is_counted():
    one = np.array([9.0, -8.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    other = np.array([9.0, 0.5, 1.0, -8.0, 0.0, 0.0, 0.0, 0.0])
    assert top_k_iou(one, other, fraction=0.25) == pytest.approx(1 / 3)
    assert top_k_iou(one, other, fraction=0.5) == 1.0
    # Zeros are never among the highest, however many are wanted.
    few = np.array([0.0, -8.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    assert top_k_iou(one, few, fraction=1.0) == pytest.approx(3 / 4)
    assert top_k_iou(one, other, np.arange(8) < 4, fraction=0.25) == 1.0


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
@settings(max_examples=30, deadline=None)
def test_each_measure_is_symmetric_within_its_range_and_one_for_a_map_itself(seed, scale):
    generator = np.random.default_rng(seed)
    one, other = generator.normal(size=(2, 5, 6, 7))
    for measure in (spearman, top_k_iou, ssim):
        value = measure(one, other)
        assert -1 <= value <= 1
        assert value == pytest.approx(measure(other, one))
        assert measure(one, scale * one) == pytest.approx(1.0)


def test_a_constant_map_has_no_similarity(pair):
    zero, even = np.zeros_like(pair[0]), np.ones_like(pair[0])
    assert np.isnan(spearman(pair[0], even))
    assert np.isnan(top_k_iou(pair[0], zero))
    assert np.isnan(ssim(pair[0], zero))
    assert np.isnan(spearman(pair[0], pair[1], np.zeros(zero.shape, dtype=bool)))


def test_what_cannot_be_compared_is_refused(pair, monkeypatch):
    with pytest.raises(MetricError, match=r"Two maps of one shape are needed"):
        spearman(pair[0], pair[1][:-1])
    with pytest.raises(MetricError, match="fraction must lie above 0"):
        top_k_iou(*pair, fraction=0.0)
    with pytest.raises(MetricError, match="SSIM needs at least 3 voxels"):
        ssim(pair[0][:2], pair[1][:2])
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingPackageError, match=r"pip install scikit-image"):
        ssim(*pair)


# ------------------------------------------------------------------------------------------------
# Comparison


@pytest.fixture
def three(pair) -> dict[str, sx.Explanation]:
    return {
        "one": an_explanation(pair[0]),
        "other": an_explanation(pair[1]),
        "one again": an_explanation(3 * pair[0]),
    }


def test_a_comparison_has_a_matrix_a_measure(three, pair, tmp_path):
    found = sx.quality.compare(three)
    assert found.names == tuple(three)
    assert set(found.matrices) == {"spearman", "top_k_iou", "ssim"}
    assert found["spearman"][0, 1] == pytest.approx(spearman(*pair), rel=1e-5)
    for matrix in found.matrices.values():
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(np.diag(matrix), 1.0)
        assert matrix[0, 2] == pytest.approx(1.0)
    assert found.pairs("spearman")[0][:2] == ("one", "one again")
    assert "Spearman rank correlation" in found.to_text()
    told = json.loads(found.save(tmp_path / "c.json").read_text(encoding="utf-8"))
    assert told["matrices"]["ssim"][1][0] == pytest.approx(found["ssim"][1, 0])
    with found.save(tmp_path / "c.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9
    with pytest.raises(MetricError, match="'pearson' was not compared"):
        _ = found["pearson"]


def test_a_mask_restricts_the_comparison(three, pair):
    mask = np.zeros(pair[0].shape)
    mask[:5] = 1
    found = sx.quality.compare(three, ["spearman"], mask=sx.make_image(mask, np.eye(4)))
    inside = spearman(pair[0][:5], pair[1][:5])
    assert found["spearman"][0, 1] == pytest.approx(inside, rel=1e-5)
    with pytest.raises(MetricError, match="no voxel above 0"):
        sx.quality.compare(three, mask=sx.make_image(0 * mask, np.eye(4)))


def test_explanations_without_names_get_some_that_differ(pair):
    first = an_explanation(pair[0], method="grad_cam", layers=("body.3",))
    second = replace(first, layers=("body.5",))
    third = replace(first, target={**first.target, "output_name": "tumour"})
    found = sx.quality.compare([first, second, first])
    assert found.names == ("grad_cam body.3", "grad_cam body.5", "grad_cam body.3 (2)")
    assert "tumour" in sx.quality.compare([first, third]).names[1]


def test_maps_on_other_grids_are_compared_only_when_that_is_said(pair):
    shift = np.eye(4)
    shift[:3, 3] = (1, 0, 0)
    one = an_explanation(pair[0])
    moved = an_explanation(pair[0][1:], affine=shift)
    with pytest.raises(MetricError, match=r"lies on another grid .*labelmaps=.*resample=True"):
        sx.quality.compare({"a": one, "b": moved})
    found = sx.quality.compare({"a": one, "b": moved}, ["spearman"], resample=True)
    expected = pair[0].copy()
    expected[0] = 0  # where the second map did not look
    assert found["spearman"][0, 1] == pytest.approx(spearman(pair[0], expected), abs=1e-4)
    assert "Resampled onto the grid of 'a': b." in found.notes


def test_subjects_are_compared_by_their_segments(pair):
    generator = np.random.default_rng(4)

    def subject(shape: tuple[int, ...], strength: list[float]) -> tuple:
        labels = np.resize(np.arange(6), shape)
        values = np.array(strength)[labels] * (1 + 0.01 * generator.random(shape))
        return an_explanation(values), sx.make_image(labels.astype(float), np.eye(4))

    rising = [0.5, 1.0, 2.0, 3.0, 4.0, 5.0]
    subjects = [
        subject((6, 6, 6), rising),
        subject((9, 8, 7), rising),
        subject((6, 7, 12), rising[::-1]),
    ]
    found = sx.quality.compare(
        {str(index): one for index, (one, _) in enumerate(subjects)},
        labelmaps=[labelmap for _, labelmap in subjects],
    )
    assert set(found.matrices) == {"segment_profile"}
    assert found["segment_profile"][0].tolist() == pytest.approx([1.0, 1.0, -1.0])
    assert "compared by segments only" in found.notes[0]
    with pytest.raises(MetricError, match="2 explanations need as many label maps; 1 were given"):
        sx.quality.compare([subjects[0][0]] * 2, labelmaps=[subjects[0][1]])


def test_fewer_than_two_maps_or_an_unknown_measure_are_refused(three):
    with pytest.raises(MetricError, match="at least two maps; 1 was given"):
        sx.quality.compare({"one": three["one"]})
    with pytest.raises(MetricError, match=r"no measure 'cosine'\. There are: spearman"):
        sx.quality.compare(three, ["cosine"])


def test_without_scikit_image_ssim_is_left_out_and_said(three, monkeypatch):
    monkeypatch.setattr(
        "SaliencyExplainLib.quality.similarity.importlib.util.find_spec", lambda name: None
    )
    found = sx.quality.compare(three)
    assert set(found.matrices) == {"spearman", "top_k_iou"}
    assert found.notes == ("Without scikit-image SSIM was left out.",)
