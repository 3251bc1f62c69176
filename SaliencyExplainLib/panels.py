"""What one panel of a figure shows: anatomy in grey, the map over it, outline, crosshair, scale.

Colours: signed maps go from blue (against the target) over transparent to red (for it), centred at
zero; unsigned ones from dark to bright. Magnitudes below a twentieth of the colour bar's end are
not drawn; opacity rises up to half of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .image import make_image
from .planes import PLANES, Plane, cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from .explanation import Explanation

__all__ = [
    "colour_limit",
    "coloured",
    "draw_anatomy",
    "draw_crosshair",
    "draw_outline",
    "draw_scale_bar",
    "font_families",
    "grey_window",
]

#: Fonts with Chinese, Japanese and Korean letters, of the systems that have them.
_EAST_ASIAN = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "WenQuanYi Micro Hei",
)

#: Parts of the colour bar's end: nothing is drawn below the first, opacity is full at the second.
DEAD_BAND, FULL_BAND = 0.05, 0.5
_OPACITY = 0.9
_SIGNED = ("#0024c8", "#1f6bff", "#8cc4ff", "#ffffff", "#ffb08c", "#f5321e", "#b40000")
_UNSIGNED = ("#3b0a6b", "#9c1f6e", "#e8502f", "#fba40a", "#fcffa4")
_LETTER_PT = 6.5


def font_families() -> list[str]:
    """Matplotlib's own font first, then those of this machine with East Asian letters."""
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _EAST_ASIAN if name in there)]


def grey_window(image: MetaTensor, *, channel: int = 0) -> tuple[float, float]:
    """Intensities to show as black and white: from below the darkest tissue to the brightest.

    Tissue is what Otsu's threshold separates from the air, so that CT and MRI both get contrast
    where the body is.
    """
    voxels = image.as_tensor()[channel].detach().cpu().numpy()
    low, high = (float(one) for one in np.percentile(voxels, (0.5, 99.8)))
    if high <= low:
        return low, low + 1.0
    counts, edges = np.histogram(np.clip(voxels, low, high), bins=128)
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    tissue = voxels[voxels > edges[int(np.nanargmax(between)) + 1]]
    dark, bright = np.percentile(tissue, (5, 99.2)) if tissue.size else (low, high)
    return max(low, float(1.25 * dark - 0.25 * bright)), float(1.08 * bright - 0.08 * dark)


def colour_limit(map_: MetaTensor) -> float:
    """Magnitude at the colour bar's end; 0 for a map that is zero everywhere.

    It is the 99.5th percentile of what exceeds a hundredth of the largest magnitude: a map of one
    blob reaches its end, and one wild voxel does not turn all others white.
    """
    magnitude = map_.as_tensor().detach().cpu().abs().numpy()
    top = float(magnitude.max())
    return float(np.percentile(magnitude[magnitude >= 0.01 * top], 99.5)) if top > 0 else 0.0


def coloured(
    values: NDArray[Any], limit: float, signed: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Colours (..., 3) and opacity (..., 1), all 0 to 1, of map values; `limit` ends the scale."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list(
        "attribution", _SIGNED if signed else _UNSIGNED, N=512
    )
    part = np.nan_to_num(values) / (limit or 1.0)
    strength = np.abs(part) if signed else np.maximum(part, 0.0)
    opacity = np.clip((strength - DEAD_BAND) / (FULL_BAND - DEAD_BAND), 0, 1) * _OPACITY
    return colours(np.clip((part + 1) / 2 if signed else part, 0, 1))[..., :3], opacity[..., None]


def draw_anatomy(
    axes: Axes,
    plane: Plane,
    image: MetaTensor,
    explanation: Explanation,
    *,
    channel: int,
    window: tuple[float, float],
) -> None:
    """Anatomy in grey with the map over it, and the letters of the patient's sides."""
    anatomy = np.nan_to_num(cut(image, plane, channel=channel), nan=window[0])
    grey = np.clip((anatomy - window[0]) / ((window[1] - window[0]) or 1.0), 0, 1)[..., None]
    map_ = explanation.map
    colours, opacity = coloured(cut(map_, plane), colour_limit(map_), explanation.signed)
    mixed = np.clip(grey * (1 - opacity) + colours * opacity, 0, 1)
    axes.imshow(mixed, extent=plane.extent, aspect="auto")
    axes.set_axis_off()
    _, left, right, _, bottom, top, _ = PLANES[plane.name]
    for x, y, letter, across, up in (
        (0.012, 0.5, left, "left", "center"),
        (0.988, 0.5, right, "right", "center"),
        (0.5, 0.012, bottom, "center", "bottom"),
        (0.5, 0.985, top, "center", "top"),
    ):
        where: dict[str, Any] = {"transform": axes.transAxes, "ha": across, "va": up}
        axes.text(x, y, letter, size=_LETTER_PT, weight="bold", **where, **_white_on_black(1.2))


def draw_outline(axes: Axes, plane: Plane, mask: MetaTensor, *, signed: bool) -> None:
    """Outline of a mask (voxels above 0), in a colour that the map does not have."""
    flat = make_image(mask.as_tensor()[:1] > 0, mask.affine)
    inside = np.nan_to_num(cut(flat, plane))
    if 0 < (inside > 0.5).sum() < inside.size:
        style: dict[str, Any] = {"colors": ["#ffe83d" if signed else "#43f0ff"], "linewidths": 0.7}
        axes.contour(plane.across_mm, plane.up_mm, inside, levels=[0.5], **style)


def draw_crosshair(axes: Axes, plane: Plane, planes: tuple[Plane, Plane, Plane]) -> None:
    """Where the other two planes cross this one; the marked place and the letters stay free."""
    across, _, _, up, _, _, _ = PLANES[plane.name]
    point = {PLANES[one.name][6]: one.through_mm for one in planes}
    left, right, bottom, top = plane.extent
    gap = 0.05 * max(left - right, top - bottom)
    x, y = point[across], point[up]
    style: dict[str, Any] = {"color": "white", "linewidth": 0.45, "alpha": 0.75}
    for start, end in ((left - 1.2 * gap, x + gap), (x - gap, right + 1.2 * gap)):
        if start > end:
            axes.hlines(y, start, end, **style)
    for start, end in ((bottom + 1.2 * gap, y - gap), (y + gap, top - 1.2 * gap)):
        if start < end:
            axes.vlines(x, start, end, **style)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def draw_scale_bar(axes: Axes, plane: Plane) -> None:
    """Bar of a round length in the lower left corner."""
    left, right, bottom, top = plane.extent
    wide, tall = left - right, top - bottom
    length = next((mm for mm in (100, 50, 20, 10, 5, 2, 1) if mm <= 0.3 * wide), wide / 4)
    x, y = left - 0.04 * wide, bottom + 0.045 * tall
    axes.plot([x, x - length], [y, y], linewidth=1.4, solid_capstyle="butt", **_white_on_black(2.6))
    where: dict[str, Any] = {"ha": "center", "va": "bottom", "size": _LETTER_PT - 0.5}
    axes.text(x - length / 2, y + 0.015 * tall, f"{length:g} mm", **where, **_white_on_black(1.2))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _white_on_black(border: float) -> dict[str, Any]:
    from matplotlib.patheffects import withStroke

    return {"color": "white", "path_effects": [withStroke(linewidth=border, foreground="black")]}
