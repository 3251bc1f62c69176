"""Tables and the bar plot of a run as nodes that are not in a scene yet.

Scene files keep tables as tab-separated text with 6 significant digits and no escape for quotes. So
numbers are rounded to 6 digits and quotes replaced here: what is in the scene is what comes back
from the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import vtk

from .host import slicer

if TYPE_CHECKING:
    from ..explanation import Explanation
    from ..regions import RegionTable

__all__ = ["Column", "plot_nodes", "region_node", "summary_node", "summary_rows", "table_node"]

#: (name, title, unit, description, values)
Column = tuple[str, str, str, str, Sequence[Any]]

_BAR_RGB = (0.22, 0.45, 0.70)
_TITLES = {
    "label": "Label",
    "name": "Segment",
    "voxels": "Voxels",
    "volume_ml": "Volume",
    "share": "Share",
    "positive_share": "Positive share",
    "negative_share": "Negative share",
    "density_ratio": "Density ratio",
    "mean": "Mean",
    "mean_absolute": "Mean |a|",
    "peak": "Peak",
    "peak_r_mm": "Peak R",
    "peak_a_mm": "Peak A",
    "peak_s_mm": "Peak S",
}


def table_node(name: str, columns: Iterable[Column]) -> slicer.vtkMRMLTableNode:
    """Make a table node; each column is typed by its values (str, int, float)."""
    node = slicer.vtkMRMLTableNode()
    node.SetName(name)
    node.SetUseColumnTitleAsColumnHeader(True)
    for key, title, unit, description, values in columns:
        node.AddColumn(_array(key, values))
        node.SetColumnTitle(key, title)
        node.SetColumnUnitLabel(key, unit)
        node.SetColumnDescription(key, description)
    return node


def region_node(name: str, regions: RegionTable) -> slicer.vtkMRMLTableNode:
    """Make the region table: one row a segment, one typed column a measurement."""
    from ..region_rows import COLUMNS

    columns = [
        (key, _TITLES.get(key, key), unit, description, [getattr(row, key) for row in regions.rows])
        for key, unit, description in COLUMNS
    ]
    return table_node(name, columns)


def plot_nodes(name: str, regions: RegionTable) -> tuple[Any, Any, Any] | None:
    """Make table, series and chart of the density ratios, largest first; None without any."""
    rows = [row for row in regions.rows if math.isfinite(row.density_ratio)]
    if not rows:
        return None
    rows.sort(key=lambda row: -row.density_ratio)
    table = table_node(
        f"{name} (plot data)",
        [
            ("name", "Segment", "", "name of the segment", [row.name for row in rows]),
            (
                "density_ratio",
                "Density ratio",
                "",
                "1 = no preference",
                [row.density_ratio for row in rows],
            ),
        ],
    )
    series = slicer.vtkMRMLPlotSeriesNode()
    series.SetName(f"{name} (series)")
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
    series.SetLabelColumnName("name")
    series.SetYColumnName("density_ratio")
    series.SetColor(*_BAR_RGB)
    chart = slicer.vtkMRMLPlotChartNode()
    chart.SetName(name)
    chart.SetTitle(name)
    chart.SetXAxisTitle("Segment (largest first; names in the table)")
    chart.SetYAxisTitle("Density ratio (1 = no preference)")
    chart.SetLegendVisibility(False)
    chart.SetGridVisibility(True)
    return table, series, chart


def summary_node(name: str, rows: Iterable[tuple[str, str, str]]) -> slicer.vtkMRMLTableNode:
    """Make the summary: what was explained, how, at what cost, and what to mind."""
    listed = list(rows)
    return table_node(
        name,
        [
            ("property", "Property", "", "what the row says", [row[0] for row in listed]),
            ("value", "Value", "", "its value", [row[1] for row in listed]),
            ("unit", "Unit", "", "unit of the value", [row[2] for row in listed]),
        ],
    )


def summary_rows(explanation: Explanation) -> list[tuple[str, str, str]]:
    """List (property, value, unit) of a run for people."""
    target, model = explanation.target, explanation.model
    unit = str(target.get("unit") or "")
    rows = [
        ("Method", explanation.title, ""),
        ("Output", f"{target.get('output_name', '')} ({target.get('output', '')})", ""),
        ("Score", _words(target.get("score")), ""),
        ("Explained value", f"{explanation.value:.6g}", unit),
    ]
    if target.get("region"):
        rows.append(("Region", _words(target["region"]), ""))
        rows.append(("Region size", _words(target.get("region_voxels")), "voxels"))
        rows.append(("Reduction", _words(target.get("reduce")), ""))
    if target.get("contrast") is not None:
        rows.append(("Contrast with", _words(target.get("contrast_name", target["contrast"])), ""))
    rows += [
        (f"Parameter {key}", _words(value), "") for key, value in explanation.parameters.items()
    ]
    if explanation.layers:
        rows.append(("Layers", ", ".join(explanation.layers), ""))
    if explanation.completeness_error is not None:
        rows.append(("Completeness error", f"{100 * explanation.completeness_error:.3g}", "%"))
    rows.append(("Time", f"{explanation.seconds:.3g}", "s"))
    if explanation.peak_memory_mb is not None:
        rows.append(("Peak memory", f"{explanation.peak_memory_mb:.4g}", "MB"))
    rows += [(f"Model {key}", _words(value), "") for key, value in model.items() if _short(value)]
    return rows + [(f"Version of {key}", value, "") for key, value in explanation.versions.items()]


def _array(name: str, values: Sequence[Any]) -> Any:
    if any(isinstance(value, str) for value in values):
        array = vtk.vtkStringArray()
        convert: Any = _plain
    elif all(isinstance(value, int) for value in values):
        array, convert = vtk.vtkLongArray(), int
    else:
        array, convert = vtk.vtkDoubleArray(), _six_digits
    array.SetName(name)
    for value in values:
        array.InsertNextValue(convert(value))
    return array


def _plain(value: Any) -> str:
    return " ".join(str(value).replace('"', "'").split())


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else math.nan


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _short(value: Any) -> bool:
    """Whether a provenance value is readable in one cell."""
    return isinstance(value, str | int | float) and 0 < len(str(value)) <= 120
