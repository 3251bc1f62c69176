"""What the checks say together: each one passed, failed or unclear, and what was not checked.

    sanity        the verdict of the parameter randomisation (:mod:`..quality.sanity_verdict`)
    random map    deletion, insertion and ROAD against a random map as smooth: passed when all do
                  better, failed when none does
    foretelling   faithfulness correlation: passed when its 95 percent interval lies above 0, failed
                  at 0 or below
    completeness  of a method that promises it: an error of at most 5 percent passes, of more than
                  20 percent fails
    repeating     lowest mean rank correlation under noise and shift: 0.9 passes, below 0.6 fails
    ground truth  part of the evidence inside: passed above that of an even map

The limits are this project's; a check that passes does not prove a map, one that fails is a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..volume import voxels_of
from .words import listed, number, percent

if TYPE_CHECKING:
    from ..explanation import Explanation
    from ..quality import Evaluation, Row, SanityCheck

__all__ = ["STATES", "Check", "Verdict", "verdict_of"]

#: What a check can end in, with the sign that tells it without colour.
STATES = {
    "passed": "✓ passed",
    "failed": "✗ failed",
    "unclear": "~ unclear",
    "untested": "○ not judged",
}

_WORST_SUM, _BEST_SUM = 0.2, 0.05
_REPEATS, _DIFFERS = 0.9, 0.6
#: Metrics that are measured on a random map, too.
_CONTROLLED = ("deletion", "insertion", "road")
#: Metrics that run the method again on scans that say the same.
_RERUN = ("repeatability_noise", "repeatability_shift")


@dataclass(frozen=True)
class Check:
    """One reason to believe or to doubt a map.

    Attributes
    ----------
    name : str
        What was asked.
    state : {"passed", "failed", "unclear", "untested"}
    sentence : str
        The answer, or why there is none.
    """

    name: str
    state: str
    sentence: str

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        return {"name": self.name, "state": self.state, "sentence": self.sentence}


@dataclass(frozen=True)
class Verdict:
    """The checks together.

    Attributes
    ----------
    state : {"passed", "failed", "unclear", "untested"}
    headline, sentence : str
        In words for people.
    checks : tuple of Check
    warnings : tuple of str
        Of the run.
    """

    state: str
    headline: str
    sentence: str
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": self.state,
            "headline": self.headline,
            "sentence": self.sentence,
            "checks": [one.to_dict() for one in self.checks],
            "warnings": list(self.warnings),
        }


def verdict_of(
    explanation: Explanation,
    evaluation: Evaluation | None = None,
    sanity: SanityCheck | None = None,
) -> Verdict:
    """Judge a map by what was measured on it."""
    rows = {row.metric.partition("[")[0]: row for row in reversed(_rows(evaluation))}
    checks = (
        _sanity(sanity),
        _random_map(rows),
        _foretelling(rows),
        _completeness(explanation, rows),
        _repeating(rows),
        _truth(rows),
    )
    made = [one for one in checks if one.state != "untested"]
    failed = [one.name for one in made if one.state == "failed"]
    unclear = [one.name for one in made if one.state == "unclear"]
    if sanity is not None and sanity.verdict == "insensitive":
        state, headline = "failed", "Do not read this map as evidence"
    elif failed:
        state, headline = "failed", "Read this map with doubt"
    elif unclear:
        state, headline = "unclear", "Read this map with care"
    elif made:
        state, headline = "passed", "No check speaks against this map"
    else:
        state, headline = "untested", "Nothing was checked yet"
    if not _has_content(explanation):
        state, headline = "failed", "The map shows nothing"
    return Verdict(
        state, headline, _sentence(checks, made, failed, unclear), checks, explanation.warnings
    )


def _sentence(
    checks: tuple[Check, ...], made: list[Check], failed: list[str], unclear: list[str]
) -> str:
    if not made:
        return "A map that was not checked is a picture, not evidence."
    passed = len(made) - len(failed) - len(unclear)
    parts = [f"Of {len(made)} check{'s' if len(made) != 1 else ''} {passed} passed"]
    if failed:
        parts.append(f"{len(failed)} failed ({listed(failed)})")
    if unclear:
        parts.append(f"{len(unclear)} unclear ({listed(unclear)})")
    left = [one.name for one in checks if one.state == "untested"]
    return f"{', '.join(parts)}. " + (f"Not judged: {listed(left)}." if left else "").strip()


def _rows(evaluation: Evaluation | None) -> tuple[Row, ...]:
    return () if evaluation is None else evaluation.rows


def _has_content(explanation: Explanation) -> bool:
    voxels = voxels_of(explanation.map)
    return bool(voxels.min() != voxels.max())


def _sanity(sanity: SanityCheck | None) -> Check:
    name = "depends on what the network learned"
    if sanity is None:
        return Check(name, "untested", "The network's weights were not randomised.")
    states = {"sensitive": "passed", "insensitive": "failed"}
    return Check(name, states.get(sanity.verdict, "unclear"), sanity.sentence)


def _random_map(rows: dict[str, Row]) -> Check:
    name = "better than a random map"
    better: list[str] = []
    worse: list[str] = []
    for key in _CONTROLLED:
        own, other = rows.get(key), rows.get(f"{key}.control")
        if own is None or other is None or own.value is None or other.value is None:
            continue
        higher = own.direction == "higher"
        won = own.value > other.value if higher else own.value < other.value
        told = f"{own.title} {number(own.value)} against {number(other.value)}"
        (better if won else worse).append(told)
    if not better and not worse:
        told = "No voxels were taken away or put in, in the map's order."
        return Check(name, "untested", _reason(rows, _CONTROLLED, told))
    state = "passed" if not worse else "failed" if not better else "unclear"
    told = "Voxels were changed in the map's order, and in that of a random map as smooth."
    if better:
        told += f" Better: {listed(better)}."
    if worse:
        told += f" No better: {listed(worse)}."
    return Check(name, state, told)


def _foretelling(rows: dict[str, Row]) -> Check:
    name = "foretells changes of the score"
    row = rows.get("faithfulness_correlation")
    if row is None or row.value is None:
        told = _reason(rows, ("faithfulness_correlation",), "No random parts were hidden.")
        return Check(name, "untested", told)
    low = row.value if row.interval is None else row.interval[0]
    state = "failed" if row.value <= 0 else "passed" if low > 0 else "unclear"
    return Check(name, state, row.reading)


def _completeness(explanation: Explanation, rows: dict[str, Row]) -> Check:
    name = "adds up to the score"
    row = rows.get("completeness")
    error = explanation.completeness_error
    if error is None:
        off = row.value if row is not None else None
        told = f"{explanation.title} does not promise it"
        told += "." if off is None else f"; its sum is off by {percent(off)}."
        return Check(name, "untested", told)
    state = "passed" if error <= _BEST_SUM else "failed" if error > _WORST_SUM else "unclear"
    told = f"The map's sum misses the score's change from the baseline by {percent(error)}."
    return Check(name, state, told)


def _repeating(rows: dict[str, Row]) -> Check:
    found = [rows.get(key) for key in _RERUN]
    values = [row.value for row in found if row is not None and row.value is not None]
    name = "repeats"
    if not values:
        told = "The method was not run again on changed scans."
        return Check(name, "untested", _reason(rows, _RERUN, told))
    state = "passed" if min(values) >= _REPEATS else "failed" if min(values) < _DIFFERS else ""
    told = " ".join(row.reading for row in found if row is not None)
    return Check(name, state or "unclear", told)


def _truth(rows: dict[str, Row]) -> Check:
    name = "finds the known evidence"
    row = rows.get("relevance_mass")
    if row is None or row.value is None:
        told = _reason(rows, ("relevance_mass",), "No ground truth of the evidence was given.")
        return Check(name, "untested", told)
    even = float(row.details.get("even_map", 0.0))
    state = "passed" if row.value > even else "failed"
    return Check(name, state, row.reading)


def _reason(rows: dict[str, Row], names: tuple[str, ...], otherwise: str) -> str:
    """Why a check was not made: what a metric says that was not defined, or `otherwise`."""
    undefined = [rows[name] for name in names if name in rows and rows[name].value is None]
    return undefined[0].reading if undefined else otherwise
