"""The report's sections: each turns one kind of finding into HTML, or into nothing without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .markup import Html, cell, image, joined, section, table, tag
from .plots import Plot
from .verdict import STATES, Check
from .words import duration, interval, number, percent, with_unit

if TYPE_CHECKING:
    from ..quality import Comparison, Evaluation, Ranking, Row, SanityCheck
    from ..regions import RegionTable

__all__ = [
    "checks_section",
    "figure_of",
    "metrics_section",
    "ranking_section",
    "regions_section",
    "sanity_section",
]

_BETTER = {"higher": "↑ higher", "lower": "↓ lower", "none": "neither"}
#: Maps whose names fit above the columns of a table on paper.
_WIDEST = 5
_FAMILIES = {
    "faithfulness": "Faithfulness: does the network use what the map shows?",
    "axioms": "Axioms: does the map keep its own promise?",
    "robustness": "Robustness: does the map stay when nothing that matters changes?",
    "localisation": "Localisation: where does the attribution lie?",
    "complexity": "Complexity: how much is there to look at?",
}


def regions_section(
    regions: RegionTable, plot: Plot | None, intervals: Mapping[str, tuple[float, float]]
) -> Html:
    """Return the table and plot of the segments."""
    rows = sorted(
        regions.rows, key=lambda row: (row.label == 0, -np.nan_to_num(row.density_ratio, nan=-1))
    )
    signed = any((row.negative_share or 0) > 0 for row in rows)
    heads = [
        ("Segment", False),
        ("Volume, ml", True),
        ("Share", True),
        ("Density ratio", True),
        *([("95% interval", True)] if intervals else []),
        *([("Share for", True), ("Share against", True)] if signed else []),
        ("Mean, map unit", True),
        ("Peak at R, A, S, mm", True),
    ]
    body = [_region_row(row, intervals, signed=signed) for row in rows]
    note = (
        "Share: part of all |attribution|. Density ratio: share divided by the segment's part of "
        "the volume; 1 is no preference, 2 is twice as dense as on average."
    )
    return section("regions", "Segments", tag("p", note), figure_of(plot), _numbered(heads, body))


def checks_section(checks: Sequence[Check]) -> Html:
    """Return one row a check, with its reason."""
    rows = [
        tag(
            "tr",
            cell(one.name[:1].upper() + one.name[1:], head="row"),
            cell(tag("span", STATES[one.state], class_=f"badge {one.state}")),
            cell(one.sentence, class_="words"),
        )
        for one in checks
    ]
    heads = [("The map …", False), ("Result", False), ("Reason", False)]
    made = table("What speaks for and against this map", heads, [rows])
    note = (
        "A check that passes does not prove the map; one that fails is a reason not to rely on it."
    )
    return section("checks", "Checks", tag("p", note), made)


def metrics_section(evaluation: Evaluation, plot: Plot | None, *, has_regions: bool) -> Html:
    """Return each metric with value, interval, direction and its reading in words."""
    from ..quality import metrics

    known = metrics()
    groups: dict[str, list[Html]] = {}
    for row in evaluation.rows:
        name, _, part = row.metric.partition(".")
        made = known.get(name.partition("[")[0])
        if part and has_regions and name == "density_ratio":
            continue  # a row a segment stands in the table of segments
        family = made.family if made else "other"
        groups.setdefault(family, []).append(_metric_row(row, made, part))
    heads = [
        ("Metric", False),
        ("Value", True),
        ("95% interval", True),
        ("Better", False),
        ("In words", False),
    ]
    order = [*(one for one in _FAMILIES if one in groups), *(set(groups) - set(_FAMILIES))]
    bodies = [
        [
            tag(
                "tr",
                tag("th", _FAMILIES.get(name, name), colspan=5, scope="rowgroup", class_="group"),
            ),
            *groups[name],
        ]
        for name in order
    ]
    passes = sum(row.passes for row in evaluation.rows)
    cost = f"Cost: {passes:,.4g} passes over the volume, {duration(evaluation.seconds)}."
    left = None
    if evaluation.skipped:
        told = "; ".join(f"{name} {reason}" for name, reason in evaluation.skipped)
        left = tag("p", f"Not measured: {told}.", class_="small faint")
    made_table = table("Metrics of this map", heads, bodies)
    return section(
        "metrics", "Metrics", figure_of(plot), made_table, left, tag("p", cost, class_="small")
    )


def sanity_section(sanity: SanityCheck, plot: Plot | None) -> Html:
    """Return the stages of the randomisation and the verdict."""
    names = [name for name in sanity.stages[0].similarity if name != "everywhere"]
    titles = {
        "spearman": "Rank corr., signed",
        "spearman_absolute": "Rank corr., magnitude",
        "ssim": "SSIM",
    }
    heads = [("Layers made random", False), ("Random", True)]
    heads += [(titles.get(name, name), True) for name in names]
    heads += [("Gradient", True), ("Score", True)]
    rows = [
        tag(
            "tr",
            cell(tag("code", _layers(stage.layers)), head="row"),
            cell(percent(stage.randomised), number=True),
            *(cell(_two(stage.similarity[name]), number=True) for name in names),
            cell(_two(stage.gradient), number=True),
            cell(number(stage.score), number=True),
        )
        for stage in sanity.stages
    ]
    details = sanity.details
    draws = details.get("draws", 1)
    told = (
        f"Copies of the network with random weights ({sanity.mode}; {draws} "
        f"draw{'s' if draws != 1 else ''} a stage, seed {details.get('seed')}); "
        f"maps compared {sanity.compared}; "
        f"{duration(sanity.seconds)}."
    )
    made = table("Similarity with the trained network's map, a row a stage", heads, [rows])
    return section(
        "sanity",
        "Sanity check",
        tag("p", sanity.sentence),
        figure_of(plot),
        made,
        tag("p", told, class_="small"),
    )


def ranking_section(
    ranking: Ranking, plot: Plot, pictures: Sequence[Html], comparison: Comparison | None
) -> Html:
    """Return which method is best here, and how alike their maps are."""
    heads = [("Method", False), ("Mean rank", True), ("95% interval", True), ("Best in", True)]
    directions = {key: row.direction for one in ranking.methods for key, row in one.rows.items()}
    heads += [
        (f"{name.replace('_', ' ')} {_arrow(directions[name])}", True) for name in ranking.metrics
    ]
    heads += [("Time", True)]
    rows = [
        tag(
            "tr",
            cell(_ranked(one, one is ranking.methods[0]), head="row"),
            cell(number(one.mean_rank), number=True),
            cell(interval(one.interval), number=True),
            cell("" if one.best_share is None else percent(one.best_share), number=True),
            *(
                cell(number(one.rows[name].value if name in one.rows else None), number=True)
                for name in ranking.metrics
            ),
            cell(duration(one.seconds), number=True),
        )
        for one in ranking.methods
    ]
    failed = [tag("li", tag("strong", name), f": {reason}") for name, reason in ranking.failed]
    return section(
        "ranking",
        "Which method here?",
        tag("p", ranking.answer),
        figure_of(plot),
        table("Methods, best first, with the value of each metric", heads, [rows]),
        tag("p", "Methods that could not be run:") if failed else None,
        tag("ul", *failed) if failed else None,
        _alike(comparison) if comparison is not None else None,
        *pictures,
        class_="sheet",
    )


def figure_of(plot: Plot | None) -> Html | None:
    """Return a plot inside the page, with its caption."""
    if plot is None:
        return None
    picture = image(plot.svg, "image/svg+xml", plot.alternative)
    return tag("figure", picture, tag("figcaption", plot.caption))


def _numbered(heads: Sequence[tuple[str, bool]], rows: Sequence[Html]) -> Html:
    return table("Attribution in each segment, the densest first", heads, [rows])


def _region_row(row: Any, intervals: Mapping[str, tuple[float, float]], *, signed: bool) -> Html:
    peak = [row.peak_r_mm, row.peak_a_mm, row.peak_s_mm]
    where = "" if any(math.isnan(one) for one in peak) else ", ".join(f"{one:.1f}" for one in peak)
    numbers = [
        number(row.volume_ml, 3),
        percent(row.share),
        _two(row.density_ratio),
        *([interval(intervals.get(row.name), 3)] if intervals else []),
        *([percent(row.positive_share), percent(row.negative_share)] if signed else []),
        number(row.mean, 2),
        where.replace("-", "\N{MINUS SIGN}"),
    ]
    name = cell(row.name if row.voxels else f"{row.name} (no voxel inside the map)", head="row")
    return tag("tr", name, *(cell(one, number=True) for one in numbers))


def _metric_row(row: Row, made: Any, part: str) -> Html:
    about = None
    if not part and made is not None:
        about = joined([tag("br"), tag("span", made.summary, class_="faint")])
    scale = made.scale if made is not None and not part else ""
    read = tag("br") if scale else None
    told = tag("span", f"Scale: {scale}.", class_="faint") if scale else None
    return tag(
        "tr",
        cell(joined([row.title, about]), head="row"),
        cell(with_unit(row.value, _units(row.unit)), number=True),
        cell(interval(row.interval), number=True),
        cell(_BETTER.get(row.direction, row.direction), class_="still"),
        cell(joined([row.reading, read, told]), class_="words"),
    )


def _units(unit: str) -> str:
    return {"score": "", "score^2": "", "nat": "nat"}.get(unit, unit)


def _ranked(one: Any, first: bool) -> Html:
    mark = "" if first or not one.tied else " (not told apart from the best)"
    return joined([one.title, tag("br"), tag("span", f"{one.name}{mark}", class_="faint")])


def _alike(comparison: Comparison) -> Html:
    from ..quality import MEASURES

    columns: Sequence[str] = comparison.names
    rows_of = columns
    if len(columns) > _WIDEST:
        rows_of = [f"{number_}. {name}" for number_, name in enumerate(columns, 1)]
        columns = [str(number_) for number_ in range(1, len(rows_of) + 1)]
    tables = []
    for measure, matrix in comparison.matrices.items():
        title = MEASURES[measure][1] if measure in MEASURES else measure.replace("_", " ")
        rows = [
            tag("tr", cell(name, head="row"), *(cell(_two(one), number=True) for one in values))
            for name, values in zip(rows_of, matrix.tolist(), strict=True)
        ]
        heads = [("Map", False), *((name, True) for name in columns)]
        tables.append(table(f"How alike the maps are: {title} (1 = the same)", heads, [rows]))
    notes = [tag("p", note, class_="small") for note in comparison.notes]
    return joined([tag("h3", "How alike are the maps?"), *tables, *notes])


def _layers(names: Sequence[str]) -> str:
    if len(names) < 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"


def _arrow(direction: str) -> str:
    """The arrow of the better end."""
    return _BETTER.get(direction, "").partition(" ")[0]


def _two(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "not defined"
    # Not "-0.00".
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
