"""What a region table is: its columns, its rows, and the table as text. Needs no torch.

How the numbers are made is in :mod:`SaliencyExplainLib.regions`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RegionError
from .explanation import write_text
from .plain_text import cell_text

__all__ = ["COLUMNS", "RegionRow", "RegionTable"]

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
        """Return the table as CSV text with a header line; with `path`, write it too.

        A name that a spreadsheet program would run as a formula gets an apostrophe in front.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = [field.name for field in fields(RegionRow)]
        writer.writerow(names)
        for row in self.rows:
            writer.writerow([_text(value) for value in asdict(row).values()])
        if path is not None:
            write_text(Path(path), buffer.getvalue())
        return buffer.getvalue()

    def to_records(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values; null where a number is not defined."""
        return [
            {key: None if value != value else value for key, value in asdict(row).items()}
            for row in self.rows
        ]

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> RegionTable:
        """Make the table from what :meth:`to_records` gave.

        Raises
        ------
        RegionError
            If a column is missing or unknown.
        """
        rows: list[dict[str, Any]] = [
            {key: float("nan") if value is None else value for key, value in one.items()}
            for one in records
        ]
        try:
            return cls(tuple(RegionRow(**row) for row in rows))
        except TypeError as error:
            raise RegionError(f"These are no rows of a region table: {error}.") from error

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


def _percent(share: float) -> str:
    return f"{'-':>8}" if np.isnan(share) else f"{share:>8.1%}"


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else cell_text(str(value))
