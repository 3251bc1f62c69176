"""What ``evaluate`` is going to do, decided and priced before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MethodError, MetricError
from ..methods import Method, make_method
from ..quality import USUAL, Metric, make_metric, metrics
from ..quality.method_ranking import RANKING_METRICS

__all__ = ["Plan", "Step", "make_plan", "parameters", "price"]

#: About 25 passes: the first two are enough to draw curves.
_QUICK: dict[str, dict[str, Any]] = {
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
_REPEATS = ("sensitivity", "repeatability_noise", "repeatability_shift")
_PRESETS = ("usual", "quick", "all")
#: Groups of layers of the sanity check, as in quality.sanity_check.
GROUPS = 6
_OPTION = {"truth": "--truth LABELMAP", "labelmap": "--segments LABELMAP"}


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
        That of the report; None: the best of `methods`.
    methods : tuple of Method
        To be ranked; empty without a ranking.
    metrics, ranking_metrics : tuple of Metric
    skipped : tuple of (metric, reason)
        Metrics of a preset that do not apply.
    steps : tuple of Step
    """

    method: Method | None
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    ranking_metrics: tuple[Metric, ...]
    skipped: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]

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


def make_plan(options: Any) -> Plan:
    """Decide what to do from the words of the shell.

    Raises
    ------
    MethodError, MetricError
        If a method or metric is unknown, does not go together, or lacks what it needs.
    """
    method, methods = _methods(options)
    chosen, skipped = _metrics(options)
    ranking: tuple[Metric, ...] = ()
    if methods:
        ranking = tuple(_for_ranking(options, chosen))
    steps = _steps(options, method, methods, chosen, ranking)
    return Plan(method, methods, tuple(chosen), ranking, tuple(skipped), tuple(steps))


def price(method: Method) -> int | None:
    """Passes over the volume that one map takes at most, with sliding windows or without."""
    whole, windows = method.passes(), method.window_passes(linear=False)
    return None if whole is None or windows is None else max(whole, windows)


def parameters(texts: Sequence[str]) -> dict[str, str]:
    """Read KEY=VALUE texts.

    Raises
    ------
    MethodError
        If one has no equals sign, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MethodError(f"A parameter is given as key=value; {text!r} was given.")
        if key in found:
            raise MethodError(f"The parameter {key!r} was given twice. Leave one out.")
        found[key] = value
    return found


def _methods(options: Any) -> tuple[Method | None, tuple[Method, ...]]:
    """The report's method, and those to be ranked."""
    names = _listed(options.methods, "--methods")
    if options.method is None:
        if not names:
            raise MethodError(
                "Name the method to evaluate (--method NAME), or several to choose the best of "
                "(--methods A,B,...)."
            )
        if options.param:
            raise MethodError("--param needs --method, whose parameter it is.")
    made = None
    if options.method is not None:
        made = make_method(options.method, parameters(options.param))
    if not names:
        return made, ()
    ranked = [
        made if made is not None and name == made.name else make_method(name) for name in names
    ]
    if made is not None and made.name not in names:
        ranked.insert(0, made)
    if len(ranked) < 2:
        raise MethodError(
            f"--methods ranks at least two methods; {', '.join(names)} was given. Name another "
            "one, or use --method alone."
        )
    return made, tuple(ranked)


def _metrics(options: Any) -> tuple[list[Metric], list[tuple[str, str]]]:
    """Metrics to measure, and those of a preset that are left out with the reason."""
    given = _metric_parameters(options.metric_param)
    wanted, preset = _wanted(options)
    unused = [name for name in given if name not in wanted]
    if unused:
        raise MetricError(
            f"--metric-param names {unused[0]!r}, which is not measured. Measured: "
            f"{', '.join(wanted)}."
        )
    has = {"model": True, "truth": options.truth is not None}
    has |= {"labelmap": options.segments is not None}
    chosen: list[Metric] = []
    skipped: list[tuple[str, str]] = []
    for name, defaults in wanted.items():
        made = make_metric(name, defaults | given.get(name, {}))
        missing = [_OPTION[need] for need in made.needs if not has[need]]
        if not missing and preset and name == "attribution_quality" and name not in given:
            # Its labels are of one data set: measured with them elsewhere it would say nothing.
            skipped.append((name, f"needs --metric-param {name}.target_label=N"))
        elif not missing:
            chosen.append(made)
        elif preset:
            skipped.append((name, f"needs {missing[0]}"))
        else:
            raise MetricError(f"{made.title} needs {' and '.join(missing)}. Give it, too.")
    return chosen, skipped


def _wanted(options: Any) -> tuple[dict[str, dict[str, Any]], bool]:
    """Metrics by name with the parameters of a preset, and whether it is one."""
    told = (options.metrics or "usual").strip()
    presets: dict[str, Mapping[str, dict[str, Any]]] = {
        "usual": {name: {} for name in USUAL},
        "quick": _QUICK,
        "all": {name: {} for name, one in metrics().items() if not one.reruns},
    }
    named: dict[str, dict[str, Any]] = {name: {} for name in _listed(told, "--metrics")}
    found = dict(presets.get(told, named))
    if options.repeatability:
        found |= {name: {} for name in _REPEATS if name not in found}
    return found, told in _PRESETS


def _for_ranking(options: Any, chosen: Sequence[Metric]) -> list[Metric]:
    """Metrics that methods are ranked by: those that were named, or about the score's changes."""
    named = (options.metrics or "usual").strip() not in _PRESETS
    able = [one for one in chosen if one.direction != "none" and not one.reruns]
    picked = able if named else [one for one in able if one.name in RANKING_METRICS]
    if named and not picked:
        listed = ", ".join(one.name for one in chosen)
        raise MetricError(
            f"None of {listed} can rank methods. Name a metric with a better end in --metrics, "
            f"such as {RANKING_METRICS[0]}."
        )
    if not named and options.metrics != "quick":
        have = {one.name for one in picked}
        picked += [make_metric(name) for name in RANKING_METRICS if name not in have]
    return picked


def _metric_parameters(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, value in parameters(texts).items():
        name, dot, field = key.partition(".")
        if not dot or not field:
            raise MetricError(
                f"A parameter of a metric is given as METRIC.KEY=VALUE; {key!r} has no dot."
            )
        found.setdefault(name, {})[field] = value
    return found


def _steps(
    options: Any,
    method: Method | None,
    methods: Sequence[Method],
    chosen: Sequence[Metric],
    ranking: Sequence[Metric],
) -> list[Step]:
    steps: list[Step] = []
    # Of several methods the dearest stands for the one that will be best.
    runs = [price(one) for one in ([method] if method is not None else methods)]
    run = None if None in runs else max(one or 0 for one in runs)
    rest = list(chosen)
    if methods:
        plural = "s" if len(ranking) != 1 else ""
        count = f"ranking {len(methods)} methods by {len(ranking)} metric{plural}"
        made = [price(one) for one in methods]
        measured = len(methods) * sum(1 + one.passes() for one in ranking)
        total = None if None in made else measured + sum(one or 0 for one in made)
        steps.append(Step("ranking", f"{count} ({_cost(total)})", total))
        rest = [one for one in chosen if one not in ranking]
    elif method is not None:
        steps.append(Step("map", f"a map by {method.title} ({_cost(run)})", run))
    if rest:
        total = _measuring(rest, run)
        words = f"{len(rest)} {'more ' if methods else ''}metric{'s' if len(rest) != 1 else ''}"
        steps.append(Step("metrics", f"{words} ({_cost(total)})", total))
    if options.sanity:
        runs_of = GROUPS * options.draws + 1
        gradient = price(make_method("gradient")) or 1
        total = None if run is None else runs_of * (run + gradient)
        words = f"a sanity check of {runs_of} runs and as many gradients ({_cost(total)})"
        steps.append(Step("sanity", words, total))
    return steps


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


def _listed(text: str | None, option: str) -> list[str]:
    """Names of a list with commas."""
    names = [part.strip() for part in text.split(",")] if text else []
    names = [name for name in names if name]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise MethodError(f"{twice[0]!r} was named twice in {option}. Leave one out.")
    return names
