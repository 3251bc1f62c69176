"""Move maps between a layer's grid and the network's, where the layer's voxels really lie.

Linear along each axis in turn (so trilinear), constant beyond the outermost voxel centres.
"""

from __future__ import annotations

import torch

from ..model import Grid

__all__ = ["at_layer_voxels", "axis_weights", "on_network_grid"]


def axis_weights(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Weights, shape (len(positions), size), that read a line of samples between its points."""
    clamped = positions.double().clamp(0, size - 1)
    low = clamped.floor().clamp(max=max(size - 2, 0)).long()
    part = clamped - low
    weights = torch.zeros(len(positions), size, dtype=torch.float64)
    rows = torch.arange(len(positions))
    weights[rows, low] += 1 - part
    weights[rows, (low + 1).clamp(max=size - 1)] += part
    return weights


def on_network_grid(map_: torch.Tensor, grid: Grid, shape: tuple[int, ...]) -> torch.Tensor:
    """Interpolate a layer's map at every voxel of the network's input.

    Parameters
    ----------
    map_ : Tensor, shape (C, i, j, k)
    grid : Grid
        Where its voxels lie.
    shape : (I, J, K)
        The network's input.

    Returns
    -------
    Tensor, shape (C, I, J, K)
    """
    for axis in range(3):
        positions = (torch.arange(shape[axis]) - grid.origin[axis]) / grid.spacing[axis]
        map_ = _read(map_, positions, axis + 1)
    return map_


def at_layer_voxels(volume: torch.Tensor, grid: Grid, shape: tuple[int, ...]) -> torch.Tensor:
    """Read a volume (C, I, J, K) at the centres of a layer's voxels; shape (C, i, j, k)."""
    for axis in range(3):
        positions = grid.origin[axis] + grid.spacing[axis] * torch.arange(shape[axis])
        volume = _read(volume, positions, axis + 1)
    return volume


def _read(volume: torch.Tensor, positions: torch.Tensor, axis: int) -> torch.Tensor:
    if len(positions) == volume.shape[axis] and torch.equal(
        positions, torch.arange(len(positions), dtype=positions.dtype)
    ):
        return volume
    weights = axis_weights(positions, volume.shape[axis]).to(volume)
    read: torch.Tensor = torch.tensordot(volume, weights, dims=([axis], [1]))
    return read.movedim(-1, axis).contiguous()
