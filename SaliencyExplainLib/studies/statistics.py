"""How sure a figure of a study is: intervals over cases, paired tests, agreement. Torch-free.

The case (a head, a volume) is the unit: all intervals are 95 % intervals over cases, by drawing
cases with replacement (percentile bootstrap) or, for proportions, by Wilson's formula (1927,
doi:10.1080/01621459.1927.10502953). Tests compare the same cases: sign flips (Fisher), Wilcoxon's
signed ranks with the matched-pairs rank-biserial correlation as the effect (Kerby 2014,
doi:10.2466/11.IT.3.1), McNemar's exact test of two classifiers (1947, doi:10.1007/BF02295996).
Several tests at once are corrected by Holm's method (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Estimate",
    "Paired",
    "bootstrap",
    "classification_scores",
    "holm",
    "interval_of",
    "intraclass_correlation",
    "mcnemar",
    "median",
    "proportion",
    "sign_flip",
    "signed_rank",
]

NAN = math.nan
#: Half width of a 95 percent interval in standard deviations.
_Z = 1.959963984540054
_DRAWS, _FLIPS = 2000, 20000
#: Up to this many differences all patterns of signs are tried.
_EXACT = 13


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes
    ----------
    value, low, high : float
        NaN where it is not defined.
    count : int
        Cases that it rests on.
    """

    value: float
    low: float = NAN
    high: float = NAN
    count: int = 0

    def __str__(self) -> str:
        return "" if math.isnan(self.value) else self.in_words()

    def ends(self, factor: float = 1.0) -> tuple[float, float, float]:
        """Value, low and high, times a factor."""
        return factor * self.value, factor * self.low, factor * self.high

    def in_words(self, form: str = ".3f", factor: float = 1.0, unit: str = "") -> str:
        """Return the figure for a sentence: ``0.71 (0.65 to 0.78)``.

        Parameters
        ----------
        form : str
            Of each number.
        factor : float
            100 for percent.
        unit : str
            Behind the figure itself.
        """
        if math.isnan(self.value):
            return "not defined"
        value, low, high = self.ends(factor)
        return f"{value:{form}}{unit} ({low:{form}} to {high:{form}})"


@dataclass(frozen=True)
class Paired:
    """Two series over the same cases.

    Attributes
    ----------
    difference : Estimate
        Median of first minus second, case by case.
    effect : float
        Rank-biserial correlation, -1 to 1; above 0: the first is larger.
    p : float
        Of Wilcoxon's test, two-sided, not corrected; 1 where all pairs are equal.
    """

    difference: Estimate
    effect: float
    p: float


def bootstrap(
    cases: ArrayLike, seed: int = 0, of: Callable[[NDArray[np.float64]], float] | None = None
) -> Estimate:
    """Measure cases, with the interval over draws of cases.

    Parameters
    ----------
    cases : array_like, shape (n,) or (n, m)
        Cases with a NaN are left out.
    seed : int
        Of the draws.
    of : callable, optional
        Takes cases and returns a figure; the mean of all numbers when left out.

    Returns
    -------
    Estimate
        NaN without cases.
    """
    known = _known(cases)
    if not len(known):
        return Estimate(NAN)
    if of is None:
        flat = known.reshape(len(known), -1).mean(1)
        low, high = interval_of(lambda drawn: flat[drawn].mean(1), len(known), seed)
        return Estimate(float(flat.mean()), low, high, len(known))
    low, high = interval_of(
        lambda drawn: np.array([of(known[one]) for one in drawn]), len(known), seed
    )
    return Estimate(float(of(known)), low, high, len(known))


def median(cases: ArrayLike, seed: int = 0) -> Estimate:
    """Median and its interval; cases without a value are left out."""
    known = _known(cases)
    if not len(known):
        return Estimate(NAN)
    low, high = interval_of(lambda drawn: np.median(known[drawn], axis=1), len(known), seed)
    return Estimate(float(np.median(known)), low, high, len(known))


def interval_of(
    of: Callable[[NDArray[Any]], NDArray[Any]], count: int, seed: int = 0, draws: int = _DRAWS
) -> tuple[float, float]:
    """Ends of the interval of what `of` makes of drawn numbers of cases, shape (draws, count)."""
    found = of(np.random.default_rng(seed).integers(count, size=(draws, count)))
    if not np.isfinite(found).any():
        return NAN, NAN
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def proportion(hits: int, total: int) -> Estimate:
    """Part of hits with Wilson's interval; NaN for none of none."""
    if total == 0:
        return Estimate(NAN)
    part = hits / total
    middle = (part + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z * math.sqrt(part * (1 - part) / total + _Z**2 / (4 * total**2)) / (1 + _Z**2 / total)
    return Estimate(part, max(0.0, middle - half), min(1.0, middle + half), total)


def classification_scores(
    truth: ArrayLike,
    predicted: ArrayLike,
    classes: int = 2,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracy, precision, recall and F1 with 95 percent intervals.

    Parameters
    ----------
    truth, predicted : sequence of int
        Class of each case, 0 to `classes` - 1.
    classes : int
        With 2, precision, recall and F1 are those of class 1; with more, the mean over classes.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to Estimate
        Wilson's intervals for proportions of cases; bootstrap over cases for F1 and for means over
        classes.
    """
    t, p = np.asarray(truth, dtype=int), np.asarray(predicted, dtype=int)
    found = {"accuracy": proportion(int((t == p).sum()), len(t))}
    chance = np.random.default_rng(seed)
    draws = chance.integers(0, len(t), (_DRAWS, len(t)))
    resampled = np.array([_precision_recall_f1(t[one], p[one], classes) for one in draws])
    values = _precision_recall_f1(t, p, classes)
    for name, value, sample in zip(("precision", "recall", "F1"), values, resampled.T, strict=True):
        found[name] = Estimate(value, *_percentiles(sample), len(t))
    if classes == 2:
        both = int(((t == 1) & (p == 1)).sum())
        found["precision"] = proportion(both, int((p == 1).sum()))
        found["recall"] = proportion(both, int((t == 1).sum()))
    return found


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of a mean difference of pairs, were each sign a matter of chance.

    All patterns of signs up to 13 differences, 20000 random ones (and the one found) beyond; so it
    is at least 2 / 2^n. NaN ones are left out.

    Returns
    -------
    float
        NaN for fewer than 2 differences.
    """
    values = _known(differences)
    if len(values) < 2:
        return NAN
    if len(values) <= _EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(values))))
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (_FLIPS, len(values)))
        signs = np.concatenate([np.ones((1, len(values))), 2.0 * drawn - 1.0])
    observed = abs(values.sum()) * (1 - 1e-12)
    return float((np.abs(signs @ values) >= observed).mean())


def signed_rank(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Paired:
    """Compare two series; cases in which either has no value are left out."""
    from scipy.stats import rankdata, wilcoxon

    apart = _known(np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    moved = apart[apart != 0]
    if not moved.size:
        return Paired(median(apart, seed), 0.0, 1.0)
    ranks = rankdata(np.abs(moved))
    effect = float((ranks[moved > 0].sum() - ranks[moved < 0].sum()) / ranks.sum())
    return Paired(median(apart, seed), effect, float(wilcoxon(moved).pvalue))


def mcnemar(right_one: Sequence[bool], right_other: Sequence[bool]) -> float:
    """Two-sided p of the exact test that two classifiers are wrong equally often.

    Parameters
    ----------
    right_one, right_other : sequence of bool
        Whether each is right on each case.

    Returns
    -------
    float
        1 where they never differ.
    """
    a, b = np.asarray(right_one, dtype=bool), np.asarray(right_other, dtype=bool)
    only, other = int((a & ~b).sum()), int((b & ~a).sum())
    patterns = sum(math.comb(only + other, k) for k in range(min(only, other) + 1))
    return min(1.0, 2.0 * patterns / float(2 ** (only + other)))


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p: the chance of any false finding stays below the level; NaN ones stay."""
    known = [index for index, value in enumerate(p) if not math.isnan(value)]
    corrected, largest = [float(one) for one in p], 0.0
    for place, index in enumerate(sorted(known, key=lambda one: p[one])):
        largest = max(largest, min(1.0, (len(known) - place) * float(p[index])))
        corrected[index] = largest
    return corrected


def intraclass_correlation(pairs: ArrayLike) -> float:
    """Agreement of two measurements, absolute and single: ICC(A, 1).

    With the mean squares of a two-way analysis of n cases (rows) and 2 measurements (columns),
    McGraw and Wong 1996, doi:10.1037/1082-989X.1.1.30::

        ICC(A,1) = (MS_r - MS_e) / (MS_r + MS_e + 2 (MS_c - MS_e) / n)

    Parameters
    ----------
    pairs : array_like, shape (n, 2)

    Returns
    -------
    float
        1: equal. NaN for fewer than 2 cases, or where nothing varies.
    """
    values = np.asarray(pairs, dtype=np.float64)
    count = len(values)
    if count < 2:
        return NAN
    rows, columns, mean = values.mean(1), values.mean(0), values.mean()
    by_row = 2 * ((rows - mean) ** 2).sum() / (count - 1)
    by_column = count * ((columns - mean) ** 2).sum()
    rest = ((values - rows[:, None] - columns[None] + mean) ** 2).sum() / (count - 1)
    total = by_row + rest + 2 * (by_column - rest) / count
    return float((by_row - rest) / total) if total > 0 else NAN


def _known(values: ArrayLike) -> NDArray[np.float64]:
    """Cases whose numbers are all finite."""
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        return np.zeros(0)
    return np.asarray(found[np.isfinite(found.reshape(len(found), -1)).all(1)])


def _precision_recall_f1(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> tuple[float, float, float]:
    wanted = [1] if classes == 2 else range(classes)
    rows = []
    for one in wanted:
        is_, called = truth == one, predicted == one
        both = int((is_ & called).sum())
        rows.append(
            (
                _ratio(both, int(called.sum())),
                _ratio(both, int(is_.sum())),
                _ratio(2 * both, int(called.sum() + is_.sum())),
            )
        )
    precision, recall, f1 = (_mean(column) for column in zip(*rows, strict=True))
    return precision, recall, f1


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else NAN


def _mean(values: Sequence[float]) -> float:
    known = [one for one in values if not math.isnan(one)]
    return sum(known) / len(known) if known else NAN


def _percentiles(sample: NDArray[np.float64]) -> tuple[float, float]:
    known = sample[np.isfinite(sample)]
    if len(known) == 0:
        return NAN, NAN
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
