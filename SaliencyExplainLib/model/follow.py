"""Follow the voxels of a volume through the operations of a network.

Grid rules, per axis, with input grid (origin o, spacing s) in voxels of the network's input, kernel
k, stride t, padding p, dilation d::

    convolution, pooling      o + s (d (k - 1) / 2 - p),      s t
    transposed convolution    o + s (p - d (k - 1) / 2) / t,  s / t
    resize from n to m        o + s (n / m - 1) / 2,          s n / m
      with corners aligned    o,                              s (n - 1) / (m - 1)
    crop at a with step b     o + s a,                        s b
    pad by a in front         o - s a,                        s

Where paths of different grids meet (an up-sampled path and a skip), the features take the grid of
the path with the smaller receptive field: fine detail sets the place. SegResNet's last features
would otherwise lie 3.5 voxels before the voxels of the input that they stand on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Follower", "Grid", "Place", "moved", "spread_evenly", "tensors_in"]

_aten = torch.ops.aten
_POOLS = (_aten.max_pool3d_with_indices, _aten.avg_pool3d, _aten.max_pool3d)
_ADAPTIVE = (_aten._adaptive_avg_pool3d, _aten.adaptive_avg_pool3d, _aten.adaptive_max_pool3d)
_RESIZES = (_aten.upsample_trilinear3d, _aten.upsample_nearest3d, _aten._upsample_nearest_exact3d)
_PADS = (_aten.constant_pad_nd, _aten.replication_pad3d, _aten.reflection_pad3d)
_REORDERED = (_aten.permute, _aten.transpose, _aten.roll, _aten.t, _aten.movedim)
_RESHAPED = (_aten.view, _aten._unsafe_view, _aten.reshape)


@dataclass(frozen=True)
class Grid:
    """Centre of voxel (0, 0, 0) and distance of neighbours, in voxels of the network's input."""

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    exact: bool = True

    def affine(self, network_affine: Any) -> np.ndarray:
        """IJK-to-RAS matrix of the layer's voxels, (4, 4), from that of the network's input."""
        local = np.eye(4)
        local[:3, :3] = np.diag(self.spacing)
        local[:3, 3] = self.origin
        return np.asarray(network_affine, dtype=np.float64) @ local


@dataclass(frozen=True)
class Place:
    """Where a volume's voxels lie, and the receptive field of one of them, in input voxels."""

    grid: Grid
    field: float


def spread_evenly(volume: torch.Tensor, features: torch.Tensor) -> Grid:
    """Features spread evenly over the input, marked inexact: they could not be followed."""
    ratios = [full / part for full, part in zip(volume.shape[2:], features.shape[2:], strict=True)]
    return Grid(_triple((ratio - 1) / 2 for ratio in ratios), _triple(ratios), exact=False)


class Follower(TorchDispatchMode):
    """Watches every tensor operation and keeps the place of each volume.

    Tensors are kept alive for the length of the trace, so that an ``id`` means one tensor. What is
    written into in place is another state of it.

    Attributes
    ----------
    places : dict of int to Place
        By the identity of the tensor.
    normalised, used : set of (int, int)
        States that went into an instance normalisation, and into anything else.
    """

    def __init__(self, volume: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.places = {id(volume): Place(Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1.0)}
        self.roots: dict[int, int] = {}
        self.normalised: set[tuple[int, int]] = set()
        self.used: set[tuple[int, int]] = set()
        self.alive: list[torch.Tensor] = [volume]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [(tensor, self.state(tensor)) for tensor in tensors_in(args)]
        result = func(*args, **(kwargs or {}))
        outputs = list(tensors_in((result,)))
        if not before or not outputs:
            return result
        packet, first = func.overloadpacket, before[0][0]
        view = packet in _RESHAPED
        if _normalises_instances(packet, args):
            self.normalised.add(before[0][1])
        elif not view:
            self.used |= {state for _, state in before}
        for output in outputs:
            self.alive.append(output)
            if view and output is not first and output.numel() == first.numel():
                self.roots[id(output)] = self.state(first)[0]
            place = self._place(packet, args, first, output)
            if place is not None:
                self.places[id(output)] = place
        return result

    def state(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Identity of the tensor that this one is a view of, and how often it was written into."""
        return self.roots.get(id(tensor), id(tensor)), tensor._version

    def _place(
        self, packet: Any, args: Any, first: torch.Tensor, output: torch.Tensor
    ) -> Place | None:
        if output.ndim != 5 or packet in _REORDERED:
            return None
        known = self.places.get(id(first))
        found = None if known is None else moved(packet, args, known, first, output)
        if found is not None:
            return found
        met = [
            self.places[id(tensor)]
            for tensor in tensors_in(args)
            if id(tensor) in self.places and tensor.shape[2:] == output.shape[2:]
        ]
        if not met:
            return None
        finest = min(met, key=lambda place: place.field)
        return Place(finest.grid, max(place.field for place in met))


def _normalises_instances(packet: Any, args: Any) -> bool:
    """Whether this is an instance norm: batch norm in training mode on a view, or group norm."""
    return bool(
        (packet in (_aten.native_batch_norm, _aten.cudnn_batch_norm) and args[5])
        or (packet is _aten.native_group_norm and args[6] == args[4])
    )


def moved(
    packet: Any, args: Any, place: Place, first: torch.Tensor, output: torch.Tensor
) -> Place | None:
    """Place behind an operation that moves voxels; None for one that leaves them where they are."""
    grid, before, after = place.grid, first.shape[2:], output.shape[2:]
    if packet is _aten.convolution:
        kernel = args[1].shape[2:]
        stride, padding, dilation, transposed = args[3:7]
        sizes = (kernel, _three(stride), _three(padding), _three(dilation))
        return _convolved(place, *sizes, transposed)
    if packet in _POOLS:
        kernel = _three(args[1])
        stride = _three(args[2]) if len(args) > 2 and args[2] else kernel
        padding = _three(args[3]) if len(args) > 3 else (0, 0, 0)
        dilated = packet is not _aten.avg_pool3d and len(args) > 4
        dilation = _three(args[4]) if dilated else (1, 1, 1)
        return _convolved(place, kernel, stride, padding, dilation, False)
    if packet in _ADAPTIVE and all(n % m == 0 for n, m in zip(before, after, strict=True)):
        kernel = [n // m for n, m in zip(before, after, strict=True)]
        return _convolved(place, kernel, kernel, (0, 0, 0), (1, 1, 1), False)
    if packet in _RESIZES:
        aligned = packet is _aten.upsample_trilinear3d and bool(args[2])
        resized = _resized(grid, before, after, _scales(packet, args), aligned)
        return Place(resized, place.field + max(grid.spacing))
    if packet is _aten.slice:
        return Place(_sliced(grid, args, first), place.field)
    if packet in _PADS:
        front = [*args[1][::2], 0, 0, 0][:3]
        return Place(_shifted(grid, [-amount for amount in reversed(front)]), place.field)
    if packet is _aten.flip:
        return Place(_flipped(grid, args[1], first), place.field)
    return None


def _convolved(
    place: Place, kernel: Any, stride: Any, padding: Any, dilation: Any, transposed: bool
) -> Place:
    grid = place.grid
    reach = [d * (k - 1) / 2 - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    wider = max(s * d * (k - 1) for s, d, k in zip(grid.spacing, dilation, kernel, strict=True))
    if transposed:
        back = [-r / t for r, t in zip(reach, stride, strict=True)]
        spacing = [s / t for s, t in zip(grid.spacing, stride, strict=True)]
        placed = _shifted(grid, back)
    else:
        spacing = [s * t for s, t in zip(grid.spacing, stride, strict=True)]
        placed = _shifted(grid, reach)
    return Place(Grid(placed.origin, _triple(spacing), grid.exact), place.field + wider)


def _scales(packet: Any, args: Any) -> tuple[float | None, ...]:
    """Factors (i, j, k) that a resize was asked for by; None where it was asked for by size."""
    given = args[3:] if packet is _aten.upsample_trilinear3d else args[2:]
    return tuple(given) if len(given) == 3 else (None, None, None)


def _resized(grid: Grid, before: Any, after: Any, scales: Any, aligned: bool) -> Grid:
    if aligned:
        spacing = [
            s * (n - 1) / max(m - 1, 1) for s, n, m in zip(grid.spacing, before, after, strict=True)
        ]
        return Grid(grid.origin, _triple(spacing), grid.exact)
    # A factor is used as it is: 7 voxels by 1.5 become 10, spaced 1 / 1.5 and not 7 / 10.
    ratios = [
        1 / scale if scale else n / m for n, m, scale in zip(before, after, scales, strict=True)
    ]
    shifted = _shifted(grid, [(ratio - 1) / 2 for ratio in ratios])
    spacing = [s * r for s, r in zip(grid.spacing, ratios, strict=True)]
    return Grid(shifted.origin, _triple(spacing), grid.exact)


def _flipped(grid: Grid, axes: Any, tensor: torch.Tensor) -> Grid:
    flipped = {axis % tensor.ndim - 2 for axis in axes}
    last = [tensor.shape[axis + 2] - 1 if axis in flipped else 0 for axis in range(3)]
    spacing = [-s if axis in flipped else s for axis, s in enumerate(grid.spacing)]
    return Grid(_shifted(grid, last).origin, _triple(spacing), grid.exact)


def _sliced(grid: Grid, args: Any, tensor: torch.Tensor) -> Grid:
    axis = (args[1] if len(args) > 1 else 0) % tensor.ndim - 2
    if axis < 0:
        return grid
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    start = max(0, start + tensor.shape[axis + 2]) if start < 0 else start
    step = args[4] if len(args) > 4 else 1
    by, scale = [0.0] * 3, [1.0] * 3
    by[axis], scale[axis] = start, step
    shifted = _shifted(grid, by)
    return Grid(
        shifted.origin, _triple(s * f for s, f in zip(grid.spacing, scale, strict=True)), grid.exact
    )


def _shifted(grid: Grid, by: Sequence[float]) -> Grid:
    """The grid moved by (di, dj, dk) of its own voxels."""
    origin = _triple(o + s * d for o, s, d in zip(grid.origin, grid.spacing, by, strict=True))
    return Grid(origin, grid.spacing, grid.exact)


def _three(value: Any) -> tuple[Any, Any, Any]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return tuple(values * 3 if len(values) == 1 else values)


def _triple(values: Any) -> tuple[float, float, float]:
    one, two, three = (float(value) for value in values)
    return one, two, three


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dictionaries, in their order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())
