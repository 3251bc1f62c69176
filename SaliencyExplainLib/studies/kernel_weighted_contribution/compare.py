"""The published experiment, on any model and cases: which layers, which method.

:func:`compare_layer_sets` explains each case by each method over each set of layers, measures the
maps (Attribution Quality with its parts, and whether the highest voxels are those of the known
evidence), and compares them case by case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import StudyError
from ...quality.shares import Shares
from ..results import StudyTable
from ..statistics import Estimate, Paired, holm, interval_of, median, signed_rank
from .layer_sets import LayerSet, layer_sets
from .measures import METRICS, layer_set_maps, made_methods, measured, published_target

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ...methods import Method
    from ...model import Model
    from ...target import Target

__all__ = ["METHODS", "LayerSetComparison", "Test", "compare_layer_sets"]

#: As published; the first is compared with the others.
METHODS = ("kernel_weighted_contribution", "grad_cam", "grad_cam_plus_plus", "score_cam")
#: Corrected chance below which a difference counts.
LEVEL = 0.05


@dataclass(frozen=True)
class Test:
    """One paired comparison of Attribution Quality.

    Attributes
    ----------
    set, method : str
        The first of the pair.
    other_set, other_method : str
        The second.
    found : Paired
    p : float
        Corrected for all tests of the comparison (Holm).
    """

    set: str
    method: str
    other_set: str
    other_method: str
    found: Paired
    p: float

    @property
    def outcome(self) -> str:
        """Which of both is better: "first", "second", or "alike" where they are not told apart."""
        if self.p >= LEVEL or self.found.effect == 0:
            return "alike"
        return "first" if self.found.effect > 0 else "second"


@dataclass(frozen=True)
class LayerSetComparison:
    """What was measured over all cases.

    Attributes
    ----------
    sets : tuple of LayerSet
    methods : mapping of name to title
        The first is compared with each other one on the same layers, and its sets with each other.
    rows : tuple of mapping
        One a case: ``"set/method"`` to the values of :data:`METRICS`.
    """

    sets: tuple[LayerSet, ...]
    methods: Mapping[str, str]
    rows: tuple[Mapping[str, Mapping[str, float]], ...]

    def values(self, group: str, method: str, metric: str) -> NDArray[np.float64]:
        """Values of a metric over the cases, shape (cases,); NaN where it was not defined."""
        key = f"{group}/{method}"
        try:
            found = [row[key][metric] for row in self.rows]
        except KeyError as error:
            raise StudyError(
                f"{error.args[0]!r} was not measured. Sets: {', '.join(s.name for s in self.sets)};"
                f" methods: {', '.join(self.methods)}; metrics: {', '.join(METRICS)}."
            ) from error
        return np.array([np.nan if one is None else one for one in found], dtype=np.float64)

    def median(self, group: str, method: str, metric: str = "attribution_quality") -> Estimate:
        """Median over the cases with its 95 % interval."""
        return median(self.values(group, method, metric))

    def tests(self) -> tuple[Test, ...]:
        """Compare AQ of the first method with the others on each set, and of its sets in pairs."""
        first = next(iter(self.methods))
        pairs = [
            (group.name, first, group.name, other)
            for group in self.sets
            for other in self.methods
            if other != first
        ]
        best = _widest(self.sets)
        pairs += [(best, first, one.name, first) for one in self.sets if one.name != best]
        found = [
            signed_rank(
                self.values(group, method, "attribution_quality"),
                self.values(other_group, other, "attribution_quality"),
            )
            for group, method, other_group, other in pairs
        ]
        corrected = holm([one.p for one in found])
        return tuple(
            Test(*pair, one, p) for pair, one, p in zip(pairs, found, corrected, strict=True)
        )

    def order(self, metric: str, group: str | None = None) -> list[tuple[str, str]]:
        """(set, method) of all maps, or of one set, best median first."""
        keys = [
            (one.name, method)
            for one in self.sets
            for method in self.methods
            if group in (None, one.name)
        ]
        sign = -1.0 if METRICS[metric][1] else 1.0

        def place(key: tuple[str, str]) -> float:
            value = sign * self.median(key[0], key[1], metric).value
            return np.inf if np.isnan(value) else value

        return sorted(keys, key=place)

    def agreement(self, one: str = "attribution_quality", other: str = "evidence_rank") -> Estimate:
        """Spearman's correlation over all maps of the medians of two metrics."""
        keys = [(group.name, method) for group in self.sets for method in self.methods]
        first, second = (
            np.stack([self.values(group, method, metric) for group, method in keys], axis=1)
            for metric in (one, other)
        )
        return rank_agreement(first, second)

    def table(self, name: str = "quality", title: str = "Quality of the maps") -> StudyTable:
        """One row a set and method: median of each metric with its 95 % interval over cases."""
        rows = []
        for group in self.sets:
            for method, told in self.methods.items():
                cells = [str(self.median(group.name, method, metric)) for metric in METRICS]
                rows.append((group.title, len(group.layers), told, *cells))
        heads = tuple(heading for heading, _ in METRICS.values())
        note = (
            f"Median over {len(self.rows)} cases (95 % interval, bootstrap over cases). AQ = PP / "
            "RE + RFA (1 + EPA), Attribution Quality: an even map has 1. PP: prediction preserved "
            "through the map. RE: relative entropy of what it leaves. RFA: how much higher it is "
            "in the target than in the background. EPA: part of its external peaks that hits "
            "evidence. IP: image preserved. EP: excess prediction. Rank: part of the highest "
            "voxels that lies in the known evidence; rank outside: in that outside of the target. "
            "All without unit; less is better for RE, IP, EP."
        )
        return StudyTable(name, title, ("layers", "number", "method", *heads), tuple(rows), note)

    def tests_table(self, name: str = "tests") -> StudyTable:
        """One row a paired test of AQ."""
        titles = {one.name: one.title for one in self.sets}
        rows = tuple(
            (
                f"{self.methods[one.method]}, {titles[one.set]}",
                f"{self.methods[one.other_method]}, {titles[one.other_set]}",
                str(one.found.difference),
                one.found.effect,
                one.p,
                {"first": "better", "second": "worse", "alike": "not told apart"}[one.outcome],
            )
            for one in self.tests()
        )
        columns = ("first", "second", "median difference of AQ", "effect", "p (Holm)", "first is")
        note = (
            f"Wilcoxon's signed-rank test over {len(self.rows)} cases, two-sided, Holm's "
            f"correction over these {len(rows)} tests, level {LEVEL}. Effect: rank-biserial "
            "correlation, -1 to 1."
        )
        return StudyTable(name, "Paired tests of Attribution Quality", columns, rows, note)


def compare_layer_sets(
    model: Model,
    cases: Sequence[tuple[MetaTensor, MetaTensor]],
    target: Target | None = None,
    *,
    methods: Sequence[str | Method] = METHODS,
    sets: Sequence[LayerSet] | None = None,
    target_label: int = 1,
    evidence_label: int | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> LayerSetComparison:
    """Compare methods that look at layers, over several sets of layers, on several cases.

    Parameters
    ----------
    model : Model
        A segmentation network.
    cases : sequence of (image, labels)
        Image (C, I, J, K), and its label map (1, I, J, K) with 0 for background.
    target : Target, optional
        As published when left out: the output's probability, summed over all voxels.
    methods : sequence of str or Method
        Methods that look at a layer; the first is compared with the others.
    sets : sequence of LayerSet, optional
        :func:`layer_sets` of the first image when left out.
    target_label : int
        Label of the explained structure.
    evidence_label : int, optional
        Label of evidence outside of it, where that is known; without it no external peak can hit.
    progress, cancelled : callable, optional
        As for :func:`SaliencyExplainLib.explain`.

    Returns
    -------
    LayerSetComparison
        ``table()``, ``tests_table()``, ``order(metric)`` and all values.

    Raises
    ------
    StudyError
        If there is no case, a label map lacks the target, or the network is not of
        encoder-decoder form and no sets are given.

    Examples
    --------
    >>> found = compare_layer_sets(model, [(image, labels), ...])          # doctest: +SKIP
    >>> found.order("attribution_quality")[0]                              # doctest: +SKIP
    ('decoder', 'grad_cam_plus_plus')
    """
    listed = list(cases)
    if not listed:
        raise StudyError("There is no case. Give at least one image with its label map.")
    for number, (_, labels) in enumerate(listed):
        present = labels.as_tensor()
        if not bool((present == target_label).any()) or not bool((present == 0).any()):
            raise StudyError(
                f"The label map of case {number + 1} needs voxels {target_label} (the explained "
                "structure) and 0 (background). Give the right target_label, or leave it out."
            )
    chosen = made_methods(methods)
    target = target or published_target()
    groups = layer_sets(model, listed[0][0]) if sets is None else tuple(sets)
    shares = Shares(progress, cancelled)
    rows = []
    for number, (image, labels) in enumerate(listed):
        start, length = number / len(listed), 1 / len(listed)
        tell = shares.teller(start, length, f"case {number + 1} of {len(listed)}")
        maps = layer_set_maps(
            model, image, groups, chosen, target, progress=tell, cancelled=cancelled
        )
        found = measured(
            model,
            image,
            labels,
            maps,
            target,
            target_label=target_label,
            evidence_label=evidence_label,
            cancelled=cancelled,
        )
        rows.append({f"{group}/{name}": values for (group, name), values in found.items()})
    if progress is not None:
        progress(1.0, "done")
    return LayerSetComparison(groups, {one.name: one.title for one in chosen}, tuple(rows))


def _widest(sets: Sequence[LayerSet]) -> str:
    """The set with most layers: encoder and decoder."""
    return max(sets, key=lambda one: len(one.layers)).name


def rank_agreement(one: NDArray[Any], other: NDArray[Any], seed: int = 0) -> Estimate:
    """Spearman's correlation of the median values of two measures over maps.

    Parameters
    ----------
    one, other : array, shape (cases, maps)
        Of both measures.

    Returns
    -------
    Estimate
        The correlation and its interval over cases.
    """

    def of(drawn: NDArray[Any]) -> NDArray[Any]:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a map without any value
            sides = [np.nanmedian(values[drawn], axis=1) for values in (one, other)]
        return np.array([_spearman(a, b) for a, b in zip(*sides, strict=True)])

    cases = len(one)
    if cases == 0 or one.shape[1] < 2:
        return Estimate(math.nan)
    low, high = interval_of(of, cases, seed, draws=500)
    return Estimate(float(of(np.arange(cases)[None])[0]), low, high, cases)


def _spearman(one: NDArray[Any], other: NDArray[Any]) -> float:
    from scipy.stats import rankdata

    both = np.isfinite(one) & np.isfinite(other)
    a, b = rankdata(one[both]), rankdata(other[both])
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
