"""Tables of a comparison of models: their scores, how alike their maps are, which are better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results import StudyTable
from ..statistics import (
    NAN,
    bootstrap,
    classification_scores,
    holm,
    mcnemar,
    sign_flip,
)

if TYPE_CHECKING:
    from .compare import CaseComparison

__all__ = [
    "PAIRED_COLUMNS",
    "PAIRED_NOTE",
    "comparison_tables",
    "models_table",
    "paired_rows",
]

SCORES = ("accuracy", "precision", "recall", "F1")
SCORE_COLUMNS = ("model", *[f"{name} (95 % interval)" for name in SCORES], "p against the first")
SCORE_NOTE = (
    "Precision, recall and F1 are those of the second class (of more than two: the mean over "
    "classes). Intervals: Wilson, for F1 and means over classes bootstrap over cases. p: McNemar's "
    "exact test of the accuracy, not adjusted."
)


def models_table(
    truth: Sequence[int], predicted: Mapping[str, Sequence[int]], classes: int = 2
) -> StudyTable:
    """Return the scores of each model; the first is the one that the others are compared with."""
    right = {
        name: [a == b for a, b in zip(truth, one, strict=True)] for name, one in predicted.items()
    }
    first = next(iter(right.values()))
    rows = []
    for number, (name, one) in enumerate(predicted.items()):
        scores = classification_scores(truth, one, classes)
        p = mcnemar(first, right[name]) if number else None
        rows.append((name, *[scores[key].in_words() for key in SCORES], p))
    return StudyTable("models", "Answers of the models", SCORE_COLUMNS, tuple(rows), SCORE_NOTE)


PAIRED_COLUMNS = (
    "metric",
    "first model",
    "second model",
    "cases",
    "mean of the first",
    "mean of the second",
    "mean difference",
    "low",
    "high",
    "p (sign flip)",
    "p (Holm)",
)
PAIRED_NOTE = (
    "Second minus first, over cases where both are defined; low and high: 95 percent bootstrap "
    "interval over cases. The last column is adjusted for the number of tests in the table."
)


def paired_rows(
    found: Mapping[str, tuple[str, str, Sequence[float], Sequence[float]]],
) -> list[tuple[Any, ...]]:
    """Rows of a table of paired tests.

    Parameters
    ----------
    found : mapping of str to (name, name, values, values)
        By metric: two models and their values on the same cases.
    """
    rows = []
    for metric, (one, other, a, b) in found.items():
        pair = np.array([a, b], dtype=np.float64).reshape(2, -1)
        pair = pair[:, np.isfinite(pair).all(0)]
        count = pair.shape[1]
        means = pair.mean(1).tolist() if count else [NAN, NAN]
        apart = (pair[1] - pair[0]).tolist()
        score = bootstrap(apart)
        interval = (score.value, score.low, score.high)
        rows.append((metric, one, other, count, *means, *interval, sign_flip(apart)))
    adjusted = holm([row[-1] for row in rows])
    return [(*row, p) for row, p in zip(rows, adjusted, strict=True)]


def comparison_tables(names: Sequence[str], cases: Sequence[CaseComparison]) -> list[StudyTable]:
    """Similarity of the maps, and their metrics with paired tests, each against the first model."""
    rows: list[tuple[Any, ...]] = []
    for measure in cases[0].similarity:
        for name in names[1:]:
            score = bootstrap([one.similarity[measure][name] for one in cases])
            rows.append((measure, names[0], name, len(cases), score.value, score.low, score.high))
    similarity = StudyTable(
        "similarity",
        "How alike the maps are",
        ("measure", "first model", "second model", "cases", "mean", "low", "high"),
        tuple(rows),
        "Of both models' maps of one case; 1: equal. Low and high: 95 percent bootstrap interval.",
    )
    known = list(dict.fromkeys(key for one in cases for key in one.metrics))
    tested: list[tuple[Any, ...]] = []
    for name in names[1:]:
        found = {}
        for metric in known:
            values = [
                [one.metrics.get(metric, {}).get(which, math.nan) for one in cases]
                for which in (names[0], name)
            ]
            found[metric] = (names[0], name, values[0], values[1])
        tested += paired_rows(found)
    metrics = StudyTable(
        "metrics", "Which map is better", PAIRED_COLUMNS, tuple(tested), PAIRED_NOTE
    )
    return [similarity, metrics] if known else [similarity]
