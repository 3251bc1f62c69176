"""The figures of the study, and its plots for the scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...figure import require_matplotlib
from ...image import make_image, to_ras
from ...panels import colour_limit, coloured, draw_outline, draw_scale_bar
from ...planes import Plane, cut, pixel_size_mm, through, volume_box
from ..results import StudyFigure, StudyPlot
from .measures import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ...explanation import Explanation
    from ..nodules import SpiculatedNodules
    from .compare import LayerSetComparison
    from .pipeline import Found

__all__ = ["figures", "plots"]

_INK, _FAINT = "#1a1a1a", "#5c5c5c"
#: Okabe and Ito's palette, told apart by colour-blind people too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_WIDE = 10.0
_SHADES = 16
_BAIT_RGB = "#b8b8b8"
_AQ, _RANK, _OUTSIDE = "attribution_quality", "evidence_rank", "outside_rank"


def figures(
    found: Found,
    scene: SpiculatedNodules,
    maps: Mapping[tuple[str, str], Explanation],
    values: Mapping[str, Mapping[str, float]],
) -> tuple[StudyFigure, ...]:
    """Return all figures, the main one first.

    Parameters
    ----------
    found : Found
    scene : SpiculatedNodules
        The case that is shown.
    maps : mapping of (set, method) to Explanation
        Its maps.
    values : mapping of "set/method" to the values of METRICS
        What was measured of them.
    """
    require_matplotlib()
    return (
        StudyFigure(
            "kernel_weighted_contribution_maps",
            "One test case (the one of median Dice), an axial slice. Rows: methods; columns: sets "
            "of layers. Cyan: the known evidence, spicules and the bodies that carry them; grey: "
            "plain nodules, the bait. Each map goes from 0 to its own colour limit; below a "
            "twentieth of it the scan is seen. In each panel: Attribution Quality (an even map: "
            "1) and evidence rank (1: the highest voxels are exactly the evidence).",
            _maps(found.main, scene, maps, values),
        ),
        StudyFigure(
            "kernel_weighted_contribution_quality",
            f"Over {len(found.main.rows)} test cases. Top: Attribution Quality, with that of an "
            "even map (dashed). Middle: part of the highest voxels that lies in the known "
            "evidence. Bottom: the same for the spicules alone. Boxes: quartiles and median; "
            "whiskers: 5th to 95th percentile; dots: cases beyond.",
            _quality(found.main),
        ),
    )


def plots(found: Found) -> tuple[StudyPlot, ...]:
    """Return the plots for the scene: median AQ and median evidence rank."""
    main = found.main
    return tuple(
        StudyPlot(
            f"kernel_weighted_contribution_{metric}",
            title,
            "layers",
            label,
            tuple(one.title for one in main.sets),
            {
                told: tuple(main.median(one.name, method, metric).value for one in main.sets)
                for method, told in main.methods.items()
            },
            "bar",
        )
        for metric, title, label in (
            (_AQ, "Median Attribution Quality", "AQ (even map: 1)"),
            (_RANK, "Median evidence rank", "part of the highest voxels in the evidence"),
        )
    )


def _maps(
    main: LayerSetComparison,
    scene: SpiculatedNodules,
    maps: Mapping[tuple[str, str], Explanation],
    values: Mapping[str, Mapping[str, float]],
) -> Figure:
    from matplotlib.figure import Figure

    box = volume_box(scene.image)
    plane = through(_centre_ras(scene), box, pixel_size_mm(box, most=64))[0]
    left, top, gap = 1.05, 0.42, 0.05
    tile = (_WIDE - left - gap * len(main.sets)) / len(main.sets)
    high = top + (tile + gap) * len(main.methods) + 0.05
    figure = Figure(figsize=(_WIDE, high), facecolor="white")
    low, bright = np.percentile(scene.image.numpy(), (2, 99.8))
    # The maps are bright, so the scan is shown darker than it could be.
    grey = np.clip((cut(scene.image, plane) - low) / (1.6 * (bright - low)), 0, 1)[..., None]
    for column, group in enumerate(main.sets):
        x = left + column * (tile + gap)
        figure.text(
            (x + tile / 2) / _WIDE,
            1 - 0.07 / high,
            _two_lines(group.title),
            ha="center",
            va="top",
            size=8.5,
            color=_INK,
            linespacing=1.05,
        )
        for row, (method, told) in enumerate(main.methods.items()):
            y = top + row * (tile + gap)
            axes = figure.add_axes((x / _WIDE, 1 - (y + tile) / high, tile / _WIDE, tile / high))
            axes.set_gid(f"{group.name}/{method}")
            _panel(axes, plane, grey, maps[group.name, method], scene)
            measured = values[f"{group.name}/{method}"]
            _note(axes, f"AQ {measured[_AQ]:.2f}   rank {measured[_RANK]:.2f}")
            if column == 0:
                figure.text(
                    (left - 0.08) / _WIDE,
                    1 - (y + tile / 2) / high,
                    _row_title(told),
                    ha="right",
                    va="center",
                    size=8.5,
                    color=_INK,
                    weight="bold",
                )
                if row == len(main.methods) - 1:
                    draw_scale_bar(axes, plane)
    return figure


def _panel(
    axes: Axes, plane: Plane, grey: Any, explanation: Explanation, scene: SpiculatedNodules
) -> None:
    map_ = explanation.map
    colours, opacity = coloured(cut(map_, plane), colour_limit(map_), signed=False)
    mixed = np.clip(grey * (1 - opacity) + colours * opacity, 0, 1)
    # Few pixels and shades: 20 panels of noise would make a file of 600 kB.
    shades = np.round(mixed * _SHADES) / _SHADES
    axes.imshow(shades, extent=plane.extent, aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    bait = make_image(scene.labels.as_tensor() == scene.PLAIN, scene.labels.affine)
    inside = np.nan_to_num(cut(bait, plane))
    if 0 < (inside > 0.5).sum() < inside.size:
        axes.contour(
            plane.across_mm, plane.up_mm, inside, levels=[0.5], colors=[_BAIT_RGB], linewidths=0.6
        )
    draw_outline(axes, plane, scene.evidence, signed=False)


def _note(axes: Axes, text: str) -> None:
    from matplotlib.patheffects import withStroke

    axes.text(
        0.98,
        0.975,
        text,
        transform=axes.transAxes,
        ha="right",
        va="top",
        size=6.5,
        color="white",
        path_effects=[withStroke(linewidth=1.4, foreground="black")],
    )


def _centre_ras(scene: SpiculatedNodules) -> np.ndarray:
    """Middle of the volume, in the slice with most spicules beside most bait."""
    labels = scene.labels.numpy()[0]
    spicules = (labels == scene.SPICULES).sum((0, 1)).astype(float)
    bait = (labels == scene.PLAIN).sum((0, 1)).astype(float)
    shares = [one / one.max() if one.max() > 0 else np.ones_like(one) for one in (spicules, bait)]
    # Bait counts as there once a third of its largest section is cut.
    best = int((shares[0] * np.minimum(1.0, 3 * shares[1])).argmax())
    middle = [(size - 1) / 2 for size in labels.shape[:2]]
    return np.asarray(to_ras(scene.labels.affine, np.array([*middle, best])))


def _quality(main: LayerSetComparison) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDE, 7.2), facecolor="white")
    wanted = (
        (_AQ, "Attribution Quality"),
        (_RANK, "evidence rank"),
        (_OUTSIDE, "rank, spicules alone"),
    )
    rows = figure.subplots(len(wanted), 1, sharex=True)
    for axes, (metric, label) in zip(rows, wanted, strict=True):
        _boxes(axes, main, metric)
        axes.set_ylabel(label, size=9, color=_INK)
    rows[0].axhline(1.0, color=_FAINT, linewidth=0.9, linestyle="--", zorder=0)
    rows[0].annotate(
        "even map", (1.0, 1.0), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", va="center", size=7.5, color=_FAINT,
    )  # fmt: skip
    handles = [_handle(colour) for colour in _COLOURS[: len(main.methods)]]
    rows[0].legend(
        handles,
        list(main.methods.values()),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(main.methods),
        frameon=False,
        fontsize=8.5,
        handlelength=1.1,
        columnspacing=1.6,
    )
    rows[-1].set_xticks(
        range(len(main.sets)), [_two_lines(one.title) for one in main.sets], size=8.5
    )
    figure.subplots_adjust(left=0.075, right=0.93, top=0.945, bottom=0.075, hspace=0.09)
    return figure


def _handle(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="none")


def _boxes(axes: Axes, main: LayerSetComparison, metric: str) -> None:
    width = 0.8 / len(main.methods)
    for number, method in enumerate(main.methods):
        colour = _COLOURS[number % len(_COLOURS)]
        series = [main.values(one.name, method, metric) for one in main.sets]
        place = [
            column + (number - (len(main.methods) - 1) / 2) * width
            for column in range(len(main.sets))
        ]
        axes.boxplot(
            [one[np.isfinite(one)] for one in series],
            positions=place,
            widths=0.78 * width,
            whis=(5, 95),
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "edgecolor": "none", "alpha": 0.75},
            medianprops={"color": _INK, "linewidth": 1.3},
            whiskerprops={"color": colour, "linewidth": 1.0},
            capprops={"linewidth": 0},
            flierprops={
                "marker": "o",
                "markersize": 2.0,
                "markerfacecolor": colour,
                "markeredgecolor": "none",
            },
        )
    for column in range(1, len(main.sets)):
        axes.axvline(column - 0.5, color="#e3e3e3", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, len(main.sets) - 0.5)
    axes.tick_params(labelsize=8, colors=_INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    heading, higher = METRICS[metric]
    axes.set_gid(heading)
    if higher and metric != _AQ:
        axes.set_ylim(bottom=0)


def _two_lines(title: str) -> str:
    """A long title broken before its condition."""
    return title.replace(" without", "\nwithout")


def _row_title(title: str) -> str:
    return title.replace("Kernel-weighted contribution", "Kernel-\nweighted\ncontribution\n(KWC)")
