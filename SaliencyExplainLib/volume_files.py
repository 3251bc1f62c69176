"""Volume files and DICOM folders into voxels with their place, whatever the file claims.

The header is read first (:mod:`.headers`): a file that says more than it can hold, or than the
memory can, is refused before anything is taken. NIfTI is placed as NiBabel does it: the sform
where there is one, sheared or not, then the qform. ITK would take either, by their codes, and makes
sheared axes orthogonal.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dicom import find_series, refuse_single_slice, series_geometry
from .errors import ImageError
from .headers import Header, NiftiForms, read_header
from .volume import Volume, reason_of, spacing_mm, to_ras

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = ["free_memory", "read_file"]

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Deflate makes no more than this of a byte (https://zlib.net/zlib_tech.html).
_DEFLATE = 1032
#: Part of the free memory that reading may take.
_PART = 0.9
#: Whole numbers above this are not all kept by single precision.
_EXACT = 1 << 24
#: How far apart, in voxels, sform and qform may place a voxel before it is told.
_DISAGREE = 0.5


def read_file(
    path: Path, *, series: str | None = None, frame: int | None = None, whole: bool = False
) -> Volume:
    """Read a file, or a folder of DICOM slices.

    Parameters
    ----------
    path : Path
        NIfTI, NRRD, MetaImage, DICOM and what else SimpleITK reads.
    series : str, optional
        Which DICOM series of a folder: its number, description or UID.
    frame : int, optional
        Which frame of a file with a fourth axis (or several values a voxel), from 0; None: all, as
        channels.
    whole : bool
        Refuse whole numbers that single precision cannot keep (labels).

    Returns
    -------
    Volume
        Shape (C, I, J, K), float32; affine IJK to RAS in mm; ``notes`` for people.

    Raises
    ------
    ImageError
        If it is missing, no volume, damaged, larger than the memory, or names files elsewhere.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        kind = 0
    if kind == stat.S_IFDIR:
        return _read_folder(path, series, frame)
    if kind not in (0, stat.S_IFREG):
        raise ImageError(
            f"{str(path)!r} is neither a file nor a folder (a device or a pipe). Give a volume."
        )
    if kind == 0:
        raise ImageError(
            f"There is no file {str(path)!r}. Give the path of a NIfTI, NRRD or MetaImage volume, "
            "or a folder of DICOM slices."
        )
    header = read_header(path)
    try:
        with _calm(permissive=header.forms is not None):
            reader = _opened(path, header)
            return _converted(reader.Execute(), path.name, header.forms, frame, whole)
    except RuntimeError as error:
        raise ImageError(
            f"{path.name!r} could not be read as a volume ({reason_of(error)}). "
            "Give a NIfTI, NRRD or MetaImage file, or a folder of DICOM slices."
        ) from error


def _opened(path: Path, header: Header) -> sitk.ImageFileReader:
    """A reader that knows the size and type, checked against the file and the memory."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = [int(one) for one in reader.GetSize()]
    values = math.prod(size) * int(reader.GetNumberOfComponents())
    raw = values * _bytes_of(reader.GetPixelID())
    # What is scaled becomes floating point, so ITK's type says nothing of the file's.
    stored = raw if header.forms is None else math.prod(size) * header.forms.bits // 8
    if "GDCM" in reader.GetImageIOFromFileName(str(path)):
        refuse_single_slice(path, reader)
    ratio = {True: _DEFLATE, False: 1}.get(header.packed) if header.packed is not None else None
    if ratio is not None and stored > ratio * header.stored_bytes:
        raise ImageError(
            f"{path.name!r} says that it holds {_shape(size)} voxels ({_bytes(stored)}), but its "
            f"{_bytes(header.stored_bytes)} cannot: it is cut off or damaged. Copy or download it "
            "again."
        )
    if header.forms is not None and header.packed and not _unpacks_to(path, header.offset + stored):
        raise ImageError(
            f"{path.name!r} ends before its {_shape(size)} voxels do: it is cut off or damaged. "
            "Copy or download it again."
        )
    _refuse_large(path.name, size, raw + 4 * values)
    return reader


def _unpacks_to(path: Path, size: int) -> bool:
    """Whether a gzip file holds at least so many bytes; ITK fills up with zeros what is missing."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        # The size that was packed stands at the end (RFC 1952), where there is one part.
        if int.from_bytes(file.read(4), "little") == size % (1 << 32):
            return True
    try:
        with gzip.open(path) as unpacked:
            while size > 0 and (chunk := unpacked.read(min(size, 1 << 20))):
                size -= len(chunk)
    except (OSError, EOFError, zlib.error):
        return False
    return size <= 0


def _refuse_large(name: str, size: list[int], needed: int) -> None:
    free = free_memory()
    if free is not None and needed > _PART * free:
        raise ImageError(
            f"{name!r} has {_shape(size)} voxels: reading it needs {_bytes(needed)} of memory, and "
            f"{_bytes(free)} are free. Crop or resample it first, or use a computer with more "
            "memory."
        )


def _converted(
    volume: sitk.Image, name: str, forms: NiftiForms | None, frame: int | None, whole: bool
) -> Volume:
    import SimpleITK as sitk

    dimension = volume.GetDimension()
    if dimension not in (3, 4):
        raise ImageError(
            f"A volume with 3 axes is needed; {name} has {dimension}. Give a 3-D scan."
        )
    vector = volume.GetNumberOfComponentsPerPixel() > 1
    if vector and dimension == 4:
        raise ImageError(
            f"{name} has 4 axes and several values a voxel. Split it into 3-D volumes."
        )
    array = sitk.GetArrayViewFromImage(volume)
    if np.iscomplexobj(array):
        raise ImageError(f"{name} holds complex numbers. Give its magnitude or phase as a volume.")
    if whole and array.dtype.kind in "iu" and array.dtype.itemsize > 2 and _inexact(array):
        raise ImageError(
            f"{name!r} holds labels above {_EXACT:,}, which single precision would mix up. Number "
            "them from 1 on first."
        )
    if vector:
        voxels = _frames(array.transpose(3, 2, 1, 0), name, frame)
    elif dimension == 4:
        voxels = _frames(array.transpose(0, 3, 2, 1), name, frame)
    else:
        voxels = _frames(array.transpose(2, 1, 0)[None], name, frame)
    affine = forms.affine if forms is not None else _ras(volume)
    # In C order, and a copy: the view's memory ends with the image.
    copied = np.array(voxels, dtype=np.float32, order="C")
    if forms is not None and forms.slope == 0 and forms.intercept != 0:
        copied -= np.float32(forms.intercept)  # ITK adds it all the same
    return _placed(copied, affine, name, _notes(forms, copied.shape))


def _placed(voxels: Any, affine: Any, name: str, notes: tuple[str, ...] = ()) -> Volume:
    try:
        return Volume(voxels, affine, name, notes)
    except ImageError as error:
        raise ImageError(f"{name!r} is damaged. {error}") from error


def _frames(voxels: np.ndarray[Any, Any], name: str, frame: int | None) -> Any:
    if frame is None:
        return voxels
    if not 0 <= frame < len(voxels):
        raise ImageError(
            f"{name!r} has {len(voxels)} frame{'s' if len(voxels) > 1 else ''}, numbered from 0; "
            f"frame {frame} was asked for."
        )
    return voxels[frame : frame + 1]


def _inexact(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.size) and max(int(array.max()), -int(array.min())) > _EXACT


def _notes(forms: NiftiForms | None, shape: tuple[int, ...]) -> tuple[str, ...]:
    """What a NIfTI header leaves open."""
    if forms is None:
        return ()
    if forms.sform is None and forms.qform is None:
        return (
            "The file does not say where it is in the patient (no sform, no qform): left and "
            "right, front and back are assumed.",
        )
    if forms.sform is None or forms.qform is None:
        return ()
    ends = np.array([np.zeros(3), np.array(shape[1:]) - 1.0])
    corners = np.stack(np.meshgrid(*ends.T), axis=-1).reshape(-1, 3)
    apart = np.linalg.norm(to_ras(forms.sform, corners) - to_ras(forms.qform, corners), axis=1)
    if float(apart.max()) <= _DISAGREE * float(spacing_mm(forms.sform).min()):
        return ()
    return (
        f"The file gives two places, up to {apart.max():.1f} mm apart: its sform was used. "
        "Programs built on ITK, 3D Slicer among them, may show it by its qform.",
    )


def _read_folder(folder: Path, series: str | None, frame: int | None) -> Volume:
    """Slices with rescale slopes of their own (PET) are converted one by one, not as the first."""
    import SimpleITK as sitk

    with _calm():
        files, lps, shape = series_geometry(find_series(folder, series), folder.name)
        _refuse_large(folder.name, list(shape), 3 * 4 * math.prod(shape))
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        reader.SetOutputPixelType(sitk.sitkFloat32)
        try:
            array = sitk.GetArrayViewFromImage(volume := reader.Execute())
        except RuntimeError as error:
            raise ImageError(
                f"The DICOM series in {folder.name!r} could not be read ({reason_of(error)}). "
                "Export it again, without compression if that is offered."
            ) from error
        if volume.GetNumberOfComponentsPerPixel() > 1:
            raise ImageError(f"The DICOM series in {folder.name!r} is in colour. Give grey values.")
        voxels = np.array(array.transpose(2, 1, 0)[None], dtype=np.float32, order="C")
    return _placed(_frames(voxels, folder.name, frame), _LPS_FROM_RAS @ lps, folder.name)


@contextmanager
def _calm(*, permissive: bool = False) -> Iterator[None]:
    """Keep ITK from writing to the terminal; `permissive`: from refusing sheared NIfTI files."""
    import SimpleITK as sitk

    told, name = sitk.ProcessObject.GetGlobalWarningDisplay(), "ITK_NIFTI_SFORM_PERMISSIVE"
    before = os.environ.get(name)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if permissive:
        # The axes that ITK then makes up are not used: the header's own are.
        os.environ[name] = "YES"
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(told)
        if permissive:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _ras(volume: Any) -> np.ndarray[Any, Any]:
    """IJK-to-RAS matrix from what ITK keeps."""
    size = volume.GetDimension()
    lps = np.eye(4)
    axes = np.array(volume.GetDirection()).reshape(size, size)[:3, :3]
    lps[:3, :3] = axes * np.array(volume.GetSpacing()[:3])
    lps[:3, 3] = volume.GetOrigin()[:3]
    return np.asarray(_LPS_FROM_RAS @ lps)


def _bytes_of(pixel: int) -> int:
    """Bytes of one value of an ITK pixel type; complex numbers count as two values."""
    import SimpleITK as sitk

    text = sitk.GetPixelIDValueAsString(pixel)
    number = next((int(word) for word in text.replace("-", " ").split() if word.isdigit()), 64)
    return number // 8


def free_memory() -> int | None:
    """Free memory of this computer (or of the container) in bytes; None where it is not told."""
    told = [_meminfo(), _container()]
    if sys.platform == "win32":
        told.append(_windows())
    known = [one for one in told if one is not None]
    return min(known) if known else None


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _container() -> int | None:
    """What the container's limit leaves (cgroup v2)."""
    home = Path("/sys/fs/cgroup")
    try:
        most, used = (
            int((home / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        lines = (home / "memory.stat").read_text(encoding="ascii").splitlines()
        # The cache of files counts as used, and goes when the memory is wanted.
        cache = int(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None  # no container, or "max"
    return max(0, most - used + cache)


def _windows() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
        )

    status = Status(length=ctypes.sizeof(Status))
    windll = getattr(ctypes, "windll", None)
    done = windll is not None and windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.free) if done else None


def _shape(size: list[int]) -> str:
    return " x ".join(map(str, size))


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
