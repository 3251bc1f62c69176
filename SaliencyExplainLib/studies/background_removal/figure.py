"""The figures of the study, and its plots for the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...figure import require_matplotlib
from ...panels import colour_limit, coloured, draw_scale_bar, grey_window
from ...planes import Plane, anatomy_box, centre_ras_mm, cut, pixel_size_mm, through
from ..results import StudyFigure, StudyPlot
from ..statistics import bootstrap
from .findings import PUBLISHED
from .scans import TISSUES
from .tables import arm_values, tissue_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from monai.data import MetaTensor

    from .pipeline import Example

__all__ = ["figures", "plots"]

_INK, _FAINT = "#1a1a1a", "#5c5c5c"
#: CSF, grey and white matter; okay for colour-blind readers, and light enough over grey.
_TISSUE_RGB = ((0.34, 0.71, 0.91), (0.90, 0.62, 0.0), (0.95, 0.95, 0.85))
_GUIDED_RGB, _REGISTERED_RGB, _TRUE_RGB = "#43f0ff", "#ffe83d", "#ffffff"
_BARS = (
    ("before", "unmasked"),
    ("guided_backprop", "guided,\nshift"),
    ("gradient", "gradient,\nshift"),
    ("registration", "guided,\nregistered"),
    ("manual", "true\nmask"),
)
_DOTS = (
    ("no shift", "no shift"),
    ("random weights", "guided, random weights"),
    ("image itself", "image itself"),
    ("gradient", "gradient"),
    ("deconvnet", "DeconvNet"),
    ("guided_backprop", "guided backprop."),
    ("best shift", "best shift there is"),
    ("registration from no shift", "registration, no shift"),
    ("registration", "guided + registration"),
)
_BINS = np.linspace(-4, 4, 49)


def figures(
    example: Example, found: Sequence[dict[str, Any]], seed: int
) -> tuple[StudyFigure, ...]:
    """Return all figures, the main one first."""
    require_matplotlib()
    scan = example.scan
    kind = "without artefact" if scan.artefact == "none" else f"with a {scan.artefact}"
    return (
        StudyFigure(
            "background_removal_head",
            f"One test head ({kind}; the one of median brain Dice), sagittal. The network was "
            "trained on masked brains; b shows what it makes of a whole head. Its own guided "
            "gradients, enhanced, place a template; outside of it the scan is cleared, and it is "
            "segmented again.",
            _head(example),
        ),
        StudyFigure(
            "background_removal_scores",
            "Left: Dice of each tissue. Middle: Dice of the placed brain mask, a dot a head. Bars "
            "and ticks: mean with 95 % interval (bootstrap over heads). Right: logarithm of the "
            "guided map of the head above, standardised; a log-normal map would follow the line.",
            _scores(example, found, seed),
        ),
    )


def plots(example: Example, found: Sequence[dict[str, Any]]) -> tuple[StudyPlot, ...]:
    """Return the plots for the scene."""
    heights, normal = _histogram(example)
    middle = (_BINS[1:] + _BINS[:-1]) / 2
    return (
        StudyPlot(
            "background_removal_dice",
            "Dice before and after background removal",
            "segmented",
            "Dice (%)",
            tuple(title.replace("\n", " ") for _, title in _BARS),
            {
                tissue: tuple(
                    100 * float(np.mean(tissue_values(found, arm, tissue, "Dice")))
                    for arm, _ in _BARS
                )
                for tissue in TISSUES[:0:-1]
            },
            "bar",
        ),
        StudyPlot(
            "background_removal_log_normal",
            "Is the guided map log-normal?",
            "standardised logarithm of the map",
            "density",
            tuple(float(one) for one in middle),
            {
                "guided map": tuple(float(one) for one in heights),
                "normal": tuple(float(one) for one in normal),
            },
        ),
    )


# -- One head ----------------------------------------------------------------------------------


def _head(example: Example) -> Figure:
    from matplotlib.figure import Figure

    from ...image import make_image

    scan, removal = example.scan, example.removal
    box = anatomy_box(scan.image)
    plane = through(centre_ras_mm(scan.brain), box, pixel_size_mm(box, most=240))[2]
    enhanced = replace(removal.explanation, maps=removal.enhanced, network_maps=None)
    left, right, bottom, top = plane.extent
    wide = 8.4
    tile = (wide - 0.5) / 4
    tall = tile * (top - bottom) / (left - right)
    high = 2 * (tall + 0.3) + 0.5
    figure = Figure(figsize=(wide, high), facecolor="white")
    titles = (
        "a  Unmasked scan", "b  Segmented as it is", "c  Guided map, |dS/dx|", "d  Enhanced map f",
        "e  Placed template", "f  Segmented after removal", "g  After registration",
        "h  With the true mask",
    )  # fmt: skip
    draws: tuple[Callable[[Axes], None] | None, ...] = (
        None,
        lambda axes: _tissues(axes, plane, removal.before),
        lambda axes: _map(axes, plane, removal.explanation),
        lambda axes: _map(axes, plane, enhanced),
        lambda axes: _outlines(axes, plane, example),
        lambda axes: _tissues(axes, plane, removal.after),
        lambda axes: _tissues(axes, plane, example.after_registration),
        lambda axes: _tissues(axes, plane, example.manual),
    )
    window = grey_window(scan.image)
    seen = [scan.image] * 5 + [
        make_image(scan.image.as_tensor() * (mask.as_tensor() > 0), scan.image.affine)
        for mask in (removal.mask, example.registered, scan.brain)
    ]
    for number, (title, draw) in enumerate(zip(titles, draws, strict=True)):
        row, column = divmod(number, 4)
        x = 0.1 + column * (tile + 0.1)
        y = high - 0.3 - row * (tall + 0.32) - tall
        axes = figure.add_axes((x / wide, y / high, tile / wide, tall / high))
        _grey(axes, plane, seen[number], window)
        if draw is not None:
            draw(axes)
        axes.set_axis_off()
        axes.set_title(title, size=9, color=_INK, loc="left", pad=3)
        if number == 0:
            draw_scale_bar(axes, plane)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
    _legend(figure, high)
    return figure


def _grey(axes: Axes, plane: Plane, image: MetaTensor, window: tuple[float, float]) -> None:
    voxels = np.nan_to_num(cut(image, plane), nan=window[0])
    grey = np.clip((voxels - window[0]) / (window[1] - window[0]), 0, 1)
    axes.imshow(grey, extent=plane.extent, cmap="gray", vmin=0, vmax=1, aspect="auto")


def _tissues(axes: Axes, plane: Plane, segmentation: MetaTensor) -> None:
    """Tissues in colour; each voxel is interpolated as a share, so that borders are smooth."""
    from ...image import make_image

    voxels = segmentation.as_tensor()
    shares = [
        np.nan_to_num(cut(make_image(voxels == label, segmentation.affine), plane))
        for label in range(len(TISSUES))
    ]
    label = np.stack(shares).argmax(0)
    colours = np.concatenate([[(0.0, 0.0, 0.0)], _TISSUE_RGB])[label]
    opaque = np.where(label > 0, 0.85, 0.0)[..., None]
    axes.imshow(np.concatenate([colours, opaque], -1), extent=plane.extent, aspect="auto")


def _map(axes: Axes, plane: Plane, explanation: Any) -> None:
    map_ = explanation.map
    colours, opacity = coloured(cut(map_, plane), colour_limit(map_), signed=False)
    axes.imshow(np.concatenate([colours, opacity], -1), extent=plane.extent, aspect="auto")


def _outlines(axes: Axes, plane: Plane, example: Example) -> None:
    for mask, colour, style in (
        (example.scan.brain, _TRUE_RGB, "dotted"),
        (example.removal.mask, _GUIDED_RGB, "solid"),
        (example.registered, _REGISTERED_RGB, "solid"),
    ):
        inside = np.nan_to_num(cut(mask, plane))
        if 0 < (inside > 0.5).sum() < inside.size:
            axes.contour(
                plane.across_mm, plane.up_mm, inside, levels=[0.5], colors=[colour],
                linewidths=1.3, linestyles=style,
            )  # fmt: skip


def _legend(figure: Figure, high: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=colour, edgecolor=_FAINT, linewidth=0.5, label=name)
        for name, colour in zip(TISSUES[1:], _TISSUE_RGB, strict=True)
    ]
    handles += [
        Line2D([], [], color=_GUIDED_RGB, label="template, moved (shift)"),
        Line2D([], [], color=_REGISTERED_RGB, label="template, registered"),
        Line2D([], [], color=_FAINT, linestyle="dotted", label="true brain (white)"),
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.005, 0.04 / high), ncols=6,
        frameon=False, fontsize=8, handlelength=1.6, columnspacing=1.4, labelcolor=_INK,
    )  # fmt: skip


# -- All heads ---------------------------------------------------------------------------------


def _scores(example: Example, found: Sequence[dict[str, Any]], seed: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.5), facecolor="white", layout="constrained")
    bars, dots, bell = figure.subplots(1, 3, width_ratios=(1.15, 1.25, 0.8))
    _tissue_bars(bars, found, seed)
    _brain_dots(dots, found, seed)
    _bell(bell, example)
    for axes in (bars, dots, bell):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7.5, colors=_INK)
    return figure


def _tissue_bars(axes: Axes, found: Sequence[dict[str, Any]], seed: int) -> None:
    for number, tissue in enumerate(TISSUES[:0:-1]):
        colour = _TISSUE_RGB[2 - number]
        for place, (arm, _) in enumerate(_BARS):
            mean, low, high = bootstrap(tissue_values(found, arm, tissue, "Dice"), seed).ends(100)
            x = place + 0.26 * (number - 1)
            axes.bar(
                x, mean, 0.24, color=colour, edgecolor=_FAINT, linewidth=0.5,
                label=tissue if place == 0 else None,
            )  # fmt: skip
            axes.plot([x, x], [low, high], color=_INK, linewidth=1.0)
    axes.set_xticks(range(len(_BARS)), [title for _, title in _BARS])
    axes.set_ylabel("Dice of the tissue (%)", size=8)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="lower center",
                bbox_to_anchor=(0.5, 1.0), columnspacing=1.0, handlelength=1.2)  # fmt: skip


def _brain_dots(axes: Axes, found: Sequence[dict[str, Any]], seed: int) -> None:
    chance = np.random.default_rng(0)
    for place, (arm, _) in enumerate(_DOTS):
        values = 100 * np.asarray(arm_values(found, arm))
        strong = arm in ("guided_backprop", "registration")
        colour = "#0072b2" if strong else "#8a8a8a"
        axes.scatter(
            values, place + chance.uniform(-0.16, 0.16, values.size), s=7, color=colour,
            alpha=0.45, linewidths=0,
        )  # fmt: skip
        mean, low, high = bootstrap(values, seed).ends()
        axes.plot([low, high], [place, place], color=_INK, linewidth=1.6)
        axes.plot(mean, place, "o", color=_INK, markersize=3.5)
    mark = PUBLISHED["brain"][0]
    axes.axvline(mark, color="#d55e00", linewidth=1.0, linestyle="dashed")
    axes.text(
        mark - 0.6, len(_DOTS) - 0.42, f"published {mark}", size=7, color="#d55e00", ha="right"
    )
    axes.set_yticks(range(len(_DOTS)), [title for _, title in _DOTS])
    axes.set_xlabel("Dice of the brain's mask (%)", size=8)
    axes.set_ylim(-0.6, len(_DOTS) - 0.1)


def _bell(axes: Axes, example: Example) -> None:
    heights, normal = _histogram(example)
    middle = (_BINS[1:] + _BINS[:-1]) / 2
    axes.bar(middle, heights, _BINS[1] - _BINS[0], color="#8cc4ff", label="guided map")
    axes.plot(middle, normal, color=_INK, linewidth=1.2, label="normal")
    axes.axvspan(1.5, 2.5, color="#e69f00", alpha=0.25, linewidth=0, label="kept by f")
    axes.set_xlabel("standardised log of the map, z", size=8)
    axes.set_ylabel("density", size=8)
    axes.set_xlim(-4, 4)
    axes.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0),
                ncols=3, columnspacing=0.8, handlelength=1.0)  # fmt: skip


def _histogram(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Density of the standardised logarithm of the guided map, and the normal one."""
    from .enhance import standard_scores

    scores, counted = standard_scores(example.removal.explanation)
    heights, _ = np.histogram(scores[counted], bins=_BINS, density=True)
    middle = (_BINS[1:] + _BINS[:-1]) / 2
    return heights, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
