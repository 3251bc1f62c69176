"""Ranks in which values that cannot be told apart share a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["shared_ranks"]

#: Values without interval that are this close, as a part of their spread, share a rank.
_TIE = 0.01


def shared_ranks(
    values: Sequence[float], intervals: Sequence[tuple[float, float] | None], *, higher: bool
) -> NDArray[np.float64]:
    """Ranks from 1 (best); values that cannot be told apart share the mean of theirs.

    Best first, each value joins the group of the best one that it cannot be told from. NaN shares
    the last ranks.

    Parameters
    ----------
    values : sequence of float
    intervals : sequence of (low, high) or None
        95 percent confidence.
    higher : bool
        Whether higher is better.
    """
    known = np.array([np.nan if value is None else value for value in values], dtype=float)
    order = np.argsort(
        np.where(np.isnan(known), np.inf, -known if higher else known), kind="stable"
    )
    spread = float(np.nanmax(known) - np.nanmin(known)) if np.isfinite(known).any() else 0.0
    groups: list[list[int]] = []
    for index in order.tolist():
        if groups and _same(groups[-1][0], index, known, intervals, spread):
            groups[-1].append(index)
        else:
            groups.append([index])
    ranks, before = np.empty(len(known)), 0
    for group in groups:
        ranks[group] = before + (len(group) + 1) / 2
        before += len(group)
    return ranks


def _same(
    one: int,
    other: int,
    values: NDArray[np.float64],
    intervals: Sequence[tuple[float, float] | None],
    spread: float,
) -> bool:
    if np.isnan(values[one]) or np.isnan(values[other]):
        return bool(np.isnan(values[one]) and np.isnan(values[other]))
    here, there = intervals[one], intervals[other]
    if here is not None and there is not None:
        return here[0] <= there[1] and there[0] <= here[1]
    return bool(abs(values[one] - values[other]) <= _TIE * spread)
