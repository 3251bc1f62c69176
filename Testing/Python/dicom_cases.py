"""DICOM files as scanners write them, byte by byte: explicit VR, little endian (PS3.5, 7.1.2)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
EXPLICIT = "1.2.840.10008.1.2.1"
_LONG = ("OB", "OW", "SQ", "UN")


def uid(*numbers: int) -> str:
    return ".".join(map(str, ("1.2.826.0.1.3680043.9.9999", *numbers)))


def element(tag: int, vr: str, value: Any) -> bytes:
    """One data element; a sequence is a list of lists of elements."""
    if vr == "SQ":
        content = b"".join(
            struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in map(b"".join, value)
        )
    elif vr in ("US", "UL", "FD"):
        content = struct.pack(f"<{ {'US': 'H', 'UL': 'I', 'FD': 'd'}[vr] }", value)
    elif isinstance(value, bytes):
        content = value
    else:
        many = isinstance(value, list | tuple | np.ndarray)
        text = "\\".join(f"{one:.8g}" for one in value) if many else str(value)
        content = text.encode()
    content += (b"\0" if vr in ("UI", "OB", "OW") else b" ") * (len(content) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in _LONG:
        return head + struct.pack("<HI", 0, len(content)) + content
    return head + struct.pack("<H", len(content)) + content


def write(path: Path, elements: list[tuple[int, str, Any]], kind: str, instance: str) -> Path:
    meta = b"".join(
        element(*one)
        for one in [
            (0x00020001, "OB", b"\0\1"),
            (0x00020002, "UI", kind),
            (0x00020003, "UI", instance),
            (0x00020010, "UI", EXPLICIT),
            (0x00020012, "UI", uid(1)),
        ]
    )
    given = [(0x00080016, "UI", kind), (0x00080018, "UI", instance), *elements]
    body = b"".join(element(*one) for one in sorted(given, key=lambda one: one[0]))
    size = element(0x00020000, "UL", len(meta))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + size + meta + body)
    return path


def a_series(
    folder: Path,
    voxels: np.ndarray,
    positions: Any,
    *,
    axes: Any = (1, 0, 0, 0, 1, 0),
    spacing: Any = (1.0, 1.0),
    number: int = 1,
    description: str = "Head",
    rescale: Any = None,
) -> Path:
    """Write slices, shape (K, J, I) of whole numbers, at LPS positions; spacing is row, column."""
    for index, (slice_, place) in enumerate(zip(voxels, positions, strict=True)):
        slope, intercept = (1, 0) if rescale is None else rescale[index]
        elements = [
            *_common(slice_.shape, number, description, index),
            (0x00200032, "DS", list(place)),
            (0x00200037, "DS", list(axes)),
            (0x00280030, "DS", list(spacing)),
            (0x00281052, "DS", f"{intercept}"),
            (0x00281053, "DS", f"{slope}"),
            (0x7FE00010, "OW", slice_.astype("<i2").tobytes()),
        ]
        # The names say nothing about the order.
        name = f"{number}_{(index * 7919) % 1009:04d}.dcm"
        write(folder / name, elements, CT, uid(2, number, index + 1))
    return folder


def frames(path: Path, voxels: np.ndarray, positions: Any, spacing: Any = (1.0, 1.0)) -> Path:
    """Write one enhanced CT file whose frames are at LPS positions."""
    shared = [
        # Orientation, pixel measures, and the way from stored numbers to values.
        element(0x00209116, "SQ", [[element(0x00200037, "DS", [1, 0, 0, 0, 1, 0])]]),
        element(
            0x00289110,
            "SQ",
            [[element(0x00180050, "DS", "1"), element(0x00280030, "DS", list(spacing))]],
        ),
        element(
            0x00289145,
            "SQ",
            [
                [
                    element(0x00281052, "DS", "-1000"),
                    element(0x00281053, "DS", "1"),
                    element(0x00281054, "LO", "HU"),
                ]
            ],
        ),
    ]
    each = [
        [element(0x00209113, "SQ", [[element(0x00200032, "DS", list(place))]])]
        for place in positions
    ]
    elements = [
        *_common(voxels.shape[1:], 1, "Enhanced", 0),
        (0x00280008, "IS", str(len(voxels))),
        (0x52009229, "SQ", [shared]),
        (0x52009230, "SQ", each),
        (0x7FE00010, "OW", voxels.astype("<i2").tobytes()),
    ]
    return write(path, elements, ENHANCED_CT, uid(3, 1))


def _common(shape: Any, number: int, description: str, index: int) -> list[tuple[int, str, Any]]:
    return [
        (0x00080060, "CS", "CT"),
        (0x0008103E, "LO", description),
        (0x00100010, "PN", "Nobody"),
        (0x00100020, "LO", "1"),
        (0x0020000D, "UI", uid(4)),
        (0x0020000E, "UI", uid(5, number)),
        (0x00200011, "IS", str(number)),
        (0x00200013, "IS", str(index + 1)),
        (0x00200052, "UI", uid(6)),
        (0x00280002, "US", 1),
        (0x00280004, "CS", "MONOCHROME2"),
        (0x00280010, "US", shape[0]),
        (0x00280011, "US", shape[1]),
        (0x00280100, "US", 16),
        (0x00280101, "US", 16),
        (0x00280102, "US", 15),
        (0x00280103, "US", 1),
    ]
