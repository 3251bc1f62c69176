"""What the header of a volume file says, read before ITK sees the file.

A header is a text from somebody else. ITK follows it wherever it points, crashes on some of them
(a pattern with ``%s`` as the name of the voxels' file) and takes memory for any size that stands
there. So where the voxels lie, how they are packed and, for NIfTI, where they are in the patient
is read here, in plain Python, from the first bytes.

NIfTI: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h; NRRD:
https://teem.sourceforge.net/nrrd/format.html; MetaImage: https://itk.org/Wiki/ITK/MetaIO.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ImageError

__all__ = ["Header", "NiftiForms", "read_header"]

#: A header may be this long; those of real files have a few kilobytes.
_LONGEST = 1 << 20
#: A line of NRRD may be this long, texts (``key:=value``) aside. Teem repeats a longer one in a
#: message of fixed size: ITK 5.4 crashes on 5000 letters (found by damaging files at random).
_LONGEST_LINE = 1000
#: Axes of a MetaImage; ITK 5.4 crashes on 399999999.
_MOST_AXES = 10
#: Field, where it is in a NIfTI-1 header, and its form.
_NIFTI_FIELDS = (
    ("dim", 40, "8h"),
    ("bits", 72, "h"),
    ("pixdim", 76, "8f"),
    ("offset", 108, "f"),
    ("scale", 112, "2f"),
    ("units", 123, "B"),
    ("codes", 252, "2h"),
    ("quatern", 256, "6f"),
    ("rows", 280, "12f"),
)
#: Name of a file for each slice: one number and nothing else that printf would act on.
_PATTERN = re.compile(r"^[^%]*%\d{0,2}d[^%]*$")


@dataclass(frozen=True)
class NiftiForms:
    """The two places that a NIfTI header gives, IJK to RAS in mm; None where it gives none.

    Attributes
    ----------
    neither : ndarray
        What is assumed where it gives none.
    slope, intercept : float
        Voxels are slope * stored + intercept; a slope of 0 means that they are not scaled.
    bits : int
        Of a stored voxel.
    """

    sform: np.ndarray[Any, Any] | None
    qform: np.ndarray[Any, Any] | None
    neither: np.ndarray[Any, Any]
    slope: float = 1.0
    intercept: float = 0.0
    bits: int = 0

    @property
    def affine(self) -> np.ndarray[Any, Any]:
        """The sform where there is one, else the qform, as NiBabel has it."""
        return next(one for one in (self.sform, self.qform, self.neither) if one is not None)


@dataclass(frozen=True)
class Header:
    """What is known before reading.

    Attributes
    ----------
    stored_bytes : int
        What the file, or the files, may hold of voxels.
    packed : bool or None
        Whether the voxels are compressed (or written as text); None where that is not known.
    forms : NiftiForms or None
        For NIfTI.
    offset : int
        Where the voxels of a NIfTI file begin, once it is unpacked.
    """

    stored_bytes: int
    packed: bool | None = None
    forms: NiftiForms | None = None
    offset: int = 0


def read_header(path: Path) -> Header:
    """Read the header of a volume file.

    Parameters
    ----------
    path : Path
        A regular file.

    Raises
    ------
    ImageError
        If its voxels lie in a file outside its folder, or the header has no end.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST)
    except OSError as error:
        raise ImageError(f"{path.name!r} could not be opened ({error.strerror}).") from error
    if start.startswith(b"NRRD"):
        return _nrrd(path, start)
    if path.suffix.lower() in (".mha", ".mhd") or b"ElementDataFile" in start[:4096]:
        return _metaimage(path, start)
    zipped = start.startswith(b"\x1f\x8b")
    told = _nifti(_unzipped(path) if zipped else start, path.name)
    if told is None:
        return Header(size)
    forms, offset = told
    if not np.isfinite([forms.slope, forms.intercept]).all():
        raise ImageError(
            f"{path.name!r} scales its voxels by {forms.slope} and {forms.intercept}, so it has no "
            "values. Save it again."
        )
    if path.name.lower().endswith((".hdr", ".hdr.gz")):
        return Header(size, None, forms)
    return Header(size if zipped else max(0, size - offset), zipped, forms, offset)


# Voxels in other files


def _nrrd(path: Path, start: bytes) -> Header:
    text = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0]
    if len(text) >= _LONGEST:
        raise _endless(path)
    if any(len(line) > _LONGEST_LINE for line in text.splitlines() if b":=" not in line):
        raise ImageError(
            f"{path.name!r} has a line of more than {_LONGEST_LINE} letters in its header, so it "
            "is damaged. Save it again."
        )
    lines = [line.strip() for line in text.decode("latin-1").splitlines()]
    fields = {}
    for number, line in enumerate(lines):
        key, colon, value = line.partition(":")
        if colon and not value.startswith("=") and not line.startswith("#"):
            # The later line counts in some readers, the earlier one in others.
            name = key.strip().lower().replace(" ", "")
            if name == "datafile" and name in fields:
                raise ImageError(f"{path.name!r} names the file of its voxels twice.")
            fields[name] = value.strip()
            if name == "datafile":
                listed = lines[number + 1 :]
    packed = fields.get("encoding", "raw").lower() != "raw"
    if "datafile" not in fields:
        return Header(path.stat().st_size - len(text), packed)
    return Header(_elsewhere(path, fields["datafile"], listed), packed)


def _metaimage(path: Path, start: bytes) -> Header:
    found = re.search(rb"(?im)^[^\n=:]*ElementDataFile\s*[=:][ \t]*([^\r\n]*)\r?\n?", start)
    if found is None:
        if len(start) >= _LONGEST:
            raise _endless(path)
        raise ImageError(
            f"{path.name!r} does not say where its voxels are (ElementDataFile). Save it again."
        )
    before = start[: found.start()]
    axes = re.findall(rb"(?im)^\s*NDims\s*[=:]\s*(\S*)", before)
    if len(axes) != 1 or not axes[0].isdigit() or not 1 <= int(axes[0]) <= _MOST_AXES:
        raise ImageError(f"{path.name!r} does not say how many axes it has (NDims). Save it again.")
    packed = re.search(rb"(?im)^\s*CompressedData\s*[=:]\s*T", before) is not None
    packed |= re.search(rb"(?im)^\s*BinaryData\s*[=:]\s*F", before) is not None
    value = found[1].decode("latin-1").strip()
    if value.upper() == "LOCAL":
        return Header(path.stat().st_size - found.end(), packed)
    listed = start[found.end() :].decode("latin-1").splitlines()
    return Header(_elsewhere(path, value, listed), packed)


def _elsewhere(path: Path, value: str, listed: list[str]) -> int:
    """Bytes in the files that a header names; they must lie in its folder."""
    if re.match(r"(?i)list\b", value):
        names = [line.strip() for line in listed if line.strip()]
    elif "%" in value:
        name, *numbers = value.split()
        if not _PATTERN.match(name) or not all(re.fullmatch(r"-?\d{1,6}", n) for n in numbers):
            raise ImageError(
                f"{path.name!r} names the files of its voxels by a pattern that is not understood "
                f"({_short(value)}). Save it as one file (.nrrd or .mha)."
            )
        first, last, step = (int(one) for one in [*numbers, "1", "1", "1"][:3])
        names = [name % number for number in range(first, last + 1, max(1, step))]
    else:
        names = [value]
    return sum(_bytes_beside(path, name) for name in names)


def _bytes_beside(path: Path, name: str) -> int:
    home = path.parent.resolve()
    try:
        inside = bool(name) and name != "-" and (home / name).resolve().is_relative_to(home)
        size = (home / name).stat().st_size if inside and (home / name).is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        inside, size = True, None
    if not inside:
        raise ImageError(
            f"{path.name!r} takes its voxels from {_short(name)}, outside its own folder. It was "
            "not opened. If that file is meant, put it beside the header."
        )
    if size is None:
        raise ImageError(
            f"{path.name!r} takes its voxels from {_short(name)}, which is not there. Put it "
            "beside the header."
        )
    return size


def _endless(path: Path) -> ImageError:
    return ImageError(
        f"The header of {path.name!r} has no end within {_LONGEST // 1000} kB, so it is damaged. "
        "Save it again."
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# NIfTI


def _unzipped(path: Path) -> bytes:
    """First bytes of a file in gzip's format; none where it is damaged."""
    try:
        with gzip.open(path) as file:
            return file.read(540)
    except (OSError, EOFError, zlib.error):
        return b""


def _nifti(start: bytes, name: str) -> tuple[NiftiForms, int] | None:
    """Forms of a NIfTI-1 header of either byte order, and where its voxels begin.

    None for something else.
    """
    for order in "<>":
        size = struct.unpack_from(f"{order}i", start)[0] if len(start) >= 348 else 0
        if size == 540 and start[4:7] in (b"n+2", b"ni2"):
            raise ImageError(
                f"{name!r} is in the format NIfTI-2, which ITK cannot read. Convert it to NIfTI-1 "
                "or NRRD."
            )
        if size == 348 and start[344:347] in (b"n+1", b"ni1"):
            told = {
                key: struct.unpack_from(order + form, start, at) for key, at, form in _NIFTI_FIELDS
            }
            offset = told["offset"][0]
            return _forms(told), max(348, int(offset) if np.isfinite(offset) else 0)
    return None


def _forms(told: dict[str, tuple[Any, ...]]) -> NiftiForms:
    # 1 metre, 2 millimetre, 3 micrometre; ITK heeds them too.
    scale = np.diag([{1: 1e3, 3: 1e-3}.get(told["units"][0] & 7, 1.0)] * 3 + [1.0])
    qcode, scode = told["codes"]
    spacing = np.abs(np.array(told["pixdim"][1:4], dtype=np.float64))
    spacing[~(np.isfinite(spacing) & (spacing > 0))] = 1.0
    sform = np.eye(4)
    sform[:3] = np.array(told["rows"], dtype=np.float64).reshape(3, 4)
    qform = np.eye(4)
    qform[:3, :3] = _turned(told["quatern"][:3]) * spacing
    qform[:3, 2] *= -1.0 if told["pixdim"][0] < 0 else 1.0
    qform[:3, 3] = told["quatern"][3:]
    # Radiological, the middle at zero: ANALYZE's habit, as NiBabel takes it.
    neither = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    middle = (np.maximum(np.array(told["dim"][1:4], dtype=np.float64), 1) - 1) / 2
    neither[:3, 3] = -neither[:3, :3] @ middle
    return NiftiForms(
        sform=scale @ sform if scode > 0 and _invertible(sform) else None,
        qform=scale @ qform if qcode > 0 and _invertible(qform) else None,
        neither=scale @ neither,
        slope=float(told["scale"][0]),
        intercept=float(told["scale"][1]),
        bits=max(0, told["bits"][0]),
    )


def _turned(quaternion: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """Rotation of a unit quaternion that is given without its real part."""
    b, c, d = (float(one) for one in quaternion)
    a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    length = np.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = (one / length for one in (a, b, c, d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _invertible(affine: np.ndarray[Any, Any]) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine)) >= 1e-12)
