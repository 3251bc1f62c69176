"""Voxels with their place in the patient, as plain numpy: what leaves and enters without torch.

A :class:`Volume` has the same attributes as an image (``monai.data.MetaTensor``) as far as reading
it goes, so that results can be published, tabled and saved in a process without torch. The affine
takes voxel indices (i, j, k) to RAS millimetres. ITK uses LPS; the sign changes here.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError

if TYPE_CHECKING:
    import SimpleITK as sitk
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Volume",
    "as_volume",
    "read_volume",
    "reason_of",
    "resample_labels",
    "resample_volume",
    "same_grid",
    "spacing_mm",
    "to_ras",
    "voxel_volume_ml",
    "voxels_of",
    "write_volume",
]

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Two grids are one grid when every corner agrees to this distance. File formats keep float32.
_SAME_GRID_MM = 1e-3


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they are.

    Parameters
    ----------
    voxels : array_like, shape (C, I, J, K) or (I, J, K)
        Kept as float32, not copied if they are; three axes get one channel.
    affine : array_like, shape (4, 4)
        IJK to RAS, in mm.
    name : str
        For people: the node or file it came from.
    notes : tuple of str
        What was found when it was read, and the reader of a result must know.

    Raises
    ------
    ImageError
        If the shape has not three or four axes, an axis is empty, or the affine cannot be inverted.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        voxels = np.asarray(self.voxels, dtype=np.float32)
        voxels = voxels[None] if voxels.ndim == 3 else voxels
        if voxels.ndim != 4 or 0 in voxels.shape:
            raise ImageError(
                "A volume has the shape (C, I, J, K) or (I, J, K) with no empty axis; "
                f"{voxels.shape} was given. Add a channel axis, or give one subject at a time."
            )
        affine = np.asarray(self.affine, dtype=np.float64).copy()
        if (
            affine.shape != (4, 4)
            or not np.isfinite(affine).all()
            or abs(np.linalg.det(affine)) < 1e-12
        ):
            raise ImageError(
                "The affine must be an invertible 4 x 4 matrix from voxel indices to RAS "
                f"millimetres; got {affine!r}."
            )
        object.__setattr__(self, "voxels", voxels)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, I, J, K)."""
        return self.voxels.shape

    @property
    def ndim(self) -> int:
        """Four."""
        return self.voxels.ndim

    @property
    def meta(self) -> dict[str, Any]:
        """The name and the notes, under the keys that images keep them under."""
        return {"filename_or_obj": self.name, "space": "RAS", "notes": self.notes}

    def as_tensor(self) -> Any:
        """Return the voxels as a torch.Tensor on the same memory; needs torch."""
        import torch

        return torch.from_numpy(self.voxels)

    def as_image(self) -> Any:
        """Return a copy as an image (monai.data.MetaTensor); needs torch and MONAI."""
        from .image import make_image

        return make_image(self.voxels.copy(), self.affine, self.name, self.notes)


def voxels_of(image: Any) -> NDArray[np.float32]:
    """Voxels of a Volume or image as an array of shape (C, I, J, K), copied only if it must be."""
    if isinstance(image, Volume):
        return image.voxels
    return np.asarray(image.as_tensor().detach().cpu().numpy(), dtype=np.float32)


def as_volume(image: Any) -> Volume:
    """Return a Volume or image as a Volume."""
    if isinstance(image, Volume):
        return image
    name = str(image.meta.get("filename_or_obj", "") or "")
    notes = tuple(image.meta.get("notes", ()))
    return Volume(voxels_of(image), np.asarray(image.affine, dtype=np.float64), name, notes)


def spacing_mm(affine: ArrayLike) -> NDArray[np.float64]:
    """Distance between neighbouring voxels along i, j, k in mm, shape (3,)."""
    return np.asarray(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


def voxel_volume_ml(affine: ArrayLike) -> float:
    """Volume of one voxel in millilitres, right for sheared grids too."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])) / 1000.0)


def to_ras(affine: ArrayLike, ijk: ArrayLike) -> NDArray[np.float64]:
    """RAS position in mm, shape (..., 3), of (fractional) voxel indices, shape (..., 3)."""
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(np.asarray(ijk, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3])


def same_grid(one: Any, other: Any) -> bool:
    """Whether two volumes have the same voxels at the same places (to 0.001 mm at each corner)."""
    if tuple(one.shape[1:]) != tuple(other.shape[1:]):
        return False
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in one.shape[1:]]), axis=-1).reshape(-1, 3)
    here, there = to_ras(one.affine, corners), to_ras(other.affine, corners)
    return bool(np.allclose(here, there, rtol=0, atol=_SAME_GRID_MM))


def read_volume(path: str | Path) -> Volume:
    """Read a file of one channel that :func:`write_volume` made.

    Raises
    ------
    ImageError
        If the file is missing or no volume with three axes and one value a voxel.
    """
    from .volume_files import read_file

    volume = read_file(Path(path))
    if len(volume.voxels) != 1:
        raise ImageError(f"{volume.name!r} is no volume with three axes and one value a voxel.")
    return volume


def write_volume(volume: Any, path: str | Path) -> Path:
    """Write a Volume or image of one channel (NRRD, ...); the file appears whole or not at all.

    Raises
    ------
    ImageError
        If the folder cannot be written, or the format is unknown or cannot hold this grid (NIfTI:
        no shear).
    """
    import SimpleITK as sitk

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            sitk.WriteImage(_to_sitk(volume), str(temporary), useCompression=True)
            if not _keeps_grid(temporary, volume):
                raise ImageError(
                    f"{path.name!r}: this format cannot hold the volume's grid. Write .nrrd."
                )
            temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise ImageError(f"{str(path)!r} could not be written ({reason_of(error)}).") from error
    return path


def resample_labels(labels: Any, like: Any) -> Volume:
    """Take labels onto the grid of `like` (nearest neighbour, world position); outside is 0."""
    import SimpleITK as sitk

    given = as_volume(labels)
    if same_grid(given, like):
        return given
    reference = _to_sitk(Volume(np.zeros(tuple(like.shape[1:])), like.affine))
    moved = sitk.Resample(
        _to_sitk(given), reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0
    )
    return Volume(sitk.GetArrayFromImage(moved).transpose(2, 1, 0), like.affine, given.name)


def resample_volume(volume: Any, like: Any, *, outside: float | None = None) -> Volume:
    """Interpolate (trilinear, by world position) onto the grid of `like`, all channels.

    Parameters
    ----------
    volume, like : Volume or image, shape (C, I, J, K)
        What is resampled, and whose grid is taken.
    outside : float, optional
        Value beyond the volume; its minimum when left out.
    """
    import SimpleITK as sitk

    given = as_volume(volume)
    reference = _to_sitk(Volume(np.zeros(tuple(like.shape[1:]), dtype=np.float32), like.affine))
    fill = float(given.voxels.min()) if outside is None else outside
    moved = [
        sitk.GetArrayFromImage(
            sitk.Resample(
                _to_sitk(Volume(one, given.affine)),
                reference,
                sitk.Transform(),
                sitk.sitkLinear,
                fill,
            )
        ).transpose(2, 1, 0)
        for one in given.voxels
    ]
    affine = np.asarray(like.affine, dtype=np.float64)
    return Volume(np.stack(moved), affine, given.name, given.notes)


def _keeps_grid(file: Path, volume: Any) -> bool:
    """Whether the format kept the grid: ITK makes sheared axes orthogonal for NIfTI.

    All voxels are read: on a full disk ITK cuts the file off without a word (seen with NRRD).
    """
    import SimpleITK as sitk

    reader = sitk.ReadImage(str(file))
    if tuple(reader.GetSize()) != tuple(volume.shape[1:]):
        return False
    corners = np.array([[0, 0, 0], volume.shape[1:], [volume.shape[1], 0, volume.shape[3]]])
    kept, wanted = to_ras(_affine(reader), corners), to_ras(volume.affine, corners)
    return bool(np.allclose(kept, wanted, rtol=0, atol=_SAME_GRID_MM))


def _to_sitk(volume: Any) -> sitk.Image:
    import SimpleITK as sitk

    result = sitk.GetImageFromArray(np.ascontiguousarray(voxels_of(volume)[0].transpose(2, 1, 0)))
    lps = _LPS_FROM_RAS @ np.asarray(volume.affine, dtype=np.float64)
    spacing = spacing_mm(lps)
    result.SetSpacing(spacing.tolist())
    result.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    result.SetOrigin(lps[:3, 3].tolist())
    return result


def _affine(volume: Any) -> NDArray[np.float64]:
    """IJK-to-RAS matrix from what ITK keeps."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(volume.GetDirection()).reshape(3, 3) * np.array(volume.GetSpacing())
    lps[:3, 3] = volume.GetOrigin()
    return np.asarray(_LPS_FROM_RAS @ lps)


def reason_of(error: Exception) -> str:
    """Return the last informative line of a message of ITK, which starts with source paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    told = lines[-1].removeprefix("sitk::ERROR: ").removeprefix("ITK ERROR: ")
    return re.sub(r"\w+ ?\(0x[0-9a-f]+\): ", "", told).rstrip(".")
