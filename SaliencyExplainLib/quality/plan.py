"""What is going to be measured on a map, decided and priced before anything is loaded.

Shell, worker and panel plan with this; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MethodError, MetricError
from ..methods import Method, make_method
from .base import Metric, make_metric, metrics
from .evaluation import USUAL
from .method_ranking import RANKING_METRICS
from .randomisation import MODES

__all__ = ["GROUPS", "PRESETS", "QUICK", "WORDS", "Plan", "Step", "plan_work", "price"]

#: About 25 passes: the first two are enough to draw curves.
QUICK: dict[str, dict[str, Any]] = {
    "deletion": {"steps": 5},
    "insertion": {"steps": 5},
    "completeness": {},
    "prediction_preserved": {},
    "relative_entropy": {},
    "off_target_leakage": {},
    "pointing_game": {},
    "relevance_mass": {},
    "vxap": {},
    "density_ratio": {},
    "sparseness": {},
}
#: Names that stand for many metrics.
PRESETS = ("usual", "quick", "all")
#: Groups of layers of the sanity check, as in quality.sanity_check.
GROUPS = 6
#: What the arguments are called where they were given; the shell has names of its own.
WORDS = {
    "methods": "methods",
    "method": "method",
    "metrics": "metrics",
    "metric_parameters": "metric_parameters",
    "truth": "a ground truth of the evidence",
    "labelmap": "segments",
}
_REPEATS = ("sensitivity", "repeatability_noise", "repeatability_shift")


@dataclass(frozen=True)
class Step:
    """One part of the work; `passes` is None where it is not known beforehand."""

    name: str
    words: str
    passes: int | None


@dataclass(frozen=True)
class Plan:
    """What is going to be done.

    Attributes
    ----------
    method : Method or None
        That of the map; None: the best of `methods`, or the one that a given map names.
    methods : tuple of Method
        To be ranked; empty without a ranking.
    metrics, ranking_metrics : tuple of Metric
    skipped : tuple of (metric, reason)
        Metrics of a preset that do not apply.
    steps : tuple of Step
    sanity : str
        Mode of the sanity check; empty without one.
    draws : int
        Random networks a stage of it.
    """

    method: Method | None
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    ranking_metrics: tuple[Metric, ...]
    skipped: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    sanity: str = ""
    draws: int = 3

    @property
    def passes(self) -> int | None:
        """All passes over the volume, at most; None where a part is not known."""
        known = [step.passes for step in self.steps if step.passes is not None]
        return sum(known) if len(known) == len(self.steps) else None

    def shares(self) -> dict[str, tuple[float, float]]:
        """Start and length of each step as parts of the whole, by name."""
        weights = [float(step.passes or 50) for step in self.steps]
        total, done, found = sum(weights), 0.0, {}
        for step, weight in zip(self.steps, weights, strict=True):
            found[step.name] = (done / total, weight / total)
            done += weight
        return found

    def words(self) -> str:
        """Say the work and its cost in a sentence or two."""
        told = "; ".join(step.words for step in self.steps)
        together = self.passes
        if together is None:
            return f"To do: {told}. How many passes that takes is not known beforehand."
        return f"To do: {told}. Together at most {together} passes over the volume."


def plan_work(
    method: Method | None = None,
    methods: Sequence[str] = (),
    metrics: str | Sequence[str] = "usual",
    metric_parameters: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    has_truth: bool = False,
    has_labelmap: bool = False,
    has_map: bool = False,
    repeatability: bool = False,
    sanity: str = "",
    draws: int = 3,
    words: Mapping[str, str] = WORDS,
) -> Plan:
    """Decide what to do, and say what it costs.

    Parameters
    ----------
    method : Method, optional
        Makes the map, and runs again where metrics and sanity check ask for it.
    methods : sequence of str
        Names of methods to be ranked.
    metrics : str or sequence of str
        One of :data:`PRESETS`, or names.
    metric_parameters : mapping of metric to mapping, optional
    has_truth, has_labelmap, has_map : bool
        What is there: a ground truth, segments, the map itself.
    repeatability : bool
        Add the metrics that run the method again.
    sanity : {"", "cascading", "independent"}
        Mode of the sanity check.
    draws : int
        Random networks a stage of it.
    words : mapping
        What the arguments are called in errors; :data:`WORDS`.

    Returns
    -------
    Plan

    Raises
    ------
    MethodError, MetricError
        If a method or metric is unknown, does not go together, or lacks what it needs.
    """
    _refuse(sanity, draws)
    ranked = _ranked(method, methods, words)
    given = metric_parameters or {}
    has = {"model": True, "truth": has_truth, "labelmap": has_labelmap}
    chosen, skipped = _chosen(_wanted(metrics, repeatability), metrics, given, has, words)
    ranking = tuple(_for_ranking(metrics, chosen, words)) if ranked else ()
    steps: list[Step] = []
    # Of several methods the dearest stands for the one that will be best.
    runs = [price(one) for one in ([method] if method is not None else ranked)]
    run = None if None in runs or not runs else max(one or 0 for one in runs)
    if ranked:
        steps.append(_ranking_step(ranked, ranking))
    elif method is not None and not has_map:
        steps.append(Step("map", f"a map by {method.title} ({_cost(run)})", run))
    # What the ranking measures on its own maps is not measured on a given one.
    rest = [one for one in chosen if has_map or one not in ranking]
    if rest:
        total = _measuring(rest, run)
        more, plural = "more " if ranked and not has_map else "", "s" if len(rest) != 1 else ""
        count = f"{len(rest)} {more}metric{plural}"
        steps.append(Step("metrics", f"{count} ({_cost(total)})", total))
    if sanity:
        runs_of = GROUPS * draws + 1
        gradient = price(make_method("gradient")) or 1
        total = None if run is None else runs_of * (run + gradient)
        told = f"a sanity check of {runs_of} runs and as many gradients ({_cost(total)})"
        steps.append(Step("sanity", told, total))
    if not steps:
        raise MetricError(f"Nothing is to be measured. Name some {words['metrics']}.")
    return Plan(
        method,
        ranked,
        tuple(chosen),
        ranking,
        tuple(skipped),
        tuple(steps),
        sanity,
        draws,
    )


def price(method: Method) -> int | None:
    """Passes over the volume that one map takes at most, with sliding windows or without."""
    whole, windows = method.passes(), method.window_passes(linear=False)
    return None if whole is None or windows is None else max(whole, windows)


def _refuse(sanity: str, draws: int) -> None:
    if sanity and sanity not in MODES:
        raise MetricError(
            f"The sanity check has no mode {sanity!r}. Modes: {', '.join(MODES)}; empty for none."
        )
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise MetricError(f"draws is a whole number from 1 on; {draws!r} was given.")


def _ranked(
    method: Method | None, names: Sequence[str], words: Mapping[str, str]
) -> tuple[Method, ...]:
    """Methods to be ranked; that of the map among them."""
    if not names:
        return ()
    ranked = [
        method if method is not None and name == method.name else make_method(name)
        for name in names
    ]
    if method is not None and method.name not in names:
        ranked.insert(0, method)
    if len(ranked) < 2:
        raise MethodError(
            f"{words['methods']} ranks at least two methods; {', '.join(names)} was given. Name "
            f"another one, or use {words['method']} alone."
        )
    return tuple(ranked)


def _wanted(told: str | Sequence[str], repeatability: bool) -> dict[str, dict[str, Any]]:
    """Metrics by name with the parameters of a preset."""
    presets: dict[str, Mapping[str, dict[str, Any]]] = {
        "usual": {name: {} for name in USUAL},
        "quick": QUICK,
        "all": {name: {} for name, one in metrics().items() if not one.reruns},
    }
    if isinstance(told, str):
        found = dict(presets.get(told, {told: {}} if told else {}))
    else:
        found = {name: {} for name in told}
    if repeatability:
        found |= {name: {} for name in _REPEATS if name not in found}
    return found


def _chosen(
    wanted: Mapping[str, dict[str, Any]],
    told: str | Sequence[str],
    given: Mapping[str, Mapping[str, Any]],
    has: Mapping[str, bool],
    words: Mapping[str, str],
) -> tuple[list[Metric], list[tuple[str, str]]]:
    """Metrics to measure, and those of a preset that are left out with the reason."""
    unused = [name for name in given if name not in wanted]
    if unused:
        raise MetricError(
            f"{words['metric_parameters']} names {unused[0]!r}, which is not measured. Measured: "
            f"{', '.join(wanted)}."
        )
    preset = told in PRESETS
    chosen: list[Metric] = []
    skipped: list[tuple[str, str]] = []
    for name, defaults in wanted.items():
        made = make_metric(name, {**defaults, **given.get(name, {})})
        missing = [words[need] for need in made.needs if not has[need]]
        if not missing and preset and name == "attribution_quality" and name not in given:
            # Its labels are of one data set: measured with them elsewhere it would say nothing.
            skipped.append((name, f"needs {words['metric_parameters']} {name}.target_label=N"))
        elif not missing:
            chosen.append(made)
        elif preset:
            skipped.append((name, f"needs {missing[0]}"))
        else:
            raise MetricError(f"{made.title} needs {' and '.join(missing)}. Give it, too.")
    return chosen, skipped


def _for_ranking(
    told: str | Sequence[str], chosen: Sequence[Metric], words: Mapping[str, str]
) -> list[Metric]:
    """Metrics that methods are ranked by: those that were named, or about the score's changes."""
    named = told not in PRESETS
    able = [one for one in chosen if one.direction != "none" and not one.reruns]
    picked = able if named else [one for one in able if one.name in RANKING_METRICS]
    if named and not picked:
        listed = ", ".join(one.name for one in chosen)
        raise MetricError(
            f"None of {listed} can rank methods. Name a metric with a better end in "
            f"{words['metrics']}, such as {RANKING_METRICS[0]}."
        )
    if not named and told != "quick":
        have = {one.name for one in picked}
        picked += [make_metric(name) for name in RANKING_METRICS if name not in have]
    return picked


def _ranking_step(methods: Sequence[Method], ranking: Sequence[Metric]) -> Step:
    plural = "s" if len(ranking) != 1 else ""
    count = f"ranking {len(methods)} methods by {len(ranking)} metric{plural}"
    made = [price(one) for one in methods]
    measured = len(methods) * sum(1 + one.passes() for one in ranking)
    total = None if None in made else measured + sum(one or 0 for one in made)
    return Step("ranking", f"{count} ({_cost(total)})", total)


def _measuring(chosen: Sequence[Metric], run: int | None) -> int | None:
    total = 1
    for one in chosen:
        if one.reruns and run is None:
            return None
        total += one.passes() * ((run or 1) if one.reruns else 1)
    return total


def _cost(passes: int | None) -> str:
    if passes is None:
        return "passes not known beforehand"
    return f"at most {passes} pass{'es' if passes != 1 else ''}"
