"""How much of a map lies in each segment: the table that turns a picture into numbers.

With ``a`` the map, ``r`` a segment of ``|r|`` voxels and ``N`` all voxels of the map's grid::

    share_r          = sum_{v in r} |a(v)| / sum_v |a(v)|            (relevance mass)
    positive_share_r = sum_{v in r} max(a, 0) / sum_v max(a, 0)      (negative: max(-a, 0))
    density_ratio_r  = share_r / (|r| / N)                           1 = no preference

The share grows with the segment's size, so read it beside the density ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RegionError
from .explanation import Explanation
from .region_rows import COLUMNS, RegionRow, RegionTable
from .volume import Volume, resample_labels, same_grid, to_ras, voxel_volume_ml, voxels_of

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = ["COLUMNS", "RegionRow", "RegionTable", "region_table"]


def region_table(
    explanation: Explanation | Volume | MetaTensor,
    labelmap: Volume | MetaTensor,
    names: Mapping[int, str] | None = None,
) -> RegionTable:
    """Summarise a map in each segment of a label map.

    Parameters
    ----------
    explanation : Explanation, Volume or MetaTensor, shape (1, I, J, K)
        The run, or a map of one channel.
    labelmap : Volume or MetaTensor, shape (1, X, Y, Z)
        Whole numbers, 0 = outside. On another grid it is resampled onto the map's by world position
        (nearest neighbour).
    names : mapping of int to str, optional
        Names of labels; "segment N" where left out. A named label that is absent gets a row of its
        own with 0 voxels.

    Returns
    -------
    RegionTable
        One row a label, row 0 first ("outside"). A map that is zero everywhere gives NaN shares.

    Raises
    ------
    RegionError
        If the label map has several channels, holds fractions or negative values, or does not
        overlap the map.
    """
    map_ = explanation.map if isinstance(explanation, Explanation) else explanation
    if map_.ndim != 4 or map_.shape[0] != 1:
        raise RegionError(
            f"A map of shape (1, I, J, K) is needed; {tuple(map_.shape)} was given. Join the "
            "channels first."
        )
    labels, found = _labels_on(labelmap, map_)
    names = dict(names or {})
    values = voxels_of(map_)[0].astype(np.float64).ravel()
    order = np.unique(np.concatenate([[0], found, np.array(list(names), dtype=np.int64)]))
    position = np.searchsorted(order, labels.ravel())
    totals = _Sums(position, values, len(order))
    volume = voxel_volume_ml(map_.affine)
    rows = []
    for index, label in enumerate(order.tolist()):
        name = names.get(label, "outside" if label == 0 else f"segment {label}")
        rows.append(_row(label, name, index, totals, values, position, map_, volume))
    return RegionTable(tuple(rows))


def _labels_on(
    labelmap: Volume | MetaTensor, map_: Volume | MetaTensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels on the map's grid, and all labels of the label map itself."""
    if labelmap.ndim != 4 or labelmap.shape[0] != 1:
        raise RegionError(
            f"A label map of shape (1, I, J, K) is needed; {tuple(labelmap.shape)} was given."
        )
    raw = voxels_of(labelmap).astype(np.float64)
    if not np.array_equal(raw, np.round(raw)) or raw.min() < 0:
        raise RegionError(
            "The label map holds fractions or negative values. Give whole numbers with 0 for "
            "'outside'."
        )
    found = np.unique(raw).astype(np.int64)
    labels = resample_labels(labelmap, map_).voxels[0].round().astype(np.int64)
    if found.max() > 0 and labels.max() == 0 and not same_grid(labelmap, map_):
        raise RegionError(
            "The label map and the map do not overlap in space: no segment lies inside the map. "
            "Check that both belong to the same scan and that no transform is missing."
        )
    return labels, found


class _Sums:
    """Per-segment sums of a flat map, all made in one sweep each."""

    def __init__(self, position: NDArray[Any], values: NDArray[np.float64], count: int) -> None:
        self.voxels = np.bincount(position, minlength=count)
        self.positive = np.bincount(position, weights=np.maximum(values, 0), minlength=count)
        self.negative = np.bincount(position, weights=np.maximum(-values, 0), minlength=count)
        self.absolute = self.positive + self.negative


def _row(
    label: int,
    name: str,
    index: int,
    sums: _Sums,
    values: NDArray[np.float64],
    position: NDArray[Any],
    map_: Volume | MetaTensor,
    volume_ml: float,
) -> RegionRow:
    voxels = int(sums.voxels[index])
    share = _ratio(sums.absolute[index], sums.absolute.sum())
    peak, where = np.nan, np.full(3, np.nan)
    if voxels:
        inside = np.flatnonzero(position == index)
        top = inside[np.argmax(np.abs(values[inside]))]
        peak = values[top]
        where = to_ras(map_.affine, np.unravel_index(top, map_.shape[1:]))
    return RegionRow(
        label=label,
        name=name,
        voxels=voxels,
        volume_ml=voxels * volume_ml,
        share=share,
        positive_share=_ratio(sums.positive[index], sums.positive.sum()),
        negative_share=_ratio(sums.negative[index], sums.negative.sum()),
        density_ratio=_ratio(share, voxels / values.size),
        mean=_ratio(sums.positive[index] - sums.negative[index], voxels),
        mean_absolute=_ratio(sums.absolute[index], voxels),
        peak=float(peak),
        peak_r_mm=float(where[0]),
        peak_a_mm=float(where[1]),
        peak_s_mm=float(where[2]),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
