"""Volumes with their place in the patient: reading, writing, resampling, geometry of a grid.

An image is a :class:`monai.data.MetaTensor` of shape (C, I, J, K), float32, whose ``affine`` (4 x
4, float64) takes voxel indices (i, j, k) to RAS millimetres. It equals the IJKToRAS matrix of a
Slicer volume node. ITK and DICOM use LPS; the change of sign happens here and nowhere else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from .errors import ImageError
from .volume import reason_of, same_grid, spacing_mm, to_ras, voxel_volume_ml

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = [
    "as_image",
    "image_from_sitk",
    "make_image",
    "ras_to_ijk",
    "read_image",
    "read_labelmap",
    "replace_values",
    "resample_image",
    "resample_labels",
    "same_grid",
    "sitk_from_image",
    "spacing_mm",
    "to_ras",
    "voxel_volume_ml",
    "write_image",
]

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def make_image(
    voxels: torch.Tensor | np.ndarray, affine: Any, name: str = "", notes: Sequence[str] = ()
) -> MetaTensor:
    """Join voxels and their IJK-to-RAS matrix.

    Parameters
    ----------
    voxels : tensor or array, shape (C, I, J, K) or (I, J, K)
        Values; converted to float32. Three axes get one channel.
    affine : array_like, shape (4, 4)
        IJK to RAS, in mm.
    name : str
        Kept as the file name in the metadata.
    notes : sequence of str
        Kept in the metadata; :func:`explain` adds them to its warnings.

    Returns
    -------
    MetaTensor
        Shape (C, I, J, K), float32.

    Raises
    ------
    ImageError
        If the shape has not three or four axes, an axis is empty, or the affine cannot be inverted.
    """
    tensor = torch.as_tensor(np.asarray(voxels) if not isinstance(voxels, torch.Tensor) else voxels)
    if isinstance(tensor, MetaTensor):
        tensor = tensor.as_tensor()
    tensor = tensor.detach().to(torch.float32)
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise ImageError(
            "A volume has the shape (C, I, J, K) or (I, J, K) with no empty axis; "
            f"{tuple(tensor.shape)} was given. "
            "Add a channel axis, or give one subject at a time."
        )
    matrix = np.asarray(affine, dtype=np.float64).copy()
    if (
        matrix.shape != (4, 4)
        or not np.isfinite(matrix).all()
        or abs(np.linalg.det(matrix)) < 1e-12
    ):
        raise ImageError(
            "The affine must be an invertible 4 x 4 matrix from voxel indices to RAS millimetres; "
            f"got {matrix!r}."
        )
    meta: dict[str, Any] = {"filename_or_obj": name, "space": "RAS", "original_channel_dim": 0}
    if notes:
        meta["notes"] = tuple(notes)
    return MetaTensor(tensor, affine=torch.from_numpy(matrix), meta=meta)


def as_image(image: Any) -> MetaTensor:
    """Return `image` as a checked (C, I, J, K) float32 MetaTensor.

    Raises
    ------
    ImageError
        If it is not a MetaTensor (a bare array does not say where its voxels are), holds NaN or
        infinite values, or has a wrong shape.
    """
    if not isinstance(image, MetaTensor):
        raise ImageError(
            f"An image is a MetaTensor (C, I, J, K) with its affine; {type(image).__name__} was "
            "given. "
            "Use read_image(path), or make_image(voxels, affine) when the IJK-to-RAS matrix is "
            "known."
        )
    checked = make_image(
        image,
        image.affine,
        str(image.meta.get("filename_or_obj", "")),
        tuple(image.meta.get("notes", ())),
    )
    if not torch.isfinite(checked.as_tensor()).all():
        raise ImageError(_not_finite(checked))
    return checked


def replace_values(image: MetaTensor, fill: float) -> MetaTensor:
    """Put one value in place of NaN and infinite ones, and note how many there were.

    Parameters
    ----------
    image : MetaTensor, shape (C, I, J, K)
        Not changed.
    fill : float
        A value that means nothing there: air for CT (-1024), 0 for most MR.

    Raises
    ------
    ImageError
        If `fill` is not finite itself.
    """
    if not np.isfinite(fill):
        raise ImageError(f"NaN and infinite values are replaced by a number; {fill} was given.")
    voxels = image.as_tensor()
    bad = ~torch.isfinite(voxels)
    count = int(bad.sum())
    if not count:
        return image
    name, notes = str(image.meta.get("filename_or_obj", "")), image.meta.get("notes", ())
    told = f"{count} values were NaN or infinite; {fill:g} stands in their place."
    return make_image(voxels.masked_fill(bad, fill), image.affine, name, (*notes, told))


def _not_finite(image: MetaTensor) -> str:
    bad = ~torch.isfinite(image.as_tensor())
    first = [int(one) for one in bad.nonzero()[0]]
    place = ", ".join(f"{one:.1f}" for one in to_ras(image.affine, first[1:]))
    return (
        f"The volume holds {int(bad.sum())} values that are NaN or infinite (the "
        f"first in channel {first[0]} at voxel {tuple(first[1:])}, RAS {place} mm). "
        "Put a number in their place: read_image(path, fill=0), --fill 0; in 3D Slicer the "
        "module 'Simple Filters'."
    )


def ras_to_ijk(affine: Any, ras_mm: Any) -> np.ndarray:
    """Fractional voxel indices, shape (..., 3), of RAS positions in mm, shape (..., 3)."""
    return to_ras(np.linalg.inv(np.asarray(affine, dtype=np.float64)), ras_mm)


def sitk_from_image(image: MetaTensor) -> sitk.Image:
    """Convert to a SimpleITK image (LPS); channels become the components of a vector image."""
    import SimpleITK as sitk

    voxels = image.as_tensor().detach().cpu().numpy()
    if voxels.shape[0] == 1:
        result = sitk.GetImageFromArray(np.ascontiguousarray(voxels[0].transpose(2, 1, 0)))
    else:
        result = sitk.GetImageFromArray(
            np.ascontiguousarray(voxels.transpose(3, 2, 1, 0)), isVector=True
        )
    lps = _LPS_FROM_RAS @ np.asarray(image.affine, dtype=np.float64)
    spacing = spacing_mm(lps)
    result.SetSpacing(spacing.tolist())
    result.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    result.SetOrigin(lps[:3, 3].tolist())
    return result


def image_from_sitk(volume: sitk.Image, name: str = "") -> MetaTensor:
    """Convert a SimpleITK image to (C, I, J, K); components or a fourth axis become channels."""
    import SimpleITK as sitk

    dimension = volume.GetDimension()
    if dimension not in (3, 4):
        raise ImageError(
            f"A volume with 3 axes is needed; {name or 'the image'} has {dimension}. Give a 3-D "
            "scan."
        )
    array = sitk.GetArrayFromImage(volume)
    if np.iscomplexobj(array):
        raise ImageError(
            f"{name or 'The image'} holds complex numbers. Give its magnitude or phase as a volume."
        )
    if volume.GetNumberOfComponentsPerPixel() > 1:
        if dimension == 4:
            raise ImageError(
                f"{name or 'The image'} has 4 axes and several values a voxel. Split it into 3-D "
                "volumes."
            )
        voxels = array.transpose(3, 2, 1, 0)
    else:
        voxels = array.transpose(0, 3, 2, 1) if dimension == 4 else array.transpose(2, 1, 0)[None]
    affine = _affine(volume.GetSpacing(), volume.GetOrigin(), volume.GetDirection())
    return make_image(voxels.astype(np.float32), _LPS_FROM_RAS @ affine, name)


def read_image(
    paths: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    resample: bool = False,
    channels: Sequence[str] = (),
    series: str | None = None,
    frame: int | None = None,
    fill: float | None = None,
) -> MetaTensor:
    """Read one volume, or several as the channels of one image.

    Parameters
    ----------
    paths : path, sequence of paths, or mapping of channel name to path
        NIfTI, NRRD, MetaImage, a folder of DICOM slices, and whatever else SimpleITK reads. Several
        files become channels, in this order; a fourth axis becomes channels, too. Named ones are
        put in the order of `channels`.
    resample : bool
        Allow volumes on other grids: they are interpolated (trilinear, by world position) onto the
        first one's grid.
    channels : sequence of str
        Names of the model's inputs (``model.channels``), for a mapping.
    series : str, optional
        Which DICOM series of a folder that holds several: its number, description or UID.
    frame : int, optional
        Which frame of a file with a fourth axis, from 0; None: all of them.
    fill : float, optional
        What to put in place of NaN and infinite values; None leaves them, and :func:`explain`
        refuses them.

    Returns
    -------
    MetaTensor
        Shape (C, I, J, K), float32, affine IJK to RAS in mm. What a reader of the result must know
        stands in ``meta["notes"]``.

    Raises
    ------
    ImageError
        If a file is missing, unreadable or larger than the memory, the grids differ and `resample`
        is False, or the names are not those of the model.
    """
    from .channels import in_order, join_volumes
    from .volume_files import read_file

    if isinstance(paths, Mapping):
        files = [Path(paths[name]) for name in in_order(paths, channels)]
    elif isinstance(paths, str | Path):
        files = [Path(paths)]
    else:
        files = [Path(path) for path in paths]
    if not files:
        raise ImageError("No volume was given. Name at least one file.")
    volumes = [read_file(file, series=series, frame=frame) for file in files]
    whole = join_volumes(volumes, resample=resample)
    image = make_image(whole.voxels, whole.affine, whole.name, whole.notes)
    return image if fill is None else replace_values(image, fill)


def read_labelmap(path: str | Path) -> MetaTensor:
    """Read a label map: one channel, whole numbers, shape (1, I, J, K).

    Raises
    ------
    ImageError
        If the file cannot be read, has several channels, or holds fractions or labels above
        16777216, which single precision would mix up.
    """
    from .volume_files import read_file

    volume = read_file(Path(path), whole=True)
    image = make_image(volume.voxels, volume.affine, volume.name, volume.notes)
    if image.shape[0] != 1:
        raise ImageError(f"{Path(path).name!r} has {image.shape[0]} channels. A label map has one.")
    if not torch.equal(image.as_tensor(), image.as_tensor().round()):
        raise ImageError(
            f"{Path(path).name!r} holds values that are not whole numbers, so it is no label map. "
            "Give the segmentation file."
        )
    return image


def write_image(image: MetaTensor, path: str | Path) -> Path:
    """Write a volume (NRRD, NIfTI, ...); the file appears whole or not at all.

    Raises
    ------
    ImageError
        If the folder cannot be written, the format is unknown, keeps its voxels in a second file,
        or cannot hold this grid (NIfTI: no shear; PNG, TIFF: no place at all).
    """
    import SimpleITK as sitk

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            sitk.WriteImage(sitk_from_image(image), str(temporary), useCompression=True)
            if len(list(Path(folder).iterdir())) != 1:
                raise ImageError(
                    f"{path.name!r} would keep its voxels in a second file. Write .nrrd or .mha."
                )
            _check_grid(temporary, image)
            temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise ImageError(f"{str(path)!r} could not be written ({reason_of(error)}).") from error
    return path


def _check_grid(file: Path, image: MetaTensor) -> None:
    """Refuse a format that changed the grid: ITK makes sheared axes orthogonal for NIfTI.

    All voxels are read: on a full disk ITK cuts the file off without a word (seen with NRRD).
    """
    import SimpleITK as sitk

    reader = sitk.ReadImage(str(file))
    place = (reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    if len(place[0]) == 3 and place[0] == tuple(image.shape[1:]):
        lps = _affine(*place[1:])
        kept = MetaTensor(image.as_tensor(), affine=torch.from_numpy(_LPS_FROM_RAS @ lps))
        if same_grid(kept, image):
            return
    raise ImageError(
        f"{file.name!r}: this format cannot hold the volume's grid (sheared axes, or a picture "
        "without a place in the patient). Write .nrrd or .mha."
    )


def _affine(spacing: Sequence[float], origin: Sequence[float], direction: Any) -> np.ndarray:
    """IJK-to-LPS matrix from what ITK keeps."""
    size = len(spacing)
    affine = np.eye(4)
    axes = np.array(direction).reshape(size, size)[:3, :3]
    affine[:3, :3] = axes * np.array(spacing[:3])
    affine[:3, 3] = origin[:3]
    return affine


def resample_image(
    image: MetaTensor, like: MetaTensor, *, outside: float | None = None
) -> MetaTensor:
    """Interpolate (trilinear) onto the grid of `like` by world position.

    Parameters
    ----------
    image, like : MetaTensor, shape (C, I, J, K)
        What is resampled, and whose grid is taken.
    outside : float, optional
        Value beyond the image; its minimum when left out.
    """
    import SimpleITK as sitk

    fill = float(image.min()) if outside is None else outside
    return _resample(image, like, sitk.sitkLinear, fill)


def resample_labels(labelmap: MetaTensor, like: MetaTensor) -> MetaTensor:
    """Take labels onto the grid of `like` (nearest neighbour, world position); outside is 0."""
    import SimpleITK as sitk

    return (
        labelmap
        if same_grid(labelmap, like)
        else _resample(labelmap, like, sitk.sitkNearestNeighbor, 0.0)
    )


def _resample(image: MetaTensor, like: MetaTensor, interpolator: int, outside: float) -> MetaTensor:
    import SimpleITK as sitk

    reference = sitk_from_image(make_image(torch.zeros(tuple(like.shape[1:])), like.affine))
    moved = sitk.Resample(
        sitk_from_image(image), reference, sitk.Transform(), interpolator, outside
    )
    return make_image(
        image_from_sitk(moved), like.affine, str(image.meta.get("filename_or_obj", ""))
    )
