"""Intervals, paired tests and agreement, against SciPy, textbooks and counting."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from SaliencyExplainLib.studies.statistics import (
    Estimate,
    bootstrap,
    classification_scores,
    holm,
    intraclass_correlation,
    mcnemar,
    median,
    proportion,
    sign_flip,
    signed_rank,
)


def test_wilson_s_interval_has_its_textbook_values():
    found = proportion(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert proportion(0, 10).low == 0.0
    assert math.isnan(proportion(0, 0).value)


def test_scores_are_those_of_the_confusion_matrix():
    truth = [1] * 10 + [0] * 10
    called = [1] * 8 + [0] * 2 + [1] * 3 + [0] * 7
    found = classification_scores(truth, called)
    assert found["accuracy"].value == pytest.approx(15 / 20)
    assert found["precision"].value == pytest.approx(8 / 11)
    assert found["recall"].value == pytest.approx(8 / 10)
    assert found["F1"].value == pytest.approx(16 / 21)
    assert found["precision"] == proportion(8, 11)
    assert found["F1"].low < 16 / 21 < found["F1"].high
    assert classification_scores(truth, called) == found
    several = classification_scores([0, 1, 2, 2], [0, 2, 2, 2], 3)
    assert several["recall"].value == pytest.approx((1 + 0 + 1) / 3)
    assert several["precision"].value == pytest.approx((1 + 2 / 3) / 2)
    assert several["F1"].value == pytest.approx((1 + 0 + 0.8) / 3)


def test_mcnemar_counts_only_where_the_two_differ():
    one = [True] * 9 + [False] * 1 + [True] * 50
    other = [False] * 9 + [True] * 1 + [True] * 50
    assert mcnemar(one, other) == pytest.approx(float(Fraction(2 * (1 + 10), 2**10)))
    assert mcnemar(one, one) == 1.0


def test_sign_flips_are_exact_for_few_differences_and_near_it_for_many():
    assert sign_flip([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    assert sign_flip([1.0, -1.0]) == 1.0
    assert sign_flip([1.0] * 13 + [float("nan")]) == pytest.approx(2 / 2**13)
    many = list(np.random.default_rng(0).normal(0.5, 1.0, 40))
    from scipy.stats import wilcoxon

    assert sign_flip(many) == pytest.approx(float(wilcoxon(many).pvalue), abs=0.02)
    assert math.isnan(sign_flip([1.0]))


def test_the_mean_s_interval_covers_and_leaves_out_what_is_not_known():
    values = list(np.random.default_rng(1).normal(2.0, 1.0, 60))
    found = bootstrap([*values, float("nan")])
    assert found.value == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / 60**0.5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)
    assert math.isnan(bootstrap([]).value)


def test_holm_s_adjustment_is_step_down_and_skips_nan():
    assert holm([0.01, 0.04, float("nan"), 0.03]) == pytest.approx(
        [0.03, 0.06, float("nan"), 0.06], nan_ok=True
    )
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_corrects_as_in_the_textbook():
    # Holm 1979: the smallest times 4, the next times 3 ..., never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_differences_have_wilcoxons_p_and_the_rank_biserial_effect():
    chance = np.random.default_rng(0)
    one, other = chance.normal(0.4, 1, 30), chance.normal(0, 1, 30)
    found = signed_rank(one, other)
    assert found.p == pytest.approx(stats.wilcoxon(one, other).pvalue)
    assert found.difference.value == pytest.approx(np.median(one - other))
    assert found.difference.low < found.difference.value < found.difference.high
    # Ranks 1 and 3 for the first, 2 for the second: (4 - 2) / 6.
    assert signed_rank([1, 0, 3], [0, 2, 0]).effect == pytest.approx(1 / 3)
    assert signed_rank([2.0, 3.0], [1.0, 1.0]).effect == 1
    assert signed_rank(one, one).p == 1
    assert signed_rank([1.0, np.nan, 2.0], [0.0, 0.0, np.nan]).difference.count == 1


def test_a_median_knows_its_interval_and_leaves_out_what_is_not_known():
    found = median([1.0, np.nan, 2.0, 3.0])
    assert (found.value, found.count) == (2.0, 3)
    assert (found.low, found.high) == (1.0, 3.0)
    assert str(median([])) == ""
    wide = np.random.default_rng(1).normal(size=400)
    told = median(wide)
    # The 95 % interval of a median from order statistics, ranks n/2 +- 1.96 sqrt(n)/2.
    assert told.low == pytest.approx(np.sort(wide)[180], abs=0.02)
    assert told.high == pytest.approx(np.sort(wide)[220], abs=0.02)


def test_a_bootstrap_of_a_figure_of_its_own_keeps_a_case_together():
    chance = np.random.default_rng(3)
    first = chance.normal(size=50)
    pairs = np.stack([first, first + 0.1 * chance.normal(size=50)], axis=1)
    found = bootstrap([*pairs, (math.nan, 1.0)], of=lambda cases: np.corrcoef(cases.T)[0, 1])
    assert found.value == pytest.approx(np.corrcoef(pairs.T)[0, 1])
    assert found.count == 50
    # Drawn apart, the columns would not correlate.
    assert 0.98 < found.low < found.value < found.high < 1


def test_a_figure_is_told_with_its_interval_and_unit():
    found = Estimate(0.714, 0.651, 0.782)
    assert str(found) == "0.714 (0.651 to 0.782)"
    assert found.in_words(".0f", 100, " %") == "71 % (65 to 78)"
    assert (str(Estimate(math.nan)), Estimate(math.nan).in_words()) == ("", "not defined")


def test_the_intraclass_correlation_has_its_published_value():
    # Shrout and Fleiss 1979, table 2, judges 1 and 4: the two-way analysis written out.
    pairs = np.array([(9, 8), (6, 6), (8, 9), (7, 7), (10, 9), (6, 5)], dtype=float)
    count = len(pairs)
    mean = pairs.mean()
    rows = 2 * sum((row.mean() - mean) ** 2 for row in pairs) / (count - 1)
    columns = count * sum((column.mean() - mean) ** 2 for column in pairs.T)
    whole = ((pairs - mean) ** 2).sum()
    rest = (whole - rows * (count - 1) - columns) / (count - 1)
    expected = (rows - rest) / (rows + rest + 2 * (columns - rest) / count)
    assert intraclass_correlation(pairs) == pytest.approx(expected)
    assert intraclass_correlation([(1, 1), (2, 2), (4, 4)]) == pytest.approx(1)
    # A constant offset costs agreement, which a correlation would not see.
    assert intraclass_correlation([(1, 2), (2, 3), (4, 5)]) < 0.9
    assert math.isnan(intraclass_correlation([(1, 1)]))
    assert math.isnan(intraclass_correlation([(1, 1), (1, 1)]))


def test_the_intraclass_correlation_counts_a_bias():
    truth = np.random.default_rng(0).normal(3, 2, 400)
    variance = truth.var(ddof=1)
    assert intraclass_correlation(np.column_stack([truth, truth])) == pytest.approx(1)
    # With a bias c and no other error, ICC(A, 1) is 2 var / (2 var + c^2).
    biased = np.column_stack([truth, truth + 1.5])
    assert intraclass_correlation(biased) == pytest.approx(2 * variance / (2 * variance + 1.5**2))
    other = np.random.default_rng(1).normal(3, 2, 400)
    assert abs(intraclass_correlation(np.column_stack([truth, other]))) < 0.12
    assert math.isnan(intraclass_correlation(np.ones((5, 2))))
    assert math.isnan(intraclass_correlation(np.ones((1, 2))))
