"""Where a template lies in a scan: cross-correlation in 3D, in millimetres.

Matos et al. 2019, doi:10.1007/978-3-030-19823-7_25, in two dimensions. With T the template and f
the enhanced map::

    shift* = argmax_s sum_v T(v - s) f(v)

Here in three, by FFT with zero padding (so that nothing wraps around), on the scan's own lattice:
a template on another grid is interpolated onto it first, as far as it reaches, also where the scan
ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ImageError, MethodError

if TYPE_CHECKING:
    import SimpleITK as sitk
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = ["Placement", "align_template"]

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Placement:
    """Where a template lies in a scan.

    Attributes
    ----------
    shift_mm : tuple of float
        How far the middle of the template moves along R, A and S, in mm.
    matrix : tuple of tuple of float
        4 x 4, takes RAS positions (mm) of the template to those of the scan.
    kind : {"translation", "rigid", "affine"}
    score : float
        Of a translation: cosine between the placed template and the map, 0 to 1. Of a
        registration: mutual information in nats.
    """

    shift_mm: tuple[float, float, float]
    matrix: tuple[tuple[float, ...], ...]
    kind: str
    score: float

    @classmethod
    def shifted(cls, shift_mm: Any, score: float = float("nan")) -> Placement:
        """Return the placement that only moves the template, by a shift along R, A, S in mm."""
        matrix = np.eye(4)
        matrix[:3, 3] = shift_mm
        right, front, up = (float(one) for one in matrix[:3, 3])
        return cls((right, front, up), as_rows(matrix), "translation", score)

    def place(self, template: MetaTensor, like: MetaTensor) -> MetaTensor:
        """Return a template's mask in the scan.

        Parameters
        ----------
        template : MetaTensor, shape (1, I, J, K)
            Mask: voxels above 0 are inside.
        like : MetaTensor, shape (C, I', J', K')
            The scan.

        Returns
        -------
        MetaTensor, shape (1, I', J', K')
            1 where at least half of a voxel lies in the template, else 0; on the scan's grid.
        """
        import SimpleITK as sitk

        from ...image import image_from_sitk, make_image, sitk_from_image

        mask = make_image(template.as_tensor()[:1] > 0, template.affine)
        grid = make_image(np.zeros(tuple(like.shape[1:])), like.affine)
        back = transform_of(np.linalg.inv(np.asarray(self.matrix)))
        moved = sitk.Resample(
            sitk_from_image(mask), sitk_from_image(grid), back, sitk.sitkLinear, 0.0
        )
        # A hair below a half, so that halves do not hang on rounding.
        return make_image(image_from_sitk(moved).as_tensor() > 0.499, like.affine)


def as_rows(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as plain numbers."""
    return tuple(tuple(float(cell) for cell in row) for row in matrix)


def transform_of(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    """Return a 4 x 4 matrix between RAS positions as ITK's transform, which uses LPS."""
    import SimpleITK as sitk

    lps = _LPS @ matrix @ _LPS
    made = sitk.AffineTransform(3)
    made.SetMatrix(lps[:3, :3].ravel().tolist())
    made.SetTranslation(lps[:3, 3].tolist())
    return made


def matrix_of(transform: sitk.Transform) -> NDArray[np.float64]:
    """Return ITK's linear transform as a 4 x 4 matrix between RAS positions."""
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    lps = np.eye(4)
    for axis in range(3):
        lps[:3, axis] = np.array(transform.TransformPoint(np.eye(3)[axis].tolist())) - corner
    lps[:3, 3] = corner
    return np.asarray(_LPS @ lps @ _LPS)


def align_template(
    template: MetaTensor, enhanced: MetaTensor, *, max_shift_mm: float | None = None
) -> Placement:
    """Find the shift at which a template covers most of an enhanced map.

    Parameters
    ----------
    template : MetaTensor, shape (1, I, J, K)
        Weights, none negative: a brain mask, or better the mask times the network's mean map. It
        may lie on another grid than the map.
    enhanced : MetaTensor, shape (1, I', J', K')
        From :func:`.enhance.enhance_log_normal`, or any map without negative values.
    max_shift_mm : float, optional
        The longest shift that is looked at; None: any at which both overlap.

    Returns
    -------
    Placement
        A whole number of the map's voxels along each of its axes, in mm. Of equal shifts the
        shortest.

    Raises
    ------
    ImageError
        If template or map is empty, has negative values, or has several channels.
    MethodError
        If no shift is short enough.
    """
    from scipy.signal import correlate

    weights, first = _on_lattice(_weights(template, "template"), enhanced)
    values = _weights(enhanced, "map").as_tensor()[0].numpy().astype(np.float64)
    found = correlate(values, weights, mode="full", method="fft")
    # Entry n of an axis: the template's first voxel lies at voxel n - (its length - 1) of the map.
    start = [one - 1 for one in weights.shape]
    axes = np.asarray(enhanced.affine, dtype=np.float64)[:3, :3]
    lengths = _lengths_mm(found.shape, first + start, axes)
    if max_shift_mm is not None:
        if not max_shift_mm >= lengths.min():
            raise MethodError(
                f"No shift of the template is as short as {max_shift_mm:g} mm; the shortest at "
                f"which it overlaps the map is {lengths.min():.1f} mm. Raise max_shift_mm."
            )
        found[lengths > max_shift_mm] = -np.inf
    top = float(found.max())
    ties = np.flatnonzero(found >= top - 1e-9 * abs(top))
    best = ties[lengths.ravel()[ties].argmin()]
    voxels = np.array(np.unravel_index(int(best), found.shape)) - start - first
    size = float(np.linalg.norm(weights) * np.linalg.norm(values))
    return Placement.shifted(axes @ voxels, score=top / size)


def _weights(image: MetaTensor, what: str) -> MetaTensor:
    from ...image import as_image

    image = as_image(image)
    if image.shape[0] != 1:
        raise ImageError(f"The {what} needs one channel; it has {image.shape[0]}. Join them.")
    low, high = float(image.min()), float(image.max())
    if low < 0:
        raise ImageError(
            f"The {what} has negative values (down to {low:.4g}). Give weights from 0 on, for "
            "example its magnitude."
        )
    if high == 0:
        raise ImageError(f"The {what} is zero everywhere, so it cannot be aligned.")
    return image


def _on_lattice(
    template: MetaTensor, like: MetaTensor
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Interpolate a template onto the endless lattice of a grid.

    Returns
    -------
    ndarray, shape (i, j, k)
        What is not zero.
    ndarray, shape (3,)
        Voxel of `like` at which it begins; may lie outside.
    """
    from ...image import make_image, ras_to_ijk, resample_image, to_ras

    inside = np.argwhere(template.as_tensor()[0].numpy() > 0)
    ends = np.stack([inside.min(0) - 1, inside.max(0) + 1])
    corners = np.stack(np.meshgrid(*ends.T), axis=-1).reshape(-1, 3)
    where = ras_to_ijk(like.affine, to_ras(template.affine, corners))
    low, high = np.floor(where.min(0) + 1e-3), np.ceil(where.max(0) - 1e-3)
    affine = np.asarray(like.affine, dtype=np.float64).copy()
    affine[:3, 3] = to_ras(affine, low)
    lattice = make_image(np.zeros(tuple((high - low + 1).astype(int))), affine)
    # ITK clamps to the border within half a voxel; a border of zeros keeps weights where they are.
    padded, moved = (
        np.pad(template.as_tensor()[0].numpy(), 1),
        np.asarray(template.affine, dtype=np.float64).copy(),
    )
    moved[:3, 3] = to_ras(moved, (-1, -1, -1))
    found = resample_image(make_image(padded, moved), lattice, outside=0.0).as_tensor()[0].numpy()
    filled = np.argwhere(found > 0)
    if len(filled) == 0:
        raise ImageError(
            "The template is smaller than a voxel of the map. Give it finer or larger."
        )
    start, stop = filled.min(0), filled.max(0) + 1
    part = found[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return part.astype(np.float64), low.astype(np.int64) + start


def _lengths_mm(
    shape: tuple[int, ...], first: NDArray[np.int64], axes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Length in mm of the shift behind each entry of the correlation."""
    total = np.zeros((*shape, 3))
    for axis, count in enumerate(shape):
        steps = (np.arange(count) - first[axis]).reshape([-1 if n == axis else 1 for n in range(3)])
        total += steps[..., None] * axes[:, axis]
    return np.asarray(np.linalg.norm(total, axis=-1))
