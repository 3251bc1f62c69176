"""A sheet of small pictures: the map of every layer over the same slice, in the network's order.

Each picture has its own colour scale, because maps of different layers have no common one; what
they show is where, not how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError
from .figure import require_matplotlib, save_figure
from .panels import colour_limit, draw_anatomy, font_families, grey_window
from .planes import PLANES, anatomy_box, pixel_size_mm, through

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from monai.data import MetaTensor

    from .explanation import Explanation

__all__ = ["contact_sheet", "draw_contact_sheet"]

_COLUMNS, _PIXELS = 6, 220
# Inches.
_MARGIN, _GAP, _HEAD, _CAPTION, _LINE = 0.12, 0.06, 0.42, 0.37, 0.1
# Points.
_TITLE_PT, _SMALL_PT, _TINY_PT = 9.0, 7.0, 5.6
_INK, _FAINT, _ALERT = "#1a1a1a", "#5c5c5c", "#9a4a00"


def contact_sheet(
    image: MetaTensor, explanations: Sequence[Explanation], path: str | Path, **options: Any
) -> Path:
    """Draw the sheet into a file; the format follows the name (.png, .pdf, .svg).

    Parameters
    ----------
    image, explanations, **options
        As for :func:`draw_contact_sheet`.
    path : path
        File to write; it appears whole or not at all.
    """
    return save_figure(draw_contact_sheet(image, explanations, **options), path, dpi=150)


def draw_contact_sheet(
    image: MetaTensor,
    explanations: Sequence[Explanation],
    *,
    at_ras_mm: Sequence[float] | None = None,
    plane: str = "axial",
    channel: int = 0,
    captions: Sequence[str] | None = None,
    width_in: float = 7.2,
) -> Figure:
    """Draw one small picture an explanation.

    Parameters
    ----------
    image : MetaTensor, shape (C, I, J, K)
        The anatomy.
    explanations : sequence of Explanation
        From :func:`SaliencyExplainLib.explain_layers`.
    at_ras_mm : (r, a, s), optional
        Where the plane goes through; the middle of all maps' magnitude when left out.
    plane : {"axial", "coronal", "sagittal"}
    channel : int
        Channel of the image that is shown.
    captions : sequence of str, optional
        A line below each picture; the layer's name when left out.
    width_in : float
        Width of the figure in inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed.
    ImageError
        If there is nothing to draw, or the plane is none of those listed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not explanations:
        raise ImageError("A contact sheet needs at least one explanation; none was given.")
    if plane not in PLANES:
        raise ImageError(f"The plane must be one of {', '.join(PLANES)}; {plane!r} was given.")
    box = anatomy_box(image, channel=channel)
    point = _middle(explanations) if at_ras_mm is None else np.asarray(at_ras_mm, dtype=float)
    planes = through(point, box, pixel_size_mm(box, _PIXELS))
    chosen = next(one for one in planes if one.name == plane)
    left, right, bottom, top = chosen.extent
    columns = min(_COLUMNS, len(explanations))
    wide = (width_in - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    tall = wide * (top - bottom) / (left - right)
    rows = -(-len(explanations) // columns)
    height_in = 2 * _MARGIN + _HEAD + rows * (tall + _CAPTION)
    figure = Figure(figsize=(width_in, height_in), facecolor="white")

    def text(x: float, y: float, words: str, size: float, **style: Any) -> None:
        figure.text(
            x / width_in,
            1 - y / height_in,
            words,
            size=size,
            va="top",
            parse_math=False,
            family=font_families(),
            **style,
        )

    kinds = ", ".join(dict.fromkeys(one.title for one in explanations))
    text(_MARGIN, _MARGIN, f"{kinds}: {_what(explanations[0])}", _TITLE_PT, weight="bold")
    where = f"{plane} slice, {'RAS'[PLANES[plane][6]]} = {chosen.through_mm:.1f} mm"
    text(
        _MARGIN,
        _MARGIN + 0.2,
        f"{where}; each picture has its own colour scale",
        _SMALL_PT,
        color=_FAINT,
    )
    grey = grey_window(image, channel=channel)
    lines = captions or [one.layers[0] if one.layers else one.title for one in explanations]
    for number, (one, line) in enumerate(zip(explanations, lines, strict=True)):
        row, column = divmod(number, columns)
        x = _MARGIN + column * (wide + _GAP)
        y = _MARGIN + _HEAD + row * (tall + _CAPTION)
        axes = figure.add_axes(
            (x / width_in, 1 - (y + tall) / height_in, wide / width_in, tall / height_in)
        )
        axes.set_gid(f"{number}-{plane}")
        draw_anatomy(axes, chosen, image, one, channel=channel, window=grey)
        empty = colour_limit(one.map) == 0
        notes = [(part, _INK) for part in _in_two(f"{number} {line}", wide)]
        if empty or one.warnings:
            notes.append(("zero everywhere" if empty else "see its warnings", _ALERT))
        for below, (words, colour) in enumerate(notes):
            text(x, y + tall + 0.03 + below * _LINE, words, _TINY_PT, color=colour)
    return figure


def _what(explanation: Explanation) -> str:
    target = explanation.target
    return f"{target.get('output_name', 'output')}, S = {explanation.value:.4g}"


def _middle(explanations: Sequence[Explanation]) -> np.ndarray[Any, Any]:
    """RAS position of the middle of all maps' magnitude, each map counting the same."""
    from .image import to_ras

    found = []
    for one in explanations:
        weights = np.abs(one.map.as_tensor()[0].detach().cpu().numpy())
        if weights.sum() > 0:
            index = [
                float((weights.sum(tuple(set(range(3)) - {axis})) * np.arange(size)).sum())
                / float(weights.sum())
                for axis, size in enumerate(weights.shape)
            ]
            found.append(to_ras(one.map.affine, np.array(index)))
    if found:
        return np.asarray(np.mean(found, axis=0))
    shape = np.array(explanations[0].map.shape[1:])
    return np.asarray(to_ras(explanations[0].map.affine, (shape - 1) / 2))


def _in_two(line: str, wide_in: float) -> list[str]:
    """At most two lines, parted behind a dot; of a longer name the end says more."""
    most = int(wide_in * 72 / (_TINY_PT * 0.56))
    if len(line) <= most:
        return [line]
    at = line.rfind(".", 0, most) + 1 or most
    first, rest = line[:at], line[at:]
    return [first, rest if len(rest) <= most else f"...{rest[-(most - 3) :]}"]
