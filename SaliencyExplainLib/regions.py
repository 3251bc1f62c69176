"""How much of a map lies in each segment: the table that turns a picture into numbers.

With ``a`` the map, ``r`` a segment of ``|r|`` voxels and ``N`` all voxels of the map's grid::

    share_r          = sum_{v in r} |a(v)| / sum_v |a(v)|            (relevance mass)
    positive_share_r = sum_{v in r} max(a, 0) / sum_v max(a, 0)      (negative: max(-a, 0))
    density_ratio_r  = share_r / (|r| / N)                           1 = no preference

The share grows with the segment's size, so read it beside the density ratio.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import MetaTensor

from .errors import RegionError
from .explanation import Explanation, write_text
from .image import resample_labels, same_grid, to_ras, voxel_volume_ml

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLUMNS", "RegionRow", "RegionTable", "region_table"]

#: (field, unit, what it says), in the order of the table; panel, scene and CSV read it.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("label", "", "value in the label map; 0 is everything outside all segments"),
    ("name", "", "name of the segment"),
    ("voxels", "", "voxels of the map's grid in the segment"),
    ("volume_ml", "ml", "volume of those voxels"),
    ("share", "", "part of all |attribution| that lies in the segment"),
    ("positive_share", "", "part of all positive attribution that lies in the segment"),
    ("negative_share", "", "part of all negative attribution that lies in the segment"),
    ("density_ratio", "", "share divided by the segment's part of the volume; 1 = no preference"),
    ("mean", "map unit", "mean attribution, signed"),
    ("mean_absolute", "map unit", "mean |attribution|"),
    ("peak", "map unit", "attribution of largest magnitude, with its sign"),
    ("peak_r_mm", "mm", "where that peak lies: right"),
    ("peak_a_mm", "mm", "where that peak lies: anterior"),
    ("peak_s_mm", "mm", "where that peak lies: superior"),
)


@dataclass(frozen=True)
class RegionRow:
    """One segment's row; see :data:`COLUMNS`. NaN where nothing is defined (an empty segment)."""

    label: int
    name: str
    voxels: int
    volume_ml: float
    share: float
    positive_share: float
    negative_share: float
    density_ratio: float
    mean: float
    mean_absolute: float
    peak: float
    peak_r_mm: float
    peak_a_mm: float
    peak_s_mm: float


@dataclass(frozen=True)
class RegionTable:
    """Rows in the order of the labels; the shares of all rows (with row 0, outside) sum to 1."""

    rows: tuple[RegionRow, ...]

    def __getitem__(self, name: str | int) -> RegionRow:
        """Row of a segment by name or label.

        Raises
        ------
        RegionError
            If no row has that name or label.
        """
        for row in self.rows:
            if name in (row.name, row.label):
                return row
        known = ", ".join(row.name for row in self.rows)
        raise RegionError(f"The region table has no row {name!r}. It has: {known}.")

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the table as CSV text with a header line; with `path`, write it too."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = [field.name for field in fields(RegionRow)]
        writer.writerow(names)
        for row in self.rows:
            writer.writerow([_text(value) for value in asdict(row).values()])
        if path is not None:
            write_text(Path(path), buffer.getvalue())
        return buffer.getvalue()

    def to_text(self) -> str:
        """Return the table for a terminal, largest density ratio first."""
        header = f"{'segment':<28}{'ml':>9}{'share':>8}{'pos.':>8}{'neg.':>8}{'density':>9}"
        header += f"{'mean':>11}  peak at RAS (mm)"
        lines = [header, "-" * len(header)]
        for row in sorted(self.rows, key=lambda row: -np.nan_to_num(row.density_ratio, nan=-1.0)):
            where = f"{row.peak_r_mm:.1f}, {row.peak_a_mm:.1f}, {row.peak_s_mm:.1f}"
            lines.append(
                f"{row.name[:27]:<28}{row.volume_ml:>9.1f}{_percent(row.share)}"
                f"{_percent(row.positive_share)}"
                f"{_percent(row.negative_share)}{row.density_ratio:>9.2f}{row.mean:>11.2e}  {where}"
            )
        return "\n".join(lines)


def region_table(
    explanation: Explanation | MetaTensor,
    labelmap: MetaTensor,
    names: Mapping[int, str] | None = None,
) -> RegionTable:
    """Summarise a map in each segment of a label map.

    Parameters
    ----------
    explanation : Explanation or MetaTensor, shape (1, I, J, K)
        The run, or a map of one channel.
    labelmap : MetaTensor, shape (1, X, Y, Z)
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
    values = map_.as_tensor().double().numpy()[0].ravel()
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
    labelmap: MetaTensor, map_: MetaTensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels on the map's grid, and all labels of the label map itself."""
    if labelmap.ndim != 4 or labelmap.shape[0] != 1:
        raise RegionError(
            f"A label map of shape (1, I, J, K) is needed; {tuple(labelmap.shape)} was given."
        )
    raw = labelmap.as_tensor().double().numpy()
    if not np.array_equal(raw, np.round(raw)) or raw.min() < 0:
        raise RegionError(
            "The label map holds fractions or negative values. Give whole numbers with 0 for "
            "'outside'."
        )
    found = np.unique(raw).astype(np.int64)
    labels = resample_labels(labelmap, map_).as_tensor().round().numpy()[0].astype(np.int64)
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
    map_: MetaTensor,
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


def _percent(share: float) -> str:
    return f"{'-':>8}" if np.isnan(share) else f"{share:>8.1%}"


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
