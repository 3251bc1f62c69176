"""Findings read back from their JSON values; needs neither torch nor the model.

What ``to_dict()`` of each has written comes back, but for maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import DIRECTIONS, Row
from .comparison import Comparison
from .evaluation import Evaluation
from .method_ranking import RankedMethod, Ranking
from .sanity_verdict import SanityCheck, Stage

__all__ = ["comparison_from", "evaluation_from", "ranking_from", "sanity_from"]

_VERDICTS = ("sensitive", "insensitive", "unclear")


def evaluation_from(facts: Mapping[str, Any]) -> Evaluation:
    """Read an evaluation.

    Raises
    ------
    KeyError, TypeError, ValueError
        If this is none; as for the other functions here.
    """
    return Evaluation(
        rows=tuple(_row(one) for one in facts["rows"]),
        method=str(facts["method"]),
        title=str(facts["title"]),
        target=dict(facts["target"]),
        seconds=float(facts["seconds"]),
        skipped=tuple((str(one["metric"]), str(one["reason"])) for one in facts["skipped"]),
    )


def sanity_from(facts: Mapping[str, Any]) -> SanityCheck:
    """Read a sanity check."""
    if facts["verdict"] not in _VERDICTS:
        raise ValueError(f"a sanity check has no verdict {facts['verdict']!r}")
    return SanityCheck(
        method=str(facts["method"]),
        title=str(facts["title"]),
        mode=str(facts["mode"]),
        verdict=facts["verdict"],
        sentence=str(facts["sentence"]),
        alike=_number(facts["alike"]),
        gradient=_number(facts["gradient"]),
        stages=tuple(_stage(one) for one in facts["stages"]),
        compared=str(facts["compared"]),
        target=dict(facts["target"]),
        seconds=float(facts["seconds"]),
        details=dict(facts["details"]),
    )


def ranking_from(facts: Mapping[str, Any]) -> Ranking:
    """Read a ranking; ``explanations`` is empty."""
    evaluations = {
        str(name): evaluation_from(one) for name, one in dict(facts["evaluations"]).items()
    }
    metrics = tuple(str(one) for one in facts["metrics"])
    return Ranking(
        methods=tuple(_ranked(one, evaluations, metrics) for one in facts["methods"]),
        metrics=metrics,
        answer=str(facts["answer"]),
        failed=tuple((str(one["method"]), str(one["reason"])) for one in facts["failed"]),
        explanations={},
        evaluations=evaluations,
        undefined=tuple((str(one["metric"]), str(one["reason"])) for one in facts["undefined"]),
    )


def comparison_from(facts: Mapping[str, Any]) -> Comparison:
    """Read a comparison; null becomes NaN."""
    names = tuple(str(one) for one in facts["names"])
    matrices = {}
    for measure, rows in dict(facts["matrices"]).items():
        matrix = np.array([[_number(one) for one in row] for row in rows], dtype=np.float64)
        if matrix.shape != (len(names), len(names)):
            raise ValueError(f"the matrix {measure!r} has the shape {matrix.shape}")
        matrices[str(measure)] = matrix
    return Comparison(names, matrices, tuple(str(one) for one in facts["notes"]))


def _row(facts: Mapping[str, Any]) -> Row:
    if facts["direction"] not in DIRECTIONS:
        raise ValueError(f"a metric has no direction {facts['direction']!r}")
    ends = facts["interval"]
    return Row(
        metric=str(facts["metric"]),
        title=str(facts["title"]),
        value=None if facts["value"] is None else float(facts["value"]),
        interval=None if ends is None else (_number(ends[0]), _number(ends[1])),
        unit=str(facts["unit"]),
        direction=facts["direction"],
        passes=float(facts["passes"]),
        seconds=float(facts["seconds"]),
        reading=str(facts["reading"]),
        details=dict(facts["details"]),
    )


def _stage(facts: Mapping[str, Any]) -> Stage:
    return Stage(
        layers=tuple(str(one) for one in facts["layers"]),
        randomised=float(facts["randomised"]),
        similarity={str(key): _number(one) for key, one in dict(facts["similarity"]).items()},
        gradient=_number(facts["gradient"]),
        score=_number(facts["score"]),
    )


def _ranked(
    facts: Mapping[str, Any], evaluations: Mapping[str, Evaluation], metrics: tuple[str, ...]
) -> RankedMethod:
    name, ends, share = str(facts["name"]), facts["interval"], facts["best_share"]
    rows = {row.metric: row for row in evaluations[name].rows} if name in evaluations else {}
    return RankedMethod(
        name=name,
        title=str(facts["title"]),
        mean_rank=float(facts["mean_rank"]),
        interval=None if ends is None else (float(ends[0]), float(ends[1])),
        best_share=None if share is None else float(share),
        tied=bool(facts["tied"]),
        ranks={str(key): _number(one) for key, one in dict(facts["ranks"]).items()},
        rows={metric: rows[metric] for metric in metrics if metric in rows},
        seconds=float(facts["seconds"]),
        passes=float(facts["passes"]),
    )


def _number(value: Any) -> float:
    """JSON has no NaN; it is null there."""
    return math.nan if value is None else float(value)
