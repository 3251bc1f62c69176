"""The study's figures: maps side by side, and the paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...figure import require_matplotlib
from ...image import make_image, to_ras
from ...panels import draw_anatomy, draw_outline, draw_scale_bar
from ...planes import PLANES, Plane, centre_ras_mm, cut, pixel_size_mm, through, volume_box
from ..nodules import SpiculatedNodules
from ..results import Case, StudyFigure
from .sentences import METRICS, NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .compare import CaseComparison
    from .summary import Summary

__all__ = ["draw_figures"]

#: Pixels along a panel: as many as it has in the file; and what is shown around the spicules.
_PIXELS, _MARGIN_MM, _LEAST_MM = 136, 6.0, 34.0
_INK, _FAINT = "#1a1a1a", "#5c5c5c"
_WIDTH_IN, _SMALL_PT = 9.4, 7.0
#: Intensities shown as black and white: the noise around nodules is to be seen, too.
_WINDOW = (-0.6, 1.0)
#: Told apart by colour-blind people too (Okabe and Ito).
_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00")
_SHAPES = ("o", "s", "D", "^")


def draw_figures(
    cases: Sequence[Case], shown: Mapping[str, CaseComparison], summary: Summary
) -> tuple[StudyFigure, ...]:
    """Draw the maps of one volume a backbone, and the paired tests.

    Parameters
    ----------
    cases : sequence of Case
        One a backbone, in the order of `shown`.
    shown : mapping of str to CaseComparison
    summary : Summary
    """
    require_matplotlib()
    return (
        StudyFigure(
            "attention_vs_baseline_maps",
            "One test volume a backbone, axial plane through the middle of the spicules, which are "
            "outlined. Signed maps: red speaks for spicules, blue against them; each map "
            "has its own scale. Difference: share of the map with the block minus share of the map "
            "without. Attention: mean of the rows of E, unsigned, on its true grid.",
            _maps(cases, shown),
        ),
        StudyFigure(
            "attention_vs_baseline_tests",
            "Mean of the map's metric with the block minus without, over the same volumes, with "
            "95 percent bootstrap intervals. Right of the line the block's value is higher, which "
            "is better but for the deletion area.",
            _tests(summary),
        ),
    )


def _maps(cases: Sequence[Case], shown: Mapping[str, CaseComparison]) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    columns = 7
    left, gap = 0.32, 0.05
    side = (_WIDTH_IN - left - 0.08 - gap * (columns - 1)) / columns
    top, bottom = 0.52, 0.1
    tall = top + bottom + len(cases) * side + gap * (len(cases) - 1)
    figure = NewFigure(figsize=(_WIDTH_IN, tall), facecolor="white")
    heads = (
        "volume\n(spicules outlined)",
        "gradient,\nbaseline",
        "gradient,\nwith the block",
        "gradient,\ndifference",
        "integrated gradients,\nbaseline",
        "integrated gradients,\nwith the block",
        "the block's\nown attention",
    )
    for row, (case, comparison) in enumerate(zip(cases, shown.values(), strict=True)):
        panels = _in_order(comparison)
        low = tall - top - (row + 1) * side - row * gap
        backbone = list(shown)[row]
        figure.text(
            0.16 / _WIDTH_IN,
            (low + side / 2) / tall,
            backbone,
            rotation=90,
            ha="center",
            va="center",
            size=9,
            weight="bold",
            color=_INK,
        )
        labels = case.labels["truth"][0]
        spicules = make_image(labels.as_tensor() == SpiculatedNodules.SPICULES, labels.affine)
        plane = _plane(case.image, spicules)
        window = _WINDOW
        for column, explanation in enumerate(panels):
            x = left + column * (side + gap)
            box = (x / _WIDTH_IN, low / tall, side / _WIDTH_IN, side / tall)
            axes = figure.add_axes(box)
            if explanation is None:
                _grey(axes, plane, case.image, window)
            else:
                draw_anatomy(axes, plane, case.image, explanation, channel=0, window=window)
            draw_outline(axes, plane, spicules, signed=explanation is None or explanation.signed)
            if column == 0:
                draw_scale_bar(axes, plane)
            if row == 0:
                figure.text(
                    (x + side / 2) / _WIDTH_IN,
                    1 - 0.08 / tall,
                    heads[column],
                    ha="center",
                    va="top",
                    size=_SMALL_PT,
                    color=_INK,
                )
    return figure


def _in_order(comparison: CaseComparison) -> list[Any]:
    """Nothing (the volume alone), then the maps from left to right."""
    maps, differences = list(comparison.maps.values()), list(comparison.differences.values())
    return [None, maps[0], maps[1], differences[0], maps[2], maps[3], maps[4]]


def _plane(image: Any, mask: Any) -> Plane:
    """Axial plane through the middle of the spicules, a square around the nodule."""
    middle, whole = centre_ras_mm(mask), volume_box(image)
    places = np.argwhere(mask.as_tensor()[0].numpy() > 0)
    half = float(np.abs(to_ras(mask.affine, places) - middle).max()) + _MARGIN_MM
    half = min(max(half, _LEAST_MM), float((whole[1] - whole[0]).min()) / 2)
    centre = np.clip(middle, whole[0] + half, whole[1] - half)
    box = np.stack([centre - half, centre + half])
    return through(middle, box, pixel_size_mm(box, _PIXELS))[0]


def _grey(axes: Any, plane: Plane, image: Any, window: tuple[float, float]) -> None:
    flat = np.nan_to_num(cut(image, plane), nan=window[0])
    axes.imshow(
        flat, cmap="gray", vmin=window[0], vmax=window[1], extent=plane.extent, aspect="auto"
    )
    axes.set_axis_off()
    _, left, right, _, _, _, _ = PLANES[plane.name]
    style: dict[str, Any] = {
        "transform": axes.transAxes,
        "va": "center",
        "color": "white",
        "size": 6.5,
        "weight": "bold",
    }
    axes.text(0.012, 0.5, left, ha="left", **style)
    axes.text(0.988, 0.5, right, ha="right", **style)


def _tests(summary: Summary) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    rows = summary.paired.rows
    baselines = list(dict.fromkeys(row[0] for row in rows))
    figure = NewFigure(figsize=(_WIDTH_IN, 3.9), facecolor="white")
    methods = list(NAMES.values())
    for column, (title, higher) in enumerate(METRICS.values()):
        axes = figure.add_axes((0.165 + 0.21 * column, 0.2, 0.19, 0.7))
        axes.axvline(0, color=_FAINT, linewidth=0.8)
        for row in rows:
            if row[2] != title:
                continue
            which = baselines.index(row[0])
            place = methods.index(row[1]) + (which - (len(baselines) - 1) / 2) * 0.17
            axes.errorbar(
                row[6],
                place,
                xerr=[[max(0.0, row[6] - row[7])], [max(0.0, row[8] - row[6])]],
                fmt=_SHAPES[which],
                color=_COLOURS[which],
                markersize=4,
                linewidth=1.1,
                markerfacecolor=_COLOURS[which] if row[10] < 0.05 else "white",
                label=row[0] if row[1] == methods[0] else None,
            )
        axes.set_ylim(len(methods) - 0.5, -0.5)
        for line in range(1, len(methods)):
            axes.axhline(line - 0.5, color="#dddddd", linewidth=0.6)
        axes.set_yticks(range(len(methods)), [] if column else methods)
        axes.tick_params(labelsize=_SMALL_PT, length=2, color=_FAINT)
        axes.tick_params(axis="y", length=0)
        better = "right" if higher else "left"
        axes.set_title(f"{title}\n(block better: {better})", size=8.5, color=_INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.text(
        0.5,
        0.105,
        "difference, with the block minus without (filled: p < 0.05 after Holm's adjustment)",
        ha="center",
        size=8,
        color=_INK,
    )
    return figure
