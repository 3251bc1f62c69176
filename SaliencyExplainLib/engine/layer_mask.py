"""The score of a network with one mask multiplied into the features of a layer, and its gradient.

The mask m lives on one grid of the volume, at the layer's spacing or coarser. Each window reads it
at its layer's voxels (trilinear), so that a place has the same value in all windows that see it::

    F'_k = B_k + m (F_k - B_k),      B what stands in for hidden features

S(m) and dS/dm come from the replayed tail of the network, window by window: each is pulled back
with its part of dS/dY and let go before the next. A score that is linear in the output Y takes one
sweep; another one needs the fused Y before.
"""

from __future__ import annotations

import math

import torch

from ..errors import ModelError
from ..image import spacing_mm
from ..model import Grid, LayerInfo
from .channels import LayerChanges
from .engine import Engine, network_errors
from .interpolate import axis_weights, on_network_grid
from .region import Box, overlap

__all__ = ["FILLS", "MaskedLayer"]

#: What stands in for hidden features: nothing, each channel's mean, or the features blurred.
FILLS = ("zero", "mean", "blurred")

#: Stand-ins of so many windows are kept, as their records are.
_KEPT_FILLS = 8


class MaskedLayer:
    """A layer whose features one mask of the volume lets through or hides.

    Parameters
    ----------
    engine : Engine
        Running; its target is frozen here.
    info : LayerInfo
        The layer, as it runs on a window.
    fill : str
        One of :data:`FILLS`.
    blur_mm : float
        Standard deviation of the Gaussian of "blurred", in mm.
    grid_mm : float
        Distance of the mask's points, in mm; less than the layer's gives the layer's.

    Attributes
    ----------
    shape : (i, j, k)
        Of the mask.
    grid : Grid
        Where the mask's points lie, in voxels of the padded volume.
    """

    def __init__(
        self, engine: Engine, info: LayerInfo, fill: str, blur_mm: float, grid_mm: float = 0.0
    ) -> None:
        self.engine = engine
        self.info = info
        self._changes = LayerChanges(engine, info.name)
        self._region = self._changes.region
        self._fill = fill
        self._voxel_mm = [float(step) for step in spacing_mm(engine.image.affine)]
        self._sigmas = [
            blur_mm / (abs(step) * mm)
            for step, mm in zip(info.grid.spacing, self._voxel_mm, strict=True)
        ]
        self.grid, self.shape = self._make_grid(grid_mm)
        self._fills: dict[int, torch.Tensor] = {}
        self._means: torch.Tensor | None = None
        self._smoothing: list[torch.Tensor] = []

    @property
    def exact(self) -> bool | None:
        """Whether the replay skipped what came before the layer; None before the first run."""
        return self._changes.exact

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of the mask's points along each axis."""
        return tuple(a * b for a, b in zip(self.grid.spacing, self._voxel_mm, strict=True))

    @property
    def windows(self) -> int:
        """Windows that reach the target's region."""
        return len(self._region.windows)

    @property
    def sweeps(self) -> int:
        """Window passes that one gradient takes."""
        windows = len(self._region.windows)
        return windows if windows == 1 or self._region.target.linear else 2 * windows

    def value(self, mask: torch.Tensor) -> float:
        """S for a mask of shape (1, i, j, k)."""
        with torch.no_grad():
            return float(self._region.target.value(self._fused(mask)))

    def value_and_gradient(self, mask: torch.Tensor) -> tuple[float, torch.Tensor]:
        """S and dS/d(mask) for a mask of shape (1, i, j, k)."""
        leaf = mask.detach().clone().requires_grad_()
        region = self._region
        if len(region.windows) == 1:
            with torch.enable_grad():
                value = region.target.value(self._fused(leaf))
            return float(value.detach()), self._pulled(value, leaf, None)
        total: torch.Tensor | None = None
        if region.target.linear:
            cotangent = self._linear_cotangent()
        else:
            with torch.no_grad():
                total = self._fused(leaf)
            cotangent = self._by_weight(region.target.cotangent(total))
        keep = total is None
        gradient = torch.zeros_like(leaf)
        for index, window in enumerate(region.windows):
            with torch.enable_grad():
                part = self._part(index, window, leaf)
            if keep:
                total = region.add(total, window, part.detach())
            gradient += self._pulled(part, leaf, self._cut(cotangent, window))
            del part
        assert total is not None  # noqa: S101 - a region is reached by a window
        fused = region.normalised(total) if keep else total
        return float(region.target.value(fused)), gradient

    def at_layer(self, mask: torch.Tensor, window: Box) -> torch.Tensor:
        """Read a mask at the layer's voxels in a window; shape (1, i, j, k)."""
        for axis, start in enumerate(side.start for side in window):
            steps = torch.arange(self.info.shape[axis + 1], dtype=torch.float64)
            places = start + self.info.grid.origin[axis] + self.info.grid.spacing[axis] * steps
            at = (places - self.grid.origin[axis]) / self.grid.spacing[axis]
            weights = axis_weights(at, mask.shape[axis + 1]).to(mask)
            mask = torch.tensordot(mask, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return mask

    def at_voxels(self, mask: torch.Tensor) -> torch.Tensor:
        """Read a mask at every voxel of the volume; shape (1, I, J, K)."""
        before = [pair[0] for pair in self.engine.plan.padding]
        one, two, three = (o - b for o, b in zip(self.grid.origin, before, strict=True))
        shape = tuple(self.engine.x.shape[2:])
        return on_network_grid(mask, Grid((one, two, three), self.grid.spacing), shape)

    def _make_grid(self, grid_mm: float) -> tuple[Grid, tuple[int, int, int]]:
        """Points at the layer's spacing, or `grid_mm`, over the layer's voxels of all windows."""
        origins, spacings, counts = [], [], []
        for axis in range(3):
            step, size = self.info.grid.spacing[axis], self.info.shape[axis + 1]
            first = self.info.grid.origin[axis]
            starts = [window[axis].start for window in self.engine.plan.windows]
            ends = sorted((first, first + step * (size - 1)))
            low, high = min(starts) + ends[0], max(starts) + ends[1]
            spacing = max(abs(step), grid_mm / self._voxel_mm[axis])
            origins.append(low)
            spacings.append(spacing)
            counts.append(math.ceil((high - low) / spacing - 1e-6) + 1)
        grid = Grid((origins[0], origins[1], origins[2]), (spacings[0], spacings[1], spacings[2]))
        return grid, (counts[0], counts[1], counts[2])

    def _fused(self, mask: torch.Tensor) -> torch.Tensor:
        region, total = self._region, None
        for index, window in enumerate(region.windows):
            total = region.add(total, window, self._part(index, window, mask))
            if not torch.is_grad_enabled():
                self.engine.progress.step("forward pass")
        assert total is not None  # noqa: S101 - a region is reached by a window
        return region.normalised(total)

    def _part(self, index: int, window: Box, mask: torch.Tensor) -> torch.Tensor:
        """What a window's output has in the region's box, weighted for the fusion."""
        self.engine.progress.check()
        record = self._changes.record(index)
        with torch.no_grad():
            fill = self._hidden(index, record.features)
        changed = fill + self.at_layer(mask, window)[None] * (record.features - fill)
        with self.engine.calling(record.features):
            output = record.run(changed)
        return self._region.cut(window, output.float())

    def _pulled(
        self, result: torch.Tensor, leaf: torch.Tensor, cotangent: torch.Tensor | None
    ) -> torch.Tensor:
        if not result.requires_grad:
            raise ModelError(
                f"The network's output does not depend on the layer {self.info.name!r} in a way "
                "that can be differentiated (does it run under no_grad, or round its output?). "
                "Choose another layer, or a perturbation method."
            )
        with network_errors(result):
            (gradient,) = torch.autograd.grad(result, leaf, cotangent, allow_unused=True)
        self.engine.progress.step("backward pass")
        return torch.zeros_like(leaf) if gradient is None else gradient

    def _linear_cotangent(self) -> torch.Tensor:
        """dS/d(sum of the windows' weighted outputs) in the box of a linear score."""
        region = self._region
        weights = region.target.weights()
        assert weights is not None  # noqa: S101 - outputs without voxels have a single window
        shape = (1, len(region.target.names), *weights.shape)
        return self._by_weight(region.target.linear_cotangent(shape, weights))

    def _by_weight(self, cotangent: torch.Tensor) -> torch.Tensor:
        box = self._region.box
        return cotangent if box is None else cotangent / self.engine.plan.weight_sum[box]

    def _cut(self, cotangent: torch.Tensor, window: Box) -> torch.Tensor:
        """The part of a cotangent in the box that a window covers."""
        box = self._region.box
        assert box is not None  # noqa: S101 - outputs without voxels have a single window
        common = overlap(window, box)
        assert common is not None  # noqa: S101 - only windows that reach the region are used
        place = tuple(
            slice(side.start - zero.start, side.stop - zero.start)
            for side, zero in zip(common, box, strict=True)
        )
        return cotangent[(slice(None), slice(None), *place)]

    def _hidden(self, index: int, features: torch.Tensor) -> torch.Tensor:
        """What stands in for a window's features where the mask hides them."""
        if self._fill == "zero":
            return features.new_zeros(())
        if self._fill == "mean":
            return self._channel_means()
        if index not in self._fills:
            blurred = self._blurred(features)
            if len(self._region.windows) > _KEPT_FILLS:
                return blurred
            self._fills[index] = blurred
        return self._fills[index]

    def _channel_means(self) -> torch.Tensor:
        """Mean of each channel over the windows that reach the region, shape (1, K, 1, 1, 1)."""
        if self._means is None:
            count = len(self._region.windows)
            means = [
                self._changes.record(index).features.mean((2, 3, 4), keepdim=True)
                for index in range(count)
            ]
            self._means = torch.stack(means).mean(0)
        return self._means

    def _blurred(self, features: torch.Tensor) -> torch.Tensor:
        if not self._smoothing:
            self._smoothing = [
                _gaussian(size, sigma).to(features)
                for size, sigma in zip(features.shape[2:], self._sigmas, strict=True)
            ]
        for axis, weights in enumerate(self._smoothing):
            features = torch.tensordot(features, weights, dims=([axis + 2], [1]))
            features = features.movedim(-1, axis + 2)
        return features.contiguous()


def _gaussian(size: int, sigma: float) -> torch.Tensor:
    """Weights (size, size) that blur a line, which goes on beyond its ends as it ends."""
    from scipy.ndimage import gaussian_filter1d

    points = torch.eye(size, dtype=torch.float64).numpy()
    return torch.from_numpy(gaussian_filter1d(points, sigma, axis=0, mode="nearest"))
