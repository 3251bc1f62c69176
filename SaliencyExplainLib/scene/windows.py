"""The display range of a map, and what to say when there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PERCENTILE", "Window", "finite", "robust_maximum", "window_of"]

#: Percentile of |a| over the voxels that are not zero. Over all voxels a small focus would drown:
#: with 1 % of the volume active the 99th percentile of everything is near zero and the focus is one
#: flat blot.
PERCENTILE = 99.5


@dataclass(frozen=True)
class Window:
    """Display range of a map, in the map's unit, with what a reader must know about it."""

    lowest: float
    highest: float
    warnings: tuple[str, ...] = ()


def finite(voxels: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return the voxels with NaN and infinite values set to 0, and how many there were."""
    bad = ~np.isfinite(voxels)
    count = int(bad.sum())
    return (np.where(bad, np.float32(0), voxels) if count else voxels), count


def robust_maximum(voxels: NDArray[np.float32]) -> float:
    """Return the 99.5th percentile of |a| over the voxels that are not zero; 0 when all are."""
    sizes = np.abs(voxels[voxels != 0])
    return float(np.percentile(sizes, PERCENTILE)) if sizes.size else 0.0


def window_of(voxels: NDArray[np.float32], signed: bool) -> Window:
    """Choose the display range of finite voxels.

    Parameters
    ----------
    voxels : ndarray of any shape
        The map; several maps that shall be comparable may be stacked.
    signed : bool
        Symmetric around zero, or from zero.

    Returns
    -------
    Window
        Never empty: a map of zeros gets a range of one unit and a warning.
    """
    # 5 digits: scene files keep 6 of the range's width and of its middle, which needs one more than
    # its end.
    highest = float(f"{robust_maximum(voxels):.5g}")
    warnings = []
    if highest == 0:
        warnings.append("The map is zero everywhere: it shows no attribution at all.")
        highest = 1.0
    elif voxels.min() == voxels.max():
        warnings.append(
            f"The map has the same value everywhere ({voxels.flat[0]:.3g}): it points at no place."
        )
    elif not signed and voxels.max() <= 0:
        warnings.append(
            "The map has no positive value although its method gives unsigned maps: nothing of "
            "it is shown."
        )
    return Window(-highest if signed else 0.0, highest, tuple(warnings))
