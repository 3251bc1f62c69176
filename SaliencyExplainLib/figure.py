"""A figure for people and papers: maps over the anatomy, a row an explanation, three planes a row.

Slices are cut in physical space (:mod:`SaliencyExplainLib.planes`), all panels of a figure have one
scale, and what is needed to read the picture stands in it: method, output, explained value,
completeness error, colour bar, sides of the patient, position of each plane, scale bar, and the
run's warnings. The colours are explained in :mod:`SaliencyExplainLib.panels`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError, MissingPackageError
from .explanation import Explanation
from .panels import (
    colour_limit,
    coloured,
    draw_anatomy,
    draw_crosshair,
    draw_outline,
    draw_scale_bar,
    font_families,
    grey_window,
)
from .planes import (
    PLANES,
    Plane,
    anatomy_box,
    crossing_ras_mm,
    pixel_size_mm,
    through,
    volume_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = ["draw", "overlay", "require_matplotlib", "save_figure"]

_INK, _FAINT, _ALERT = "#1a1a1a", "#5c5c5c", "#9a4a00"
_WHERE = {
    "prediction": "where it is predicted",
    "instance": "in one part of the prediction",
    "segment": "in the segment",
    "roi": "in the ROI",
    "point": "at one voxel",
    "everywhere": "everywhere",
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Inches.
_MARGIN, _GAP, _BAR_ROOM, _TALLEST = 0.12, 0.06, 0.78, 3.1
_TITLE, _DETAIL, _CAPTION, _SMALL, _BETWEEN = 0.19, 0.17, 0.19, 0.125, 0.14
# Points.
_TITLE_PT, _DETAIL_PT, _SMALL_PT = 9.0, 7.5, 6.5


@dataclass(frozen=True)
class _Row:
    explanation: Explanation
    planes: tuple[Plane, Plane, Plane]
    details: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def sizes_mm(self) -> list[tuple[float, float]]:
        """Width and height of each panel."""
        extents = [plane.extent for plane in self.planes]
        return [(left - right, top - bottom) for left, right, bottom, top in extents]

    @property
    def tall_mm(self) -> float:
        return max(tall for _, tall in self.sizes_mm)

    @property
    def text_in(self) -> float:
        """Height of all texts above and below the panels, in inches."""
        return _TITLE + _DETAIL * len(self.details) + _CAPTION + _SMALL * len(self.warnings)


class _Sheet:
    """A figure, measured in inches from its upper left corner."""

    def __init__(self, width_in: float, height_in: float) -> None:
        from matplotlib.figure import Figure

        self.size = (width_in, height_in)
        self.figure = Figure(figsize=self.size, facecolor="white")

    def text(self, x: float, y: float, text: str, points: float, colour: str, **style: Any) -> None:
        """Write a line; `y` is its upper edge unless `va` says otherwise."""
        width, height = self.size
        style = {"va": "top", "parse_math": False, "family": font_families(), **style}
        text = text.replace("= -", "= \N{MINUS SIGN}")
        self.figure.text(x / width, 1 - y / height, text, size=points, color=colour, **style)

    def axes(self, x: float, y: float, wide: float, tall: float) -> Axes:
        """Add axes with their upper left corner at (x, y)."""
        width, height = self.size
        box = (x / width, 1 - (y + tall) / height, wide / width, tall / height)
        return self.figure.add_axes(box)


def require_matplotlib() -> None:
    """Say what to install where matplotlib is missing.

    Raises
    ------
    MissingPackageError
        If matplotlib cannot be imported.
    """
    try:
        import matplotlib  # noqa: F401 - asked for, not used here
    except ImportError as error:
        raise MissingPackageError(
            "Figures need the package matplotlib, which is not installed. "
            "Install it: pip install 'matplotlib>=3.7'."
        ) from error


def overlay(
    image: MetaTensor,
    explanations: Explanation | Sequence[Explanation],
    path: str | Path,
    *,
    dpi: int = 200,
    **options: Any,
) -> Path:
    """Draw maps over the anatomy into a file; the format follows the name (.png, .pdf, .svg).

    Parameters
    ----------
    image, explanations, **options
        As for :func:`draw`.
    path : path
        File to write; it appears whole or not at all.
    dpi : int
        Pixels per inch of a .png.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    ImageError
        If the file cannot be written, or an option does not fit.
    """
    return save_figure(draw(image, explanations, **options), path, dpi=dpi)


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 200) -> Path:
    """Write a figure whole or not at all; the format follows the name (.png, .pdf, .svg).

    Raises
    ------
    ImageError
        If the file cannot be written.
    """
    import matplotlib as mpl

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Text stays text in .pdf and .svg.
        style = mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"})
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder, style:
            part = Path(folder) / path.name
            figure.savefig(part, dpi=dpi, facecolor="white")
            part.replace(path)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"The figure {str(path)!r} could not be written ({error}). "
            "Name a .png, .pdf or .svg in a folder that can be written."
        ) from error
    return path


def draw(
    image: MetaTensor,
    explanations: Explanation | Sequence[Explanation],
    *,
    at: str | Sequence[float] | MetaTensor = "peak",
    channel: int = 0,
    window: tuple[float, float] | None = None,
    contour: MetaTensor | None = None,
    contour_name: str = "mask",
    crosshair: bool = True,
    crop: bool = True,
    width_in: float = 7.2,
) -> Figure:
    """Draw maps over the anatomy: one row an explanation; axial, coronal and sagittal plane.

    Parameters
    ----------
    image : MetaTensor, shape (C, I, J, K)
        The anatomy. Maps may lie on other grids.
    explanations : Explanation or sequence of Explanation
        One row each.
    at : "peak", (r, a, s) or MetaTensor, shape (1, I, J, K)
        Where the planes cross: at the largest magnitude of each row's map, at a position in RAS mm,
        or in the middle of a mask.
    channel : int
        Channel of the image that is shown.
    window : (low, high), optional
        Intensities shown as black and white; found from the image when left out.
    contour : MetaTensor, shape (1, I, J, K), optional
        Mask whose outline is drawn; ``contour_name`` explains it below the figure.
    contour_name : str
        What the outline is.
    crosshair : bool
        Mark the crossing of the planes.
    crop : bool
        Show the anatomy without the air around it.
    width_in : float
        Width of the figure in inches; 7.2 fills two columns of most journals.

    Returns
    -------
    matplotlib.figure.Figure
        Each panel's axes carry a gid like ``0-axial`` and have RAS millimetres as coordinates.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    ImageError
        If there is nothing to draw, or `channel` or `at` does not fit.
    """
    require_matplotlib()
    chosen = [explanations] if isinstance(explanations, Explanation) else list(explanations)
    if not chosen:
        raise ImageError("A figure needs at least one explanation; none was given.")
    if not 0 <= channel < image.shape[0]:
        last = image.shape[0] - 1
        raise ImageError(f"The image has no channel {channel}. Choose one from 0 to {last}.")
    box = anatomy_box(image, channel=channel) if crop else volume_box(image)
    rows = [_row(one, at, box, width_in) for one in chosen]
    scale = min(
        (width_in - 2 * _MARGIN - 2 * _GAP - _BAR_ROOM)
        / max(sum(wide for wide, _ in row.sizes_mm) for row in rows),
        _TALLEST / max(row.tall_mm for row in rows),
    )
    footnote = _footnote(rows, at, crosshair, contour_name if contour is not None else "")
    foot = _wrapped(footnote, width_in, _SMALL_PT)
    height_in = sum(row.text_in + row.tall_mm * scale + _BETWEEN for row in rows)
    sheet = _Sheet(width_in, height_in + 2 * _MARGIN + _SMALL * len(foot))
    grey = window or grey_window(image, channel=channel)
    top = _MARGIN
    for number, row in enumerate(rows):
        panels = _place(sheet, number, row, top, scale)
        for axes, plane in zip(panels, row.planes, strict=True):
            draw_anatomy(axes, plane, image, row.explanation, channel=channel, window=grey)
            if contour is not None:
                draw_outline(axes, plane, contour, signed=row.explanation.signed)
            if crosshair:
                draw_crosshair(axes, plane, row.planes)
        draw_scale_bar(panels[0], row.planes[0])
        top += row.text_in + row.tall_mm * scale + _BETWEEN
    for line, text in enumerate(foot):
        sheet.text(_MARGIN, top + _SMALL * line, text, _SMALL_PT, _FAINT)
    return sheet.figure


def _row(explanation: Explanation, at: Any, box: NDArray[np.float64], width_in: float) -> _Row:
    notes = [_wrapped(f"Note: {text}", width_in, _SMALL_PT) for text in explanation.warnings]
    return _Row(
        explanation,
        through(crossing_ras_mm(explanation.map, at, box), box, pixel_size_mm(box)),
        _wrapped(_details(explanation), width_in, _DETAIL_PT),
        tuple(line for note in notes for line in note),
    )


def _details(explanation: Explanation) -> str:
    """Say what was explained, as a line."""
    target = explanation.target
    where = _WHERE.get(str(target.get("region")), "")
    what = f"{target.get('output_name', 'output')} {where}".strip()
    if target.get("contrast_name"):
        what += f", against {target['contrast_name']}"
    if (target.get("region_voxels") or 0) > 1:
        what += f" ({target['region_voxels']:,} voxels)"
    score = str(target.get("score") or "").replace("_", " ")
    kind = " ".join(part for part in (target.get("reduce"), score) if part)
    unit = target.get("unit", "")
    value = f"S = {explanation.value:.4g}" + (f" {unit}" if unit == "ml" else "")
    parts = [what, f"{value} ({kind})" if kind else value]
    if explanation.completeness_error is not None:
        percent = 100 * explanation.completeness_error
        digits = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
        parts.append(f"completeness error {digits} %")
    return "   ·   ".join(parts)


def _footnote(rows: list[_Row], at: Any, crosshair: bool, contour_name: str) -> str:
    """How to read the figure."""
    parts = ["Radiological convention: the patient's right (R) is at the left. Positions: RAS, mm."]
    if crosshair:
        peak = isinstance(at, str)
        place = "largest magnitude of the row's map" if peak else "where the planes cross"
        parts.append(f"Crosshair: {place}.")
    if any(row.explanation.signed for row in rows):
        parts.append("Red speaks for the target, blue against it.")
    if contour_name:
        parts.append(f"Outline: {contour_name}.")
    return " ".join(parts)


def _wrapped(text: str, width_in: float, points: float) -> tuple[str, ...]:
    """Lines that fit between the figure's margins, measured in the figure's font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=font_families(), size=points)
    # Hinting to whole pixels widens a line by up to 5 %.
    room = 0.95 * (width_in - 2 * _MARGIN) * 72
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_to_path.get_text_width_height_descent(longer, font, False)[0] <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return tuple(lines)


def _place(sheet: _Sheet, number: int, row: _Row, top: float, scale: float) -> list[Axes]:
    """Write a row's texts, draw its colour bar, and return the axes of its three panels."""
    sheet.text(_MARGIN, top, row.explanation.title, _TITLE_PT, _INK, weight="bold")
    top += _TITLE
    for text in row.details:
        sheet.text(_MARGIN, top, text, _DETAIL_PT, _INK)
        top += _DETAIL
    room = row.tall_mm * scale
    left, panels = _MARGIN, []
    for plane, (wide_mm, tall_mm) in zip(row.planes, row.sizes_mm, strict=True):
        wide, tall = wide_mm * scale, tall_mm * scale
        low = top + (room + tall) / 2
        axes = sheet.axes(left, low - tall, wide, tall)
        axes.set_gid(f"{number}-{plane.name}")
        caption = f"{plane.name}, {'RAS'[PLANES[plane.name][6]]} = {plane.through_mm:.1f} mm"
        sheet.text(left + wide / 2, low + 0.04, caption, _SMALL_PT, _FAINT, ha="center")
        panels.append(axes)
        left += wide + _GAP
    _colour_bar(sheet, row.explanation, left, top, room)
    for line, text in enumerate(row.warnings):
        sheet.text(_MARGIN, top + room + _CAPTION + _SMALL * line, text, _SMALL_PT, _ALERT)
    return panels


def _number(value: float) -> str:
    """Two digits, and a power of ten in the way people write it."""
    digits, _, power = f"{value:.2g}".partition("e")
    digits = digits.replace("-", "\N{MINUS SIGN}")
    return f"{digits}·10{str(int(power)).translate(_RAISED)}" if power else digits


def _colour_bar(
    sheet: _Sheet, explanation: Explanation, left: float, top: float, room: float
) -> None:
    """Colours as they look over dark grey, with the values they stand for."""
    tall = min(0.85 * room, 1.7)
    axes = sheet.axes(left + 0.04, top + (room - tall) / 2, 0.1, tall)
    voxels, signed = explanation.map.as_tensor(), explanation.signed
    limit = colour_limit(explanation.map)
    if limit == 0:
        axes.set_axis_off()
        where: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "size": _SMALL_PT}
        axes.text(0, 0.5, "the map\nis zero\neverywhere", color=_ALERT, **where)
        return
    values = np.linspace(-limit if signed else 0.0, limit, 256)[:, None]
    colours, opacity = coloured(values, limit, signed)
    extent = (0, 1, float(values[0, 0]), limit)
    axes.imshow(
        0.3 * (1 - opacity) + colours * opacity, aspect="auto", origin="lower", extent=extent
    )
    ticks = [-limit, 0.0, limit] if signed else [0.0, limit / 2, limit]
    labels = [_number(tick) for tick in ticks]
    if float(voxels.max()) > 1.005 * limit:
        labels[-1] = "\N{GREATER-THAN OR EQUAL TO} " + labels[-1]
    if signed and float(voxels.min()) < -1.005 * limit:
        labels[0] = "\N{LESS-THAN OR EQUAL TO} " + labels[0]
    axes.yaxis.tick_right()
    axes.set_yticks(ticks, labels)
    axes.set_xticks([])
    marks: dict[str, Any] = {
        "color": _FAINT,
        "labelcolor": _INK,
        "length": 2,
        "width": 0.5,
        "pad": 1.5,
    }
    axes.tick_params(labelsize=_SMALL_PT - 0.5, **marks)
    axes.spines[:].set(linewidth=0.5, edgecolor=_FAINT)
    middle, right = top + room / 2, left + _BAR_ROOM + 0.02
    upright = {"rotation": 90, "ha": "right", "va": "center"}
    sheet.text(
        right, middle, f"attribution ({explanation.unit or 'map unit'})", _SMALL_PT, _INK, **upright
    )
