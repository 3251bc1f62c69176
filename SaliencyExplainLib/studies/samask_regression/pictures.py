"""Figures and plots of the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...figure import require_matplotlib
from ...image import make_image
from ...panels import draw_anatomy, draw_outline, draw_scale_bar, grey_window
from ...planes import anatomy_box, centre_ras_mm, pixel_size_mm, through
from ..results import StudyFigure, StudyPlot
from .measures import Found, label_of
from .network import OUTPUTS
from .tables import asymmetry_index, method_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from monai.data import MetaTensor

    from ...explanation import Explanation
    from ...planes import Plane
    from ..heads import SyntheticHead

__all__ = ["asymmetry_figure", "methods_figure", "plots"]

_INK, _FAINT = "#1a1a1a", "#5c5c5c"
_LEFT, _RIGHT = "#0072b2", "#d55e00"


def methods_figure(
    head: SyntheticHead, output: str, maps: Mapping[str, Explanation]
) -> StudyFigure:
    """Maps of one output side by side, its structure outlined."""
    structure = _structure(head, output)
    figure, cells = _grid(head, structure, ("coronal", "axial"), len(maps), 10.0)
    window = grey_window(head.image)
    for column, (title, made) in enumerate(maps.items()):
        for row, (axes, plane) in enumerate(cells[column]):
            draw_anatomy(axes, plane, head.image, made, channel=0, window=window)
            draw_outline(axes, plane, structure, signed=made.signed)
            if row == 0:
                axes.set_title(title, size=9.5, color=_INK, pad=4)
            if column == 0 and row == 1:
                draw_scale_bar(axes, plane)
    return StudyFigure(
        "samask_methods",
        f"What the network looked at for the {output} of a head it has not seen; outlined: the "
        "structure. Coronal (above) and axial plane through its middle. Mask: bright where "
        "features must stay for the volume to stay. Other methods: red raises the volume, blue "
        "lowers it. Radiological convention: the patient's right is at the left.",
        figure,
    )


def asymmetry_figure(
    head: SyntheticHead, masks: Mapping[str, Explanation], found: Found
) -> StudyFigure:
    """Masks of both sides in an asymmetric head, and predicted against true asymmetry."""
    both = make_image(
        np.isin(head.labels.as_tensor().numpy(), [label_of(output) for output in masks]),
        head.labels.affine,
    )
    figure, cells = _grid(head, both, ("coronal",), len(masks), 10.0, beside=0.36)
    window = grey_window(head.image)
    for column, (output, made) in enumerate(masks.items()):
        axes, plane = cells[column][0]
        draw_anatomy(axes, plane, head.image, made, channel=0, window=window)
        draw_outline(axes, plane, both, signed=False)
        true = head.volumes_ml[output]
        axes.set_title(
            f"{output}: {true:.1f} ml, predicted {made.value:.1f}", size=9, color=_INK, pad=4
        )
        if column == 0:
            draw_scale_bar(axes, plane)
    wide, tall = figure.get_size_inches()
    box = (1 - 0.30 * 10 / wide, 0.55 / tall, 0.29 * 10 / wide, 1 - 0.85 / tall)
    _asymmetry_plot(figure.add_axes(box), found)
    return StudyFigure(
        "samask_asymmetry",
        "A head whose left hippocampus is much smaller than its right: masks of the left and of "
        "the right volume, both hippocampi outlined (coronal; the patient's right is at the "
        "left). Right: asymmetry that the network predicts against the true one, each point a "
        "head; grey: asymmetries of the training; line: equality.",
        figure,
    )


def plots(found: Found) -> tuple[StudyPlot, ...]:
    """Plots for the scene."""
    small = OUTPUTS[:4]
    degrees = sorted(set(found.degrees))
    volumes = [found.volumes(degree) for degree in degrees]
    error = [np.abs(one[..., 1] - one[..., 0]).mean(0) for one in volumes]
    return (
        StudyPlot(
            "rank_accuracy",
            "Rank accuracy against the true structure",
            "output",
            "rank accuracy",
            small,
            {
                title: tuple(
                    float(np.nanmean(found.method(method, output, "rank"))) for output in small
                )
                for method, title in method_names.items()
            },
            "bar",
        ),
        StudyPlot(
            "error_with_asymmetry",
            "Error against asymmetry",
            "asymmetry (left 1 - a, right 1 + a)",
            "mean absolute error (ml)",
            tuple(degrees),
            {
                output: tuple(float(one[side]) for one in error)
                for side, output in enumerate(OUTPUTS[:2])
            },
        ),
        StudyPlot(
            "training",
            "Loss of the training",
            "update",
            "loss",
            tuple(range(1, len(found.losses) + 1)),
            {"loss": tuple(found.losses)},
        ),
    )


def _structure(head: SyntheticHead, output: str) -> MetaTensor:
    inside = head.labels.as_tensor() == label_of(output)
    return make_image(inside.float(), head.labels.affine)


def _grid(
    head: SyntheticHead,
    middle: MetaTensor,
    names: tuple[str, ...],
    columns: int,
    wide: float,
    *,
    beside: float = 0.0,
) -> tuple[Figure, list[list[tuple[Axes, Plane]]]]:
    """A figure with a column a map and a row a plane through the middle of a mask."""
    require_matplotlib()
    from matplotlib.figure import Figure

    box = anatomy_box(head.image)
    planes = [
        one
        for name in names
        for one in through(centre_ras_mm(middle), box, pixel_size_mm(box))
        if one.name == name
    ]
    sizes = [
        (left - right, top - bottom)
        for left, right, bottom, top in (plane.extent for plane in planes)
    ]
    widest = max(across for across, _ in sizes)
    gap, title = 0.06, 0.26
    scale = (wide * (1 - beside) - gap * (columns - 1)) / columns / widest
    tall = title + sum(up * scale for _, up in sizes) + gap * (len(sizes) - 1)
    figure = Figure(figsize=(wide, tall), facecolor="white")
    cells: list[list[tuple[Axes, Plane]]] = []
    for column in range(columns):
        top, cells_here = title, []
        for plane, (across, up) in zip(planes, sizes, strict=True):
            x = column * (widest * scale + gap) + (widest - across) * scale / 2
            place = (x / wide, 1 - (top + up * scale) / tall)
            axes = figure.add_axes((*place, across * scale / wide, up * scale / tall))
            cells_here.append((axes, plane))
            top += up * scale + gap
        cells.append(cells_here)
    return figure, cells


def _asymmetry_plot(axes: Axes, found: Found) -> None:
    volumes = np.concatenate([found.volumes(degree) for degree in sorted(set(found.degrees))])
    true, said = asymmetry_index(volumes[..., 0]), asymmetry_index(volumes[..., 1])
    # Factors as far apart as they can be in training.
    limit = float(
        asymmetry_index(np.array([1 - found.trained_asymmetry, 1 + found.trained_asymmetry]))
    )
    low, high = min(0.0, true.min(), said.min()) - 8, max(true.max(), said.max()) + 8
    style: dict[str, Any] = {"zorder": 0, "linewidth": 0}
    axes.axvspan(max(low, -limit), limit, color="#e9e9e9", **style)
    axes.plot([low, high], [low, high], color=_FAINT, linewidth=0.8)
    axes.scatter(true, said, s=11, color=_LEFT, linewidths=0, alpha=0.8)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("true asymmetry (%)", size=8, color=_INK)
    axes.set_ylabel("predicted (%)", size=8, color=_INK, labelpad=1)
    axes.tick_params(labelsize=7, colors=_INK, length=2.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
