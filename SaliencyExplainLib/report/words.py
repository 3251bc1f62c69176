"""Numbers and facts in words: digits that mean something, units, the question as a sentence."""

from __future__ import annotations

import math
from typing import Any

from ..explanation import Explanation

__all__ = [
    "REGIONS",
    "duration",
    "interval",
    "listed",
    "number",
    "percent",
    "question",
    "with_unit",
]

#: Where the score is taken, as the end of a sentence.
REGIONS = {
    "prediction": "where the network predicts it",
    "instance": "in one connected part of the prediction",
    "segment": "inside the chosen segment",
    "roi": "inside the chosen box",
    "point": "at one voxel",
    "everywhere": "in the whole volume",
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNDEFINED = "not defined"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with significant digits: 1,234; 0.0427; 3.8·10⁻⁵; "not defined".

    >>> number(78215), number(0.04268), number(3.8e-5), number(None)
    ('78,215', '0.0427', '3.8·10⁻⁵', 'not defined')
    """
    if value is None or math.isnan(value):
        return _UNDEFINED
    if math.isinf(value):
        return _minus("∞" if value > 0 else "-∞")
    if isinstance(value, int) or value == 0:
        return _minus(f"{int(value):,}")
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{_minus(mantissa)}·10{str(int(power)).translate(_RAISED)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:,.{places}f}")


def percent(share: float | None) -> str:
    """Return a part as percent: 12.3%, 3.4%, 0.05%.

    >>> percent(0.1234), percent(0.034), percent(1.0)
    ('12.3%', '3.4%', '100%')
    """
    if share is None or math.isnan(share):
        return _UNDEFINED
    value = 100 * share
    places = 0 if value >= 99.95 or value == 0 else 1 if value >= 0.95 else 2
    return f"{value:.{places}f}%"


def interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """Return an interval as "0.31 to 0.52"; empty where there is none."""
    if ends is None or any(math.isnan(end) for end in ends):
        return ""
    return f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def with_unit(value: float | None, unit: str) -> str:
    """Return a number with its unit; 1 and "output unit" are none."""
    told = number(value)
    bare = unit in ("", "1", "output unit") or told == _UNDEFINED
    return told if bare else f"{told} {unit}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> duration(0.034), duration(75), duration(5000)
    ('0.03 s', '1 min 15 s', '1 h 23 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Return names as "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def question(explanation: Explanation) -> str:
    """Say what was asked: model, output, place, score and volume."""
    target = explanation.target
    model = explanation.model.get("name") or explanation.model.get("class") or "the network"
    scan = explanation.image.get("name") or "the volume"
    output = target.get("output_name", target.get("output", "its output"))
    where = REGIONS.get(str(target.get("region")), "")
    if (target.get("region_voxels") or 0) > 1:
        where += f" ({number(target['region_voxels'])} voxels)"
    rival = target.get("contrast_name")
    against = f" rather than “{rival}”" if rival else ""
    told = f"Which voxels of {scan} made {model} give “{output}”{against} its score {where}"
    return f"{told.strip()}?"


def score(explanation: Explanation) -> str:
    """Say the explained number with its kind and unit."""
    target: dict[str, Any] = explanation.target
    kind = " ".join(
        str(one).replace("_", " ") for one in (target.get("reduce"), target.get("score")) if one
    )
    told = with_unit(explanation.value, str(target.get("unit") or ""))
    return f"{told} ({kind})" if kind else told


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
