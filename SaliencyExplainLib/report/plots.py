"""The report's plots: segments, curves, randomisation, ranking. Each as SVG (page) and PNG (file).

Colours are told apart by people with colour blindness (Okabe and Ito), and lines by their style,
too. Names are drawn as they are: a dollar sign starts no formula.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..quality import Evaluation, Ranking, SanityCheck
    from ..regions import RegionTable

__all__ = ["Plot", "curves_plot", "ranking_plot", "region_plot", "sanity_plot"]

_MAP, _OTHER, _INK, _FAINT, _GRID = "#0072b2", "#d55e00", "#1a1a1a", "#5c5c5c", "#d9dde3"
_WIDTH_IN, _PNG_DPI = 7.0, 200
#: Rows of a bar plot; the table has all of them.
MOST_BARS = 24
_LONGEST = 34


@dataclass(frozen=True)
class Plot:
    """A plot in both forms, and what it shows in words.

    Attributes
    ----------
    name : str
        Of the file, without its ending.
    svg, png : bytes
    alternative : str
        For those who do not see it.
    caption : str
    """

    name: str
    svg: bytes
    png: bytes
    alternative: str
    caption: str


def region_plot(table: RegionTable) -> Plot | None:
    """Share and density ratio of each segment, the densest first."""
    rows = [row for row in table.rows if row.label and row.voxels and row.share == row.share]
    rows.sort(key=lambda row: -row.density_ratio)
    if not rows:
        return None
    shown = rows[:MOST_BARS]
    with _styled(0.75 + 0.24 * len(shown), columns=2) as (figure, axes):
        places = list(range(len(shown)))[::-1]
        left, right = axes
        shares = left.barh(places, [100 * row.share for row in shown], color=_MAP, height=0.68)
        left.set_xlabel("share of all |attribution|, %")
        left.set_yticks(places, [_short(row.name) for row in shown])
        dense = right.barh(places, [row.density_ratio for row in shown], color=_OTHER, height=0.68)
        right.set_xlabel("density ratio (1 = no preference)")
        right.axvline(1, color=_INK, linewidth=0.9, linestyle="--", zorder=0)
        for one, bars, texts in (
            (left, shares, [f"{100 * row.share:.1f}" for row in shown]),
            (right, dense, [f"{row.density_ratio:.2f}" for row in shown]),
        ):
            made = one.bar_label(bars, texts, size=6.5, padding=3, color=_INK)
            for text in made:
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
            one.set_xlim(0, 1.14 * max(one.get_xlim()[1], 1e-12))
            one.set_ylim(-0.6, len(shown) - 0.4)
        svg, png = _both(figure)
    told = ", ".join(
        f"{row.name}: share {row.share:.1%}, density ratio {row.density_ratio:.2f}"
        for row in shown[:8]
    )
    more = f" The {MOST_BARS} densest of {len(rows)}." if len(rows) > MOST_BARS else ""
    return Plot(
        "regions",
        svg,
        png,
        f"Bar charts of the segments. {told}.",
        "Left: how much of all |attribution| lies in each segment; it grows with the segment's "
        "size. Right: the same, divided by the segment's part of the volume; beyond the dashed "
        f"line the attribution is denser than on average.{more}",
    )


def curves_plot(evaluation: Evaluation) -> Plot | None:
    """Deletion, insertion and ROAD curves, beside those of a random map."""
    found = {row.metric.partition("[")[0]: row for row in reversed(evaluation.rows)}
    drawn = [
        found[name]
        for name in ("deletion", "insertion", "road")
        if name in found and _lines(found[name])
    ]
    if not drawn:
        return None
    with _styled(2.45, columns=len(drawn), share=False) as (figure, axes):
        for one, row in zip(axes, drawn, strict=True):
            percent = row.details["percent"]
            for (label, values), style in zip(_lines(row), _STYLES, strict=False):
                one.plot(percent, values, label=label, **style)
            one.set_title(row.title, size=8.5, weight="bold", loc="left")
            one.set_xlabel("voxels changed, %")
            one.set_xlim(0, 100)
            normal = row.metric != "road" and row.details.get("ordinate") == "score"
            one.set_ylabel("score (1 = image, 0 = baseline)" if normal else "score")
            one.grid(color=_GRID, linewidth=0.6)
            one.legend(frameon=False, fontsize=6.5)
        svg, png = _both(figure)
    told = " ".join(f"{row.title}: {row.reading}" for row in drawn)
    return Plot(
        "curves",
        svg,
        png,
        f"Curves of the score while voxels are changed. {told}",
        "The score while ever more voxels are changed, highest first. A faithful map falls early "
        "under deletion and rises early under insertion; with ROAD its two curves lie apart.",
    )


def sanity_plot(sanity: SanityCheck) -> Plot | None:
    """Similarity with the trained network's map, stage by stage."""
    measures = [name for name in sanity.stages[0].similarity if name != "everywhere"]
    own = "spearman" if "spearman" in measures else measures[0]
    if math.isfinite(sanity.alike):
        own = min(measures, key=lambda name: abs(_read(sanity, name) - sanity.alike))
    at = [100 * stage.randomised for stage in sanity.stages]
    with _styled(2.6, columns=1, share=False) as (figure, (axes,)):
        if sanity.mode == "cascading":
            axes.axvspan(30, 80, color="#eef2f7", zorder=0)
            axes.text(31, 1.02, "read by the verdict", size=6.5, color=_FAINT, va="bottom")
        axes.axhline(0.5, color=_FAINT, linewidth=0.8, linestyle=":")
        axes.text(100.5, 0.5, "0.5", size=6.5, color=_FAINT, va="center")
        values = [stage.similarity[own] for stage in sanity.stages]
        axes.plot(at, values, label=sanity.title, clip_on=False, **_STYLES[0])
        yardstick = [stage.gradient for stage in sanity.stages]
        axes.plot(at, yardstick, label="plain gradient (yardstick)", clip_on=False, **_STYLES[1])
        axes.set_xlim(0, 100)
        axes.set_ylim(min(-0.05, *(one for one in values + yardstick if one == one)) - 0.03, 1.0)
        axes.set_xlabel("layers with random weights, %, from the output on")
        axes.set_ylabel("rank correlation with\nthe trained network's map")
        axes.grid(color=_GRID, linewidth=0.6)
        axes.legend(frameon=False, fontsize=7, loc="best")
        svg, png = _both(figure)
    told = ", ".join(f"{x:.0f} %: {y:.2f}" for x, y in zip(at, values, strict=True))
    return Plot(
        "sanity",
        svg,
        png,
        f"Similarity against the part of the layers that is random. {told}.",
        "A map that depends on what was learned must change, so its line must fall. One that stays "
        "high shows the image, whatever the network has learned.",
    )


def ranking_plot(ranking: Ranking) -> Plot:
    """Mean rank of each method with its 95 percent interval, the best on top."""
    rows = ranking.methods
    with _styled(0.75 + 0.27 * len(rows), columns=1, share=False) as (figure, (axes,)):
        for place, one in zip(range(len(rows))[::-1], rows, strict=True):
            colour = _MAP if one.tied or one is rows[0] else _FAINT
            if one.interval is not None:
                axes.plot(one.interval, (place, place), color=colour, linewidth=1.6)
            axes.plot(one.mean_rank, place, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(rows))[::-1], [_short(one.name) for one in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(0.8, len(rows) + 0.2)
        axes.set_xticks(range(1, len(rows) + 1))
        axes.set_xlabel("mean rank over the metrics (1 = best)")
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        svg, png = _both(figure)
    told = ", ".join(f"{one.name}: {one.mean_rank:.2f}" for one in rows)
    return Plot(
        "ranking",
        svg,
        png,
        f"Mean ranks of the methods, best first. {told}.",
        "Mean rank of each method; bars: 95 percent interval over redrawn metrics. Blue: the best "
        "and those that cannot be told apart from it.",
    )


_STYLES: tuple[dict[str, Any], ...] = (
    {"color": _MAP, "linewidth": 1.6, "marker": "o", "markersize": 3.5},
    {"color": _OTHER, "linewidth": 1.3, "linestyle": "--", "marker": "s", "markersize": 3.5},
)


def _lines(row: Any) -> list[tuple[str, list[float]]]:
    """Curves of a metric with their names."""
    details = row.details
    if "most_relevant_first" in details:
        return [
            ("highest away first", details["most_relevant_first"]),
            ("lowest away first", details["least_relevant_first"]),
        ]
    if "curve" not in details:
        return []
    control = [("random map", details["control"])] if "control" in details else []
    return [("this map", details["curve"]), *control]


def _read(sanity: SanityCheck, measure: str) -> float:
    """Mean of a measure over the stages that the verdict reads."""
    read = [one for one in sanity.stages if 0.3 <= one.randomised <= 0.8] or list(sanity.stages)
    known = [one.similarity[measure] for one in read if math.isfinite(one.similarity[measure])]
    return sum(known) / len(known) if known else math.inf


@contextmanager
def _styled(
    height_in: float, *, columns: int, share: bool = True
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure in the report's style, which ends with the block."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # It imports torch; the verdict beside this module needs none.
    from ..panels import font_families

    style: Any = {
        "font.family": font_families(),
        "font.size": 7.5,
        "axes.edgecolor": _FAINT,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,
        "svg.fonttype": "none",
        # The same input gives the same file.
        "svg.hashsalt": "report",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH_IN, height_in), facecolor="white", layout="constrained")
        axes = figure.subplots(1, columns, sharey=share, squeeze=False)[0]
        yield figure, list(axes)


def _both(figure: Figure) -> tuple[bytes, bytes]:
    """SVG and PNG of a figure, without dates."""
    nobody = {"Date": None, "Creator": None, "Format": None, "Type": None}
    written = []
    for kind, more in (("svg", {"metadata": nobody}), ("png", {"dpi": _PNG_DPI})):
        buffer = io.BytesIO()
        save: Callable[..., None] = figure.savefig
        save(buffer, format=kind, facecolor="white", **more)
        written.append(buffer.getvalue())
    return written[0], written[1]


def _short(name: str) -> str:
    """A name that fits beside a plot, on one line, without what cannot be drawn."""
    line = "".join(one if one.isprintable() else " " for one in name)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
