"""A folder of DICOM slices as one volume, placed by the position that each slice gives.

ITK keeps three orthogonal axes: it takes the distance between the first two slices along their
connecting line for the spacing, so a CT whose gantry was tilted is set upright without a word
(off by 0.36 of the depth at 20 degrees), and a missing slice squeezes the rest. Here the third axis
is the step from slice to slice as it is: DICOM PS3.3, C.7.6.2.1.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError

if TYPE_CHECKING:
    import SimpleITK as sitk
    from numpy.typing import NDArray

__all__ = ["find_series", "refuse_single_slice", "series_geometry"]

_UID, _DESCRIPTION, _NUMBER = "0020|000e", "0008|103e", "0020|0011"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
#: Slices may be off their even places by this part of a step; exporters round positions.
_UNEVEN = 0.05
#: Cosines of directions that count as the same.
_SAME_DIRECTION = 1e-3


def find_series(folder: Path, wanted: str | None = None) -> list[str]:
    """Return the files of one series in a folder.

    Parameters
    ----------
    folder : Path
    wanted : str, optional
        Description, number or UID of the series; not needed where there is one.

    Raises
    ------
    ImageError
        If there is no DICOM series, none of that name, or several and none is named.
    """
    import SimpleITK as sitk

    found: dict[str, tuple[str, ...]] = {
        uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if not found:
        below = sorted(one.name for one in folder.iterdir() if one.is_dir())[:3]
        hint = f" Its folders: {', '.join(below)}." if below else ""
        raise ImageError(
            f"The folder {folder.name!r} holds no DICOM series.{hint} Give the folder whose files "
            "are the slices, or a NIfTI, NRRD or MetaImage file."
        )
    told = {uid: _told(files[0]) for uid, files in found.items()}
    fitting = [
        uid
        for uid, (number, text) in told.items()
        if wanted is None or wanted in (uid, number) or wanted.casefold() == text.casefold()
    ]
    if len(fitting) != 1:
        listed = "; ".join(
            f"{number or '?'} {text or 'without a description'} ({len(found[uid])} slices)"
            for uid, (number, text) in list(told.items())[:8]
        )
        asked = "" if wanted is None else f" and {len(fitting)} of them fit {wanted!r}"
        raise ImageError(
            f"The folder {folder.name!r} holds {len(found)} series{asked}: {listed}. Name one by "
            "its number, description or UID (series=, --series)."
        )
    return list(found[fitting[0]])


def series_geometry(
    files: list[str], name: str
) -> tuple[list[str], NDArray[np.float64], tuple[int, int, int]]:
    """Put slices in their order in space.

    Returns
    -------
    files : list of str
        Sorted along the normal of the slices.
    ijk_to_lps : ndarray, shape (4, 4)
        In mm; sheared where the gantry was tilted.
    shape : (I, J, K)

    Raises
    ------
    ImageError
        If slices lack a position, differ in size, spacing or direction, lie at the same place, or
        at uneven distances.
    """
    slices = [_Slice(file, name) for file in files]
    first = slices[0]
    for one in slices[1:]:
        if one.size != first.size or not np.allclose(one.spacing, first.spacing, rtol=1e-3):
            raise ImageError(
                f"The slices of {name!r} differ in size or spacing ({_grid(first)} and "
                f"{_grid(one)}). Give the files of one stack in a folder of their own."
            )
        if not np.allclose(one.axes, first.axes, atol=_SAME_DIRECTION):
            raise ImageError(
                f"The slices of {name!r} lie in different directions, as those of a localiser do. "
                "Give the files of one stack in a folder of their own."
            )
    normal = np.cross(first.axes[0], first.axes[1])
    slices.sort(key=lambda one: float(normal @ one.position))
    places = np.array([one.position for one in slices])
    step = _step(places, normal, name) if len(slices) > 1 else normal * first.thickness
    lps = np.eye(4)
    lps[:3, 0] = first.axes[0] * first.spacing[0]
    lps[:3, 1] = first.axes[1] * first.spacing[1]
    lps[:3, 2] = step
    lps[:3, 3] = places[0]
    return [one.file for one in slices], lps, (*first.size, len(slices))


def refuse_single_slice(path: Path, reader: sitk.ImageFileReader) -> None:
    """Refuse one DICOM file whose neighbours in the folder are the other slices of its series.

    Raises
    ------
    ImageError
        If it is one of several.
    """
    import SimpleITK as sitk

    if reader.GetSize()[-1] != 1 or not reader.HasMetaDataKey(_UID):
        return
    uid = reader.GetMetaData(_UID).strip("\0 ")
    others = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path.parent), uid)
    if len(others) > 1:
        raise ImageError(
            f"{path.name!r} is one of the {len(others)} slices of its series. Give their folder "
            f"({path.parent.name!r}) instead."
        )


def _step(places: NDArray[np.float64], normal: NDArray[np.float64], name: str) -> Any:
    """Step from slice to slice; all are checked against it."""
    steps = np.diff(places, axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    if float(along.min()) < 1e-3:
        twice = int((along < 1e-3).sum())
        raise ImageError(
            f"{twice} slices of {name!r} lie where another one lies: it holds several times, "
            "echoes or reconstructions. Export one of them, or load it in 3D Slicer and choose a "
            "frame."
        )
    step = np.asarray((places[-1] - places[0]) / (len(places) - 1))
    off = np.linalg.norm(places - places[0] - np.outer(np.arange(len(places)), step), axis=1)
    if float(off.max()) > _UNEVEN * float(np.linalg.norm(step)):
        where = int(np.argmax(np.abs(along - usual)))
        raise ImageError(
            f"The slices of {name!r} are not evenly spaced: {along[where]:.4g} mm between slices "
            f"{where + 1} and {where + 2}, {usual:.4g} mm usually. A slice may be missing. Export "
            "the whole series again, or resample it to even slices."
        )
    return step


class _Slice:
    """Place of one slice, in LPS mm."""

    def __init__(self, file: str, name: str) -> None:
        import SimpleITK as sitk

        self.file = file
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
            self.position = _numbers(reader, _POSITION, 3)
            self.axes = _numbers(reader, _ORIENTATION, 6).reshape(2, 3)
            down, across = _numbers(reader, _SPACING, 2)  # row spacing first: PS3.3, 10.7.1.3
        except (RuntimeError, ValueError) as error:
            raise ImageError(
                f"The slice {Path(file).name!r} of {name!r} does not say where it is in the "
                "patient (position, orientation, pixel spacing). Give the original series."
            ) from error
        self.spacing = np.array([across, down])
        size = reader.GetSize()
        if len(size) > 2 and size[2] != 1:
            raise ImageError(
                f"{name!r} holds several files of many frames. Give one of them as a file."
            )
        self.size = (int(size[0]), int(size[1]))
        self.thickness = float(reader.GetSpacing()[2]) if len(size) > 2 else 1.0
        if not (np.linalg.norm(self.axes, axis=1) > 0.9).all() or not (self.spacing > 0).all():
            raise ImageError(
                f"The slice {Path(file).name!r} of {name!r} has no proper axes. Give the original "
                "series."
            )


def _numbers(reader: Any, key: str, count: int) -> NDArray[np.float64]:
    values = np.array([float(one) for one in reader.GetMetaData(key).split("\\")])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(key)
    return values


def _told(file: str) -> tuple[str, str]:
    """Number and description of the series of a file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "", ""
    number, text = (
        reader.GetMetaData(key).strip("\0 ") if reader.HasMetaDataKey(key) else ""
        for key in (_NUMBER, _DESCRIPTION)
    )
    return number, text


def _grid(one: _Slice) -> str:
    return f"{one.size[0]} x {one.size[1]} pixels of {one.spacing[0]:.4g} x {one.spacing[1]:.4g} mm"
