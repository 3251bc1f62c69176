"""What a quality metric is, and how one is declared in a single place.

A metric is a frozen dataclass: its fields are its parameters, as those of a method are. The
decorator adds the facts that panel, shell, report and tests read. Nothing here imports torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import MethodError, MetricError
from ..methods.parameters import check_value, made_from, param, parameter_lines

if TYPE_CHECKING:
    from .trial import Trial

__all__ = [
    "DIRECTIONS",
    "Measured",
    "Metric",
    "Row",
    "describe_metric",
    "make_metric",
    "metric",
    "metrics",
    "param",
]

_REGISTRY: dict[str, type[Metric]] = {}
_M = TypeVar("_M", bound="type[Metric]")

#: How a value is read, in words for people.
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "none": "neither end is better",
}
#: What a metric may need beside the explanation.
NEEDS = {
    "model": "the model and the image (model=, image=)",
    "truth": "a ground truth of the evidence (truth=<mask>)",
    "labelmap": "segments (labelmap=<label map>)",
}


@dataclass(frozen=True)
class Measured:
    """One number that a metric found.

    Attributes
    ----------
    value : float or None
        None where it is not defined; `reading` says why.
    reading : str
        The value in words.
    part : str
        Empty for the metric's own value; else which of its parts this is.
    interval : (low, high) or None
        95 percent confidence interval.
    unit, direction : str or None
        Where they differ from the metric's.
    details : mapping
        JSON values: curves, counts, places.
    """

    value: float | None
    reading: str
    part: str = ""
    interval: tuple[float, float] | None = None
    unit: str | None = None
    direction: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of an evaluation: what was measured, how it is read, what it cost.

    Attributes
    ----------
    metric : str
        Registered name; of a part "name.part".
    title : str
        For people.
    value, interval, unit, direction, reading, details
        See :class:`Measured`.
    passes : float
        Sweeps over the image that were computed for it: 0 where an earlier row had them already.
    seconds : float
        Wall time.
    """

    metric: str
    title: str
    value: float | None
    interval: tuple[float, float] | None
    unit: str
    direction: str
    passes: float
    seconds: float
    reading: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "metric": self.metric,
            "title": self.title,
            "value": finite(self.value),
            "interval": None if self.interval is None else [finite(end) for end in self.interval],
            "unit": self.unit,
            "direction": self.direction,
            "passes": round(self.passes, 2),
            "seconds": round(self.seconds, 3),
            "reading": self.reading,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Metric:
    """Base of all metrics.

    Class attributes, set by :func:`metric`
        ``name``, ``title``, ``family``, ``summary`` (the question it answers), ``paper``, ``unit``,
        ``direction`` (a key of :data:`DIRECTIONS`), ``scale`` (what particular values mean),
        ``needs`` (keys of :data:`NEEDS`), ``reruns`` (whether it runs the method again).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    unit: ClassVar[str]
    direction: ClassVar[str]
    scale: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    reruns: ClassVar[bool]

    def __post_init__(self) -> None:
        for one in fields(self):
            try:
                check_value(self.title, one, getattr(self, one.name))
            except MethodError as error:
                raise MetricError(str(error)) from error

    def passes(self) -> int:
        """Sweeps over the image, at most; for a metric with ``reruns``: runs of the method."""
        return 0

    def measure(self, trial: Trial) -> Sequence[Measured]:  # noqa: ARG002 - for its heirs
        """Measure; the first is the metric's own value, others are its parts.

        Raises
        ------
        MetricError
            If the value is not defined on this map, with the reason.
        """
        raise MetricError(
            f"{type(self).__name__} does not say how it measures. Define measure(trial)."
        )

    def parameters(self) -> dict[str, Any]:
        """Parameters as JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def metric(
    name: str,
    *,
    title: str,
    family: str,
    summary: str,
    paper: str,
    direction: str,
    scale: str,
    unit: str = "1",
    needs: tuple[str, ...] = (),
    reruns: bool = False,
) -> Callable[[_M], _M]:
    """Declare a metric under its name.

    Raises
    ------
    MetricError
        If the name is taken; both files are named.
    """

    def register(cls: _M) -> _M:
        if name in _REGISTRY:
            files = [inspect.getsourcefile(one) for one in (_REGISTRY[name], cls)]
            raise MetricError(
                f"Two metrics are called {name!r}: in {files[0]} and {files[1]}. Rename one."
            )
        facts = {
            "name": name,
            "title": title,
            "family": family,
            "summary": summary,
            "paper": paper,
            "direction": direction,
            "scale": scale,
            "unit": unit,
            "needs": needs,
            "reruns": reruns,
        }
        for key, value in facts.items():
            setattr(cls, key, value)
        _REGISTRY[name] = cls
        return cls

    return register


def metrics() -> dict[str, type[Metric]]:
    """All metrics by name, in the order of their declaration."""
    return dict(_REGISTRY)


def make_metric(name: str, parameters: Mapping[str, Any] | None = None) -> Metric:
    """Make a metric from its name and parameters; texts are converted to the parameter's type.

    Raises
    ------
    MetricError
        If the name or a parameter is unknown (the nearest is named), or a value does not fit.
    """
    return made_from(_REGISTRY, name, parameters, kind="metric", error=MetricError)


def describe_metric(name: str) -> str:
    """Return the metric's card for people: what it answers, how to read it, cost, source.

    Raises
    ------
    MetricError
        If there is no such metric.
    """
    chosen = make_metric(name)
    needs = " and ".join(NEEDS[one] for one in chosen.needs) or "the map alone"
    passes = chosen.passes()
    if chosen.reruns:
        cost = f"{passes} run{'s' if passes != 1 else ''} of the method"
    else:
        cost = f"{passes} pass{'es' if passes != 1 else ''} at most"
    lines = [
        f"{chosen.title} ({name})",
        f"  {chosen.summary}",
        f"  {DIRECTIONS[chosen.direction]}; unit {chosen.unit}; {chosen.scale}",
        f"  Needs {needs}; {cost} with the default parameters",
        f"  Source: {chosen.paper}",
    ]
    return "\n".join(lines + parameter_lines(chosen))


def finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
