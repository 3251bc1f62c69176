"""The part of the fused output that the score looks at.

A score needs the output inside its region only: so only the windows that reach the region count,
and of their outputs only what lies in the region's bounding box is kept and fused. Windows are
summed in the same order as for the whole image, so the score is the same number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..target import FrozenTarget
from .engine import Engine
from .incremental.spans import where_true

__all__ = ["RegionOutput", "overlap"]

Box = tuple[slice, ...]


def overlap(one: Box, other: Box) -> Box | None:
    """Common part of two boxes, or None."""
    common = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return common if all(side.start < side.stop for side in common) else None


class RegionOutput:
    """Windows, box and target of an engine's region, which is frozen here.

    Attributes
    ----------
    windows : tuple of boxes
        On the padded volume: those that reach the region.
    target : FrozenTarget
        Its mask is cut to the box, so that it takes what :meth:`fused` gives.
    shape : (I, J, K) or None
        Shape of the box; None for outputs without voxels.
    """

    def __init__(self, engine: Engine) -> None:
        frozen = engine.frozen
        self.plan = engine.plan
        self.target: FrozenTarget = frozen
        self.box: Box | None = None
        if frozen.mask is not None:
            found = where_true(frozen.mask)
            assert found is not None  # noqa: S101 - an empty region is refused when it is frozen
            inside = tuple(slice(low, high) for low, high in found)
            self.box = self.padded(inside)
            self.target = replace(frozen, mask=frozen.mask[inside])
        self.windows = tuple(window for window in self.plan.windows if self._reaches(window))
        self.shape = (
            None if self.box is None else tuple(side.stop - side.start for side in self.box)
        )

    def padded(self, box: Box) -> Box:
        """A box of the volume on the padded volume."""
        return tuple(
            slice(side.start + pair[0], side.stop + pair[0])
            for side, pair in zip(box, self.plan.padding, strict=True)
        )

    def cut(self, window: Box, output: torch.Tensor) -> torch.Tensor:
        """What a window's output, (B, O, i, j, k), has in the box, weighted for the fusion."""
        if self.box is None:
            return output
        inner, _ = self._places(window)
        importance = self.plan.importance
        # A window that is the whole volume has a single weight.
        weight = importance[inner] if importance.ndim else importance
        return output[(slice(None), slice(None), *inner)] * weight

    def add(self, total: torch.Tensor | None, window: Box, part: torch.Tensor) -> torch.Tensor:
        """Add what :meth:`cut` gave to a running sum, which starts as None."""
        if self.box is None:
            return part
        if total is None:
            assert self.shape is not None  # noqa: S101 - there is a box
            total = part.new_zeros((*part.shape[:2], *self.shape))
        _, outer = self._places(window)
        total[(slice(None), slice(None), *outer)] += part
        return total

    def fused(self, parts: Iterable[tuple[Box, torch.Tensor]]) -> torch.Tensor:
        """Fused output in the box, shape (B, O, I, J, K), of the cut outputs of all windows."""
        total: torch.Tensor | None = None
        for window, part in parts:
            total = self.add(total, window, part)
        assert total is not None  # noqa: S101 - a region is reached by at least one window
        return self.normalised(total)

    def normalised(self, total: torch.Tensor) -> torch.Tensor:
        """A finished running sum as the fused output."""
        return total if self.box is None else total / self.plan.weight_sum[self.box]

    def _reaches(self, window: Box) -> bool:
        return self.box is None or overlap(window, self.box) is not None

    def _places(self, window: Box) -> tuple[Box, Box]:
        """Common part of a window and the box: inside the window, and inside the box."""
        assert self.box is not None  # noqa: S101 - callers have looked
        common = overlap(window, self.box)
        assert common is not None  # noqa: S101 - only windows that reach the region are used
        return _relative(common, window), _relative(common, self.box)


def _relative(box: Box, start: Box) -> Box:
    return tuple(
        slice(side.start - zero.start, side.stop - zero.start)
        for side, zero in zip(box, start, strict=True)
    )
