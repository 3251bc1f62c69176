"""The tables of the study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..results import StudyTable
from ..statistics import median
from .controls import SumOfFeatures
from .measures import METRICS

if TYPE_CHECKING:
    from .compare import LayerSetComparison
    from .pipeline import Found, Setup

__all__ = ["tables"]

_SHORT = ("attribution_quality", "prediction_preserved", "relative_entropy", "evidence_rank")
_SCORES = {
    "dice": "Dice with the bodies of spiculated nodules",
    "bait_called": "part of plain nodules' voxels that is predicted (wrongly)",
    "called_without_spicules": "part of the bodies' voxels that is predicted once spicules are "
    "erased",
}


def tables(found: Found, setup: Setup) -> tuple[StudyTable, ...]:
    """Return all tables, the main one first."""
    more = []
    if found.at_convolutions.rows:
        more.append(
            found.at_convolutions.table(
                "at_convolutions",
                "Features read at the convolutions, before normalisation and activation",
            )
        )
    if found.second is not None and found.second.rows:
        more.append(
            found.second.table(
                "second_network",
                "The committed network (batch norm; its decoder has transposed convolutions only)",
            )
        )
    return (
        found.main.table(),
        found.main.tests_table(),
        _orders(found.main),
        _controls(found),
        *more,
        _network(found, setup),
    )


def _orders(main: LayerSetComparison) -> StudyTable:
    """Methods of each set in the order of AQ and of the truth."""
    rows = []
    for group in main.sets:
        cells = []
        for metric in ("attribution_quality", "evidence_rank", "outside_rank"):
            ordered = main.order(metric, group.name)
            cells.append(", ".join(main.methods[method] for _, method in ordered))
        rows.append((group.title, *cells))
    heads = (
        "layers",
        "by Attribution Quality",
        "by evidence rank",
        "by rank outside of the target",
    )
    note = "Best median first."
    return StudyTable(
        "orders", "Order of the methods by AQ and by the truth", heads, tuple(rows), note
    )


def _controls(found: Found) -> StudyTable:
    rows: list[tuple[Any, ...]] = []
    for name, values in found.controls.items():
        rows.append((name, *[str(median(values[metric])) for metric in _SHORT]))
    for group in found.sums.sets:
        cells = [str(found.sums.median(group.name, SumOfFeatures.name, one)) for one in _SHORT]
        rows.append((f"sum of features, {group.title}", *cells))
    heads = ("map", *[METRICS[metric][0] for metric in _SHORT])
    note = (
        "Median over the cases (95 % interval). The sum of features is what Score-CAM is in the "
        "public code, whose softmax has one entry."
    )
    return StudyTable("controls", "Maps that none of the methods made", heads, tuple(rows), note)


def _network(found: Found, setup: Setup) -> StudyTable:
    rows: list[tuple[Any, ...]] = [
        (told, str(median([score[key] for score in found.scores]))) for key, told in _SCORES.items()
    ]
    rows.append(("cases in which it predicts nothing (left out)", found.skipped))
    rows.append(("loss, mean of the last 50 updates", float(np.mean(found.losses[-50:]))))
    note = (
        f"Median over {len(found.scores)} test cases (95 % interval); {setup.steps} updates of two "
        f"volumes each from {setup.scenes} other scenes."
    )
    return StudyTable("network", "The network", ("what", "value"), tuple(rows), note)
