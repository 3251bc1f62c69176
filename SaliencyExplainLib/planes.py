"""Upright slices through volumes of any grid: cut in physical space, along R, A and S.

A plane is a raster of square pixels in RAS millimetres. Whatever the order, direction, obliqueness
or anisotropy of a volume's axes, its slice has the right proportions and looks as radiologists
expect it: in axial and coronal planes the patient's right is at the left of the picture, in
sagittal planes the front is at the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError
from .image import ras_to_ijk, to_ras

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = [
    "PLANES",
    "Plane",
    "anatomy_box",
    "centre_ras_mm",
    "crossing_ras_mm",
    "cut",
    "peak_ras_mm",
    "pixel_size_mm",
    "through",
    "volume_box",
]

# A point so far outside the anatomy is a mistake (LPS for RAS, voxels for mm), not a choice.
_FAR_MM = 100.0
#: Name: (axis across, letters at the left and right, axis upwards, letters at the bottom and top,
#: axis through the plane). Axes: 0 = R, 1 = A, 2 = S.
PLANES: dict[str, tuple[int, str, str, int, str, str, int]] = {
    "axial": (0, "R", "L", 1, "P", "A", 2),
    "coronal": (0, "R", "L", 2, "I", "S", 1),
    "sagittal": (1, "A", "P", 2, "I", "S", 0),
}


@dataclass(frozen=True)
class Plane:
    """A raster of square pixels in one anatomical plane.

    Attributes
    ----------
    name : {"axial", "coronal", "sagittal"}
    across_mm : ndarray, shape (columns,)
        RAS coordinate of each column's centre along the first axis, falling from left to right.
    up_mm : ndarray, shape (rows,)
        RAS coordinate of each row's centre along the second axis, falling from top to bottom.
    through_mm : float
        RAS coordinate of the plane along the third axis.
    pixel_mm : float
        Side of a pixel.
    """

    name: str
    across_mm: NDArray[np.float64]
    up_mm: NDArray[np.float64]
    through_mm: float
    pixel_mm: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top border in mm, as matplotlib's ``extent`` takes them."""
        half = self.pixel_mm / 2
        return (
            float(self.across_mm[0] + half),
            float(self.across_mm[-1] - half),
            float(self.up_mm[-1] - half),
            float(self.up_mm[0] + half),
        )

    @property
    def ras_mm(self) -> NDArray[np.float64]:
        """RAS position of every pixel's centre, shape (rows, columns, 3)."""
        across, _, _, up, _, _, through = PLANES[self.name]
        points = np.empty((self.up_mm.size, self.across_mm.size, 3))
        points[..., across] = self.across_mm[None, :]
        points[..., up] = self.up_mm[:, None]
        points[..., through] = self.through_mm
        return points


def volume_box(image: MetaTensor) -> NDArray[np.float64]:
    """Lowest and highest RAS corner of a volume in mm, shape (2, 3)."""
    ends = [(-0.5, size - 0.5) for size in image.shape[1:]]
    corners = to_ras(image.affine, np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3))
    return np.stack([corners.min(0), corners.max(0)])


def anatomy_box(
    image: MetaTensor, *, channel: int = 0, margin_mm: float = 6.0
) -> NDArray[np.float64]:
    """Box around what is not air, for a figure without empty borders.

    Parameters
    ----------
    image : MetaTensor, shape (C, I, J, K)
    channel : int
        Which channel shows the anatomy.
    margin_mm : float
        Added on each side, but not beyond the volume.

    Returns
    -------
    ndarray, shape (2, 3)
        Lowest and highest RAS corner in mm; the whole volume where nothing stands out.
    """
    voxels = image.as_tensor()[channel].detach().cpu().numpy()
    whole = volume_box(image)
    low, high = np.percentile(voxels, (0.5, 99.5))
    index = np.argwhere(voxels > low + 0.12 * (high - low))
    if high <= low or len(index) == 0:
        return whole
    # A part in a thousand of the voxels beyond each face may be noise in the air.
    box = np.percentile(to_ras(image.affine, index), (0.1, 99.9), axis=0)
    box += np.array([[-margin_mm], [margin_mm]])
    return np.stack([np.maximum(box[0], whole[0]), np.minimum(box[1], whole[1])])


def through(
    point_ras_mm: Any, box: NDArray[np.float64], pixel_mm: float
) -> tuple[Plane, Plane, Plane]:
    """Axial, coronal and sagittal plane through a point.

    Parameters
    ----------
    point_ras_mm : array_like, shape (3,)
    box : ndarray, shape (2, 3)
        Lowest and highest RAS corner of what is shown; widened so that the point lies inside.
    pixel_mm : float
        Side of a pixel.
    """
    point = np.asarray(point_ras_mm, dtype=np.float64)
    low, high = np.minimum(box[0], point - pixel_mm), np.maximum(box[1], point + pixel_mm)
    counts = np.maximum(np.ceil((high - low) / pixel_mm).astype(int), 2)
    # The point is a pixel centre, so that a peak of one voxel is not lost between two pixels.
    first = point - np.floor((point - low) / pixel_mm) * pixel_mm
    centres = [first[axis] + pixel_mm * np.arange(counts[axis]) for axis in range(3)]
    return tuple(  # type: ignore[return-value]  # three planes, which mypy does not count
        Plane(name, centres[across][::-1], centres[up][::-1], float(point[axis]), pixel_mm)
        for name, (across, _, _, up, _, _, axis) in PLANES.items()
    )


def cut(image: MetaTensor, plane: Plane, *, channel: int = 0) -> NDArray[np.float32]:
    """Values of a channel on a plane (trilinear), shape (rows, columns); NaN outside the volume."""
    from scipy.ndimage import map_coordinates

    voxels = image.as_tensor()[channel].detach().cpu().numpy()
    index = np.moveaxis(ras_to_ijk(image.affine, plane.ras_mm), -1, 0)
    size = np.array(voxels.shape)[:, None, None]
    values: NDArray[np.float32] = map_coordinates(voxels, index, order=1, mode="nearest")
    # A voxel reaches half a spacing around its centre; the rest is for rounding.
    values[((index < -0.5 - 1e-6) | (index > size - 0.5 + 1e-6)).any(0)] = np.nan
    return values


def peak_ras_mm(map_: MetaTensor) -> NDArray[np.float64]:
    """RAS position of a map's largest magnitude, shape (3,); the middle of a constant map."""
    voxels = map_.as_tensor()[0].detach().cpu().abs().numpy()
    if voxels.max() <= voxels.min():
        return to_ras(map_.affine, (np.array(voxels.shape) - 1) / 2)
    return to_ras(map_.affine, np.unravel_index(int(voxels.argmax()), voxels.shape))


def centre_ras_mm(mask: MetaTensor) -> NDArray[np.float64]:
    """RAS position of the middle of a mask (voxels above 0), shape (3,).

    Raises
    ------
    ImageError
        If the mask is empty.
    """
    index = np.argwhere(mask.as_tensor()[0].detach().cpu().numpy() > 0)
    if len(index) == 0:
        raise ImageError(
            "The mask that should place the planes is empty. Give a RAS point, or at='peak'."
        )
    return to_ras(mask.affine, index.mean(0))


def crossing_ras_mm(map_: MetaTensor, at: Any, box: NDArray[np.float64]) -> NDArray[np.float64]:
    """RAS position where three planes cross, shape (3,).

    Parameters
    ----------
    map_ : MetaTensor, shape (1, I, J, K)
    at : "peak", (r, a, s) or MetaTensor, shape (1, I, J, K)
        The map's peak, a position in RAS mm, or the middle of a mask.
    box : ndarray, shape (2, 3)
        What is shown; the position may not lie far outside.

    Raises
    ------
    ImageError
        If `at` is none of these, or lies far outside.
    """
    if isinstance(at, str):
        if at != "peak":
            raise ImageError(f"Planes cross at 'peak', a RAS point or a mask; {at!r} was given.")
        return peak_ras_mm(map_)
    if hasattr(at, "affine"):
        return centre_ras_mm(at)
    point = np.asarray(at, dtype=np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise ImageError(f"A point has three finite RAS coordinates in mm; {at!r} was given.")
    if (point < box[0] - _FAR_MM).any() or (point > box[1] + _FAR_MM).any():
        raise ImageError(
            f"The point {tuple(point.tolist())} (RAS, mm) lies outside the image, which goes from "
            f"{box[0].round(1).tolist()} to {box[1].round(1).tolist()}. Correct its coordinates."
        )
    return point


def pixel_size_mm(box: NDArray[np.float64], most: int = 480) -> float:
    """Side of a pixel in mm with which the longest side of the box has `most` pixels."""
    return float((box[1] - box[0]).max() / most)
