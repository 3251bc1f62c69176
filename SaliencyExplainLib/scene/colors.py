"""Colours of attribution maps: zero in the middle, and equal steps for the eye.

Slice views treat a table's alpha as a switch (0 hides, anything else shows), and a display
threshold can show one interval only. So the small values around zero are hidden by a table of the
map's own with alpha 0 there (the dead band).

The colours are straight lines in Oklab [1]_, so equal steps of attribution look equally large. Both
arms of the diverging table have the same lightness: blue does not look stronger than red.

References
----------
.. [1] B. Ottosson, "A perceptual color space for image processing", 2020,
https://bottosson.github.io/posts/oklab/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SceneError
from .host import slicer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DEAD_BAND", "ENTRIES", "colors_rgb", "dead_band", "make_color_node", "set_dead_band"]

#: Part of the display range around zero that is hidden unless told otherwise.
DEAD_BAND = 0.1
#: Odd, so that one entry is zero itself.
ENTRIES = 255

_SIGNED, _FRACTION = "SaliencyExplain.signed", "SaliencyExplain.deadBand"
# Lightness, chroma, hue in degrees.
_BLUE, _WHITE, _RED = (0.55, 0.20, 260.0), (0.97, 0.0, 0.0), (0.55, 0.20, 27.0)
_DARK_RED, _ORANGE, _YELLOW = (0.42, 0.14, 25.0), (0.66, 0.18, 43.0), (0.93, 0.14, 100.0)


def colors_rgb(signed: bool) -> NDArray[np.float64]:
    """Colours from the lowest to the highest value, shape (255, 3), sRGB in 0..1.

    Blue over white to red for signed maps, dark red over orange to light yellow for unsigned ones.
    """
    anchors = [_BLUE, _WHITE, _RED] if signed else [_DARK_RED, _ORANGE, _YELLOW]
    points = np.array([_oklab(*anchor) for anchor in anchors])
    along = np.linspace(0, len(points) - 1, ENTRIES)
    path = np.stack(
        [np.interp(along, np.arange(len(points)), points[:, axis]) for axis in range(3)], axis=1
    )
    return _srgb(path)


def hidden(signed: bool, fraction: float) -> NDArray[np.bool_]:
    """Which of the 255 entries a dead band hides: small values, and always zero itself."""
    lowest = -1.0 if signed else 0.0
    values = np.linspace(lowest, 1.0, ENTRIES)
    return (np.abs(values) < fraction) | (np.abs(values) < 1e-9)


def make_color_node(
    signed: bool, fraction: float = DEAD_BAND, name: str = "Attribution"
) -> slicer.vtkMRMLColorTableNode:
    """Make a colour table for one map; it is not in a scene yet.

    Parameters
    ----------
    signed : bool
        Diverging around zero, or sequential from zero.
    fraction : float
        Dead band as a part of the display range's end, 0 to 0.99.
    name : str
        Name of the node.
    """
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetName(name)
    node.SetAttribute("Category", "SaliencyExplain")
    # A hidden colour node is not saved with the scene.
    node.SetHideFromEditors(False)
    node.SetNumberOfColors(ENTRIES)
    set_dead_band(node, fraction, signed)
    return node


def set_dead_band(
    color_node: slicer.vtkMRMLColorTableNode, fraction: float, signed: bool | None = None
) -> None:
    """Hide the values around zero: they become transparent in the slice views.

    Parameters
    ----------
    color_node : vtkMRMLColorTableNode
        A table made by :func:`make_color_node`.
    fraction : float
        0 (only zero itself is hidden) to 0.99.
    signed : bool, optional
        Kind of the map; as the table was made when left out.

    Raises
    ------
    SceneError
        If the fraction is out of range or the node is no table of this extension.
    """
    if not 0 <= fraction <= 0.99:
        raise SceneError(
            f"The dead band is a fraction between 0 and 0.99 of the display range; {fraction} was "
            "given."
        )
    if signed is None:
        kind = color_node.GetAttribute(_SIGNED) if color_node is not None else None
        if kind is None:
            raise SceneError(
                "This colour table was not made by SaliencyExplain. Choose the colour node of a "
                "published map."
            )
        signed = kind == "true"
    alpha = np.where(hidden(signed, fraction), 0.0, 1.0)
    span = np.linspace(-100.0 if signed else 0.0, 100.0, ENTRIES)
    form = "{:+.1f} %" if signed else "{:.1f} %"
    with slicer.util.NodeModify(color_node):
        color_node.SetAttribute(_SIGNED, "true" if signed else "false")
        color_node.SetAttribute(_FRACTION, repr(float(fraction)))
        for index, (red, green, blue) in enumerate(colors_rgb(signed).tolist()):
            color_node.SetColor(
                index, form.format(span[index]), red, green, blue, float(alpha[index])
            )
        if not hasattr(color_node, "SetColorDefined"):
            # Before names became part of an entry (Slicer 5.8), they were made up anew unless this
            # was said.
            color_node.NamesInitialisedOn()


def dead_band(color_node: slicer.vtkMRMLColorTableNode) -> float:
    """Return the dead band of a table made here, 0 to 0.99."""
    return float(color_node.GetAttribute(_FRACTION) or 0.0)


def _oklab(lightness: float, chroma: float, hue_degrees: float) -> tuple[float, float, float]:
    hue = np.radians(hue_degrees)
    return lightness, float(chroma * np.cos(hue)), float(chroma * np.sin(hue))


def _srgb(oklab: NDArray[Any]) -> NDArray[np.float64]:
    lightness, a, b = np.moveaxis(oklab, -1, 0)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0.0, 1.0)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)
