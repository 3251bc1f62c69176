"""Boxes of voxels as plain numbers: one (first, behind the last) pair an axis.

A tensor without voxels has the empty tuple: it changes, and is read, as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

__all__ = ["Spans", "common", "empty", "full", "holds", "hull", "shape_of", "slices", "within"]

Spans = tuple[tuple[int, int], ...]


def full(shape: Sequence[int]) -> Spans:
    """All of a tensor (1, C, i, j, k); () for a tensor without voxels."""
    return tuple((0, int(size)) for size in shape[2:]) if len(shape) == 5 else ()


def common(one: Spans, other: Spans) -> Spans:
    """What two boxes share; check it with :func:`empty`."""
    return tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one, other, strict=True))


def empty(spans: Spans) -> bool:
    """Whether a box holds no voxel; the whole of a tensor without voxels is not empty."""
    return any(low >= high for low, high in spans)


def hull(boxes: Iterable[Spans]) -> Spans | None:
    """Smallest box that holds all of them; None of none."""
    found: Spans | None = None
    for box in boxes:
        found = (
            box
            if found is None
            else tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(found, box, strict=True))
        )
    return found


def holds(outer: Spans, inner: Spans) -> bool:
    """Whether `inner` lies in `outer`."""
    return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(outer, inner, strict=True))


def shape_of(spans: Spans) -> tuple[int, ...]:
    """Voxels along each axis."""
    return tuple(high - low for low, high in spans)


def within(spans: Spans, start: Spans) -> tuple[slice, ...]:
    """Index of a box (1, C, i, j, k) in a tensor that begins where `start` begins."""
    if not spans:
        return ()
    inner = (slice(a[0] - b[0], a[1] - b[0]) for a, b in zip(spans, start, strict=True))
    return (slice(None), slice(None), *inner)


def slices(spans: Spans) -> tuple[slice, ...]:
    """The box as slices, one an axis."""
    return tuple(slice(low, high) for low, high in spans)


def where_true(found: torch.Tensor) -> Spans | None:
    """Smallest box that holds the True voxels of (i, j, k); None without any."""
    spans = []
    for axis in range(found.ndim):
        others = [other for other in range(found.ndim) if other != axis]
        line = found.any(dim=others[0]) if len(others) == 1 else found.amax(dim=others)
        places = line.nonzero()
        if len(places) == 0:
            return None
        spans.append((int(places[0]), int(places[-1]) + 1))
    return tuple(spans)
