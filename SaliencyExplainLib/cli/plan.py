"""What ``evaluate`` is going to do, read from the words of the shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MethodError, MetricError
from ..methods import make_method
from ..quality.plan import GROUPS, PRESETS, Plan, Step, plan_work, price

__all__ = ["GROUPS", "Plan", "Step", "make_plan", "parameters", "price"]

#: What the arguments of a plan are called in the shell.
_WORDS = {
    "methods": "--methods",
    "method": "--method",
    "metrics": "--metrics",
    "metric_parameters": "--metric-param",
    "truth": "--truth LABELMAP",
    "labelmap": "--segments LABELMAP",
}


def make_plan(options: Any) -> Plan:
    """Decide what to do from the words of the shell.

    Raises
    ------
    MethodError, MetricError
        If a method or metric is unknown, does not go together, or lacks what it needs.
    """
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
    told = (options.metrics or "usual").strip()
    return plan_work(
        made,
        names,
        told if told in PRESETS else _listed(told, "--metrics"),
        _metric_parameters(options.metric_param),
        has_truth=options.truth is not None,
        has_labelmap=options.segments is not None,
        repeatability=options.repeatability,
        sanity=options.sanity or "",
        draws=options.draws,
        words=_WORDS,
    )


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


def _listed(text: str | None, option: str) -> list[str]:
    """Names of a list with commas."""
    names = [part.strip() for part in text.split(",")] if text else []
    names = [name for name in names if name]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise MethodError(f"{twice[0]!r} was named twice in {option}. Leave one out.")
    return names
