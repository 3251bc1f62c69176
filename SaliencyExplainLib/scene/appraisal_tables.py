"""Tables and plots of how far a map can be trusted, as nodes that are not in a scene yet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .host import slicer
from .tables import table_node

if TYPE_CHECKING:
    from ..quality import Appraisal, Comparison, Evaluation, Ranking, Row, SanityCheck
    from ..report import Verdict

__all__ = ["Part", "parts_of"]

#: Metrics whose curves are drawn, and whether the random map is in them.
_CURVES = ("deletion", "insertion", "road")
_BETTER = {"higher": "higher", "lower": "lower", "none": "neither end"}
#: Told apart by people with colour blindness (Okabe and Ito), and by line and marker, too.
_MAP_RGB, _OTHER_RGB = (0.0, 0.447, 0.698), (0.835, 0.369, 0.0)


@dataclass
class Part:
    """One table, and its plot where there is one.

    Attributes
    ----------
    role : str
        What it is for the map: "metrics", "verdict", "sanity", ...
    table : vtkMRMLTableNode
    chart : vtkMRMLPlotChartNode or None
    series : list of (vtkMRMLPlotSeriesNode, str)
        Of the chart, with their names in its legend.
    """

    role: str
    table: Any
    chart: Any = None
    series: Sequence[tuple[Any, str]] = ()


def parts_of(name: str, found: Appraisal, verdict: Verdict) -> list[Part]:
    """Make all tables and plots; `name` is the start of their names."""
    parts = [Part("verdict", _verdict_table(f"{name} (verdict)", verdict))]
    if found.evaluation is not None:
        parts.append(Part("metrics", _metric_table(f"{name} (metrics)", found.evaluation)))
        rows = {row.metric.partition("[")[0]: row for row in reversed(found.evaluation.rows)}
        made = [_curve(name, rows[key]) for key in _CURVES if key in rows]
        parts += [one for one in made if one is not None]
    if found.sanity is not None:
        parts.append(_sanity(name, found.sanity))
    if found.ranking is not None:
        parts.append(Part("ranking", _ranking_table(f"{name} (ranking)", found.ranking)))
    if found.comparison is not None:
        parts.append(Part("comparison", _comparison_table(f"{name} (maps)", found.comparison)))
    return parts


def _verdict_table(name: str, verdict: Verdict) -> Any:
    from ..report.verdict import STATES

    rows = [(verdict.headline, verdict.state, verdict.sentence)]
    rows += [(one.name, one.state, one.sentence) for one in verdict.checks]
    return table_node(
        name,
        [
            ("check", "Check", "", "what was asked; first all together", [one[0] for one in rows]),
            ("state", "Result", "", "how it ended", [STATES[one[1]] for one in rows]),
            ("sentence", "In words", "", "the answer, or why none", [one[2] for one in rows]),
        ],
    )


def _metric_table(name: str, evaluation: Evaluation) -> Any:
    rows = evaluation.rows
    columns: list[Any] = [
        ("title", "Metric", "", "what was measured", [row.title for row in rows]),
        ("value", "Value", "", "nan: not defined here", [_number(row.value) for row in rows]),
        ("better", "Better", "", "which end", [_BETTER[row.direction] for row in rows]),
        ("reading", "In words", "", "how the value is read", [row.reading for row in rows]),
    ]
    if any(row.interval is not None for row in rows):
        ends = [row.interval or (math.nan, math.nan) for row in rows]
        about = "end of the 95 percent interval"
        columns += [
            ("low", "Low", "", f"lower {about}", [float(one[0]) for one in ends]),
            ("high", "High", "", f"upper {about}", [float(one[1]) for one in ends]),
        ]
    columns += [
        ("unit", "Unit", "", "of the value", [row.unit for row in rows]),
        ("passes", "Passes", "", "sweeps over the volume", [float(row.passes) for row in rows]),
        ("seconds", "Time", "s", "wall time", [float(row.seconds) for row in rows]),
        ("metric", "Key", "", "name in the Python console", [row.metric for row in rows]),
    ]
    return table_node(name, columns)


def _curve(name: str, row: Row) -> Part | None:
    """The score while voxels go or come; None where the metric is not defined."""
    details, key = row.details, row.metric.partition("[")[0]
    lines = {"curve": "this map", "control": "random map"}
    if key == "road":
        lines = {
            "most_relevant_first": "highest away first",
            "least_relevant_first": "lowest away first",
        }
    there = {line: told for line, told in lines.items() if line in details}
    if "percent" not in details or not there:
        return None
    base = f"{name} ({row.title.lower()})"
    columns = [("percent", "Voxels changed", "%", "in the map's order", details["percent"])]
    columns += [(line, told, "", "score", _numbers(details[line])) for line, told in there.items()]
    table = table_node(base, [(*one[:4], _numbers(one[4])) for one in columns])
    normal = key != "road" and details.get("ordinate") == "score"
    axes = ("Voxels changed (%)", "Score (1 = image, 0 = baseline)" if normal else "Score")
    return _plot(key, table, base, "percent", there, axes)


def _sanity(name: str, sanity: SanityCheck) -> Part:
    """Similarity with the trained network's map, a stage a row."""
    stages, base = sanity.stages, f"{name} (sanity check)"
    measures = list(stages[0].similarity) if stages else []
    columns: list[Any] = [
        ("random_percent", "Random layers", "%", "part of all layers that is random",
         [100.0 * stage.randomised for stage in stages]),
    ]  # fmt: skip
    columns += [
        (key, key.replace("_", " ").capitalize(), "", "similarity with the map of the trained "
         "network; 1 = alike", [_number(stage.similarity.get(key)) for stage in stages])
        for key in measures
    ]  # fmt: skip
    columns += [
        ("gradient", "Plain gradient", "", "the same of the gradient, as a yardstick",
         [_number(stage.gradient) for stage in stages]),
        ("score", "Score", "", "of the random network", [_number(one.score) for one in stages]),
        ("layers", "New weights in", "", "layers of this stage",
         [", ".join(stage.layers) for stage in stages]),
    ]  # fmt: skip
    table = table_node(base, columns)
    table.SetDescription(sanity.sentence)
    if not stages:
        return Part("sanity", table)
    told = str(sanity.details.get("measure"))
    lines = {
        told if told in measures else measures[0]: sanity.title,
        "gradient": "plain gradient (yardstick)",
    }
    axes = ("Layers with random weights (%)", "Similarity with the trained network's map")
    return _plot("sanity", table, base, "random_percent", lines, axes)


def _plot(
    role: str, table: Any, base: str, x: str, lines: Mapping[str, str], axes: tuple[str, str]
) -> Part:
    """Make the chart of some columns of a table."""
    kind = slicer.vtkMRMLPlotSeriesNode
    styles = (
        (_MAP_RGB, kind.LineStyleSolid, kind.MarkerStyleCircle),
        (_OTHER_RGB, kind.LineStyleDash, kind.MarkerStyleSquare),
    )
    series = []
    for (column, told), (color, line, marker) in zip(lines.items(), styles, strict=False):
        one = slicer.vtkMRMLPlotSeriesNode()
        one.SetName(f"{base} ({told})")
        one.SetPlotType(kind.PlotTypeScatter)
        one.SetXColumnName(x)
        one.SetYColumnName(column)
        one.SetColor(*color)
        one.SetLineStyle(line)
        one.SetMarkerStyle(marker)
        one.SetLineWidth(2)
        series.append((one, told))
    chart = slicer.vtkMRMLPlotChartNode()
    chart.SetName(f"{base} (plot)")
    chart.SetTitle(base)
    chart.SetXAxisTitle(axes[0])
    chart.SetYAxisTitle(axes[1])
    chart.SetLegendVisibility(True)
    chart.SetGridVisibility(True)
    return Part(role, table, chart, series)


def _ranking_table(name: str, ranking: Ranking) -> Any:
    """Methods, best first; behind them those that failed, with the reason."""
    rows, failed = ranking.methods, ranking.failed
    blank = [math.nan] * len(failed)
    best = [(one.best_share, one.interval or (None, None)) for one in rows]
    notes = ["best" if not index else "not told apart" if one.tied else ""
             for index, one in enumerate(rows)]  # fmt: skip
    columns: list[Any] = [
        ("title", "Method", "", "best first", [*(one.title for one in rows),
                                               *(one[0] for one in failed)]),
        ("mean_rank", "Mean rank", "", "1 = best", [*(one.mean_rank for one in rows), *blank]),
        ("low", "Low", "", "lower end of the 95 percent interval",
         [*(_number(one[1][0]) for one in best), *blank]),
        ("high", "High", "", "upper end of the 95 percent interval",
         [*(_number(one[1][1]) for one in best), *blank]),
        ("best_share", "Best in", "", "part of redrawn metrics in which it is best",
         [*(_number(one[0]) for one in best), *blank]),
        ("note", "Note", "", "what to mind", [*notes, *(one[1] for one in failed)]),
    ]  # fmt: skip
    for metric in ranking.metrics:
        values = [one.rows[metric].value if metric in one.rows else None for one in rows]
        column = f"value_{metric}"
        columns.append((column, metric, "", "value of the metric", [*map(_number, values), *blank]))
    columns += [
        ("seconds", "Time", "s", "of making the map", [*(one.seconds for one in rows), *blank]),
        ("name", "Key", "", "name in the Python console",
         [*(one.name for one in rows), *(one[0] for one in failed)]),
    ]  # fmt: skip
    table = table_node(name, columns)
    table.SetDescription(ranking.answer)
    return table


def _comparison_table(name: str, comparison: Comparison) -> Any:
    """Each measure's matrix below the one before."""
    names = comparison.names
    measures = list(comparison.matrices)
    columns: list[Any] = [
        ("measure", "Measure", "", "of similarity",
         [one.replace("_", " ") for one in measures for _ in names]),
        ("map", "Map", "", "compared with those of the columns",
         [told for _ in measures for told in names]),
    ]  # fmt: skip
    for index, told in enumerate(names):
        values = [
            float(one) for key in measures for one in comparison.matrices[key][:, index].tolist()
        ]
        columns.append((f"with_{index + 1}", told, "", "1 = alike", values))
    table = table_node(name, columns)
    table.SetDescription(" ".join(comparison.notes))
    return table


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [_number(value) for value in values]
