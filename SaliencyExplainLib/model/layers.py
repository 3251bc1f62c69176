"""The layers of a network: names, output shapes, and where their voxels really lie.

The network is run once on tensors without data (shapes only, no computing), while every convolution, pooling,
up-sampling, crop and pad is followed. So the grid of a layer follows from strides, padding and kernels, not from a guess:
with stride 2 and padding 1 a feature voxel i at the bottom of a 4-level U-Net sits at input voxel 8 i, while resizing its
map to the input's size would put it 3.5 voxels away along each axis.

Grid rules, per axis, with input grid (origin o, spacing s) in voxels of the network's input::

    convolution, pooling      o + s (d (k - 1) / 2 - p),   s t                  kernel k, stride t, padding p, dilation d
    transposed convolution    o + s (p - d (k - 1) / 2) / t,   s / t
    resize from n to m        o + s (n / m - 1) / 2,   s n / m                  (corners aligned: o, s (n - 1) / (m - 1))
    crop at a with step b     o + s a,   s b;    pad by a: o - s a
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ModelError

__all__ = ["Grid", "LayerInfo", "trace_layers"]

_aten = torch.ops.aten
_POOLS = (_aten.max_pool3d_with_indices, _aten.avg_pool3d, _aten.max_pool3d)
_RESIZES = (_aten.upsample_trilinear3d, _aten.upsample_nearest3d, _aten._upsample_nearest_exact3d)
_PADS = (_aten.constant_pad_nd, _aten.replication_pad3d, _aten.reflection_pad3d)
_REORDERED = (_aten.permute, _aten.transpose, _aten.roll, _aten.t, _aten.movedim)
_RESHAPED = (_aten.view, _aten._unsafe_view, _aten.reshape)


@dataclass(frozen=True)
class Grid:
    """Centre of voxel (0, 0, 0) and distance of neighbours along i, j, k, in voxels of the network's input."""

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    exact: bool = True

    def affine(self, network_affine: Any) -> np.ndarray:
        """IJK-to-RAS matrix of the layer's voxels, shape (4, 4), from that of the network's input."""
        local = np.eye(4)
        local[:3, :3] = np.diag(self.spacing)
        local[:3, 3] = self.origin
        return np.asarray(network_affine, dtype=np.float64) @ local


@dataclass(frozen=True)
class LayerInfo:
    """One module as it ran.

    Attributes
    ----------
    name, kind : str
        Qualified module name and class name.
    shape : (C, i, j, k)
        Output of its last call.
    grid : Grid
        Where the output's voxels lie.
    feeds_instance_norm : bool
        Its output goes straight into an instance normalisation, where the gradient has zero mean: Grad-CAM weights
        are zero there in theory and rounding noise in practice.
    calls : int
        How often it ran in one forward pass.
    leaf : bool
        Whether it has no sub-modules.
    activation : bool
        Whether it is a nonlinearity (its type says so).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: Grid
    feeds_instance_norm: bool
    calls: int
    leaf: bool
    activation: bool


def trace_layers(
    network: torch.nn.Module, shape: Sequence[int], device: Any = "cpu"
) -> list[LayerInfo]:
    """List every module that gives a volume of features, in the order in which they finish.

    Parameters
    ----------
    network : torch.nn.Module
        Left as it is: a copy without data is run, or, where it cannot be copied, the network itself in eval mode.
    shape : (C, I, J, K)
        Shape of the network's input.
    device : torch.device
        Where the weights lie.

    Raises
    ------
    ModelError
        If the network does not run on that shape.
    """
    try:
        return _trace_without_data(network, shape, device)
    except Exception:  # noqa: BLE001 - data-dependent code fails in many ways without data; the real run decides
        pass
    was_training = network.training
    try:
        with torch.no_grad():
            return _trace(network.eval(), torch.zeros((1, *shape), device=device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"The network does not run on an input of shape {tuple(shape)} (C, I, J, K): {str(error).splitlines()[0]}."
        ) from error
    finally:
        network.train(was_training)


def _trace_without_data(
    network: torch.nn.Module, shape: Sequence[int], device: Any
) -> list[LayerInfo]:
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        with FakeCopyMode(fake):
            twin = copy.deepcopy(network).eval()
        return _trace(twin, torch.empty((1, *shape), device=device))


def _trace(network: torch.nn.Module, volume: torch.Tensor) -> list[LayerInfo]:
    follower = _Follower(volume)
    seen: dict[str, tuple[str, torch.nn.Module, torch.Tensor, int]] = {}

    def note(name: str, module: torch.nn.Module, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 5:
            calls = seen.pop(name)[3] + 1 if name in seen else 1
            seen[name] = (type(module).__name__, module, output, calls)

    with ExitStack() as attached:
        for name, module in network.named_modules():
            if name:
                hook = module.register_forward_hook(
                    lambda m, _i, out, name=name: note(name, m, out)
                )
                attached.callback(hook.remove)
        attached.enter_context(follower)
        network(volume)
    return [
        LayerInfo(
            name=name,
            kind=kind,
            shape=tuple(output.shape[1:]),
            grid=follower.grid_of(output),
            feeds_instance_norm=follower.root(output) in follower.normalised,
            calls=calls,
            leaf=next(module.children(), None) is None,
            activation=type(module).__module__.startswith("torch.nn.modules.activation")
            or (
                kind in ("MemoryEfficientSwish", "Swish", "Mish")
                and "blocks" in type(module).__module__
            ),
        )
        for name, (kind, module, output, calls) in seen.items()
        if follower.plausible(output)
    ]


class _Follower(TorchDispatchMode):
    """Watches every tensor operation and keeps the grid of each volume.

    Tensors are kept alive for the length of the trace, so that an ``id`` means one tensor.
    """

    def __init__(self, volume: torch.Tensor) -> None:
        super().__init__()
        self.start = volume
        self.grids: dict[int, Grid] = {id(volume): Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
        self.roots: dict[int, int] = {}
        self.normalised: set[int] = set()
        self.alive: list[torch.Tensor] = [volume]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        first = next(_tensors(args), None)
        if first is not None:
            self._note_norm(packet, args, first)
            for output in _tensors((result,)):
                self.alive.append(output)
                if packet in _RESHAPED and output.numel() == first.numel():
                    self.roots[id(output)] = self.root(first)
                grid = self._grid(packet, args, kwargs or {}, first, output)
                if grid is not None and id(output) not in self.grids:
                    self.grids[id(output)] = grid
        return result

    def root(self, tensor: torch.Tensor) -> int:
        """Identity of the tensor that this one is a view of."""
        return self.roots.get(id(tensor), id(tensor))

    def grid_of(self, tensor: torch.Tensor) -> Grid:
        """Grid of a volume; spread evenly over the input, and marked inexact, where it could not be followed."""
        known = self.grids.get(id(tensor))
        if known is not None:
            return known
        ratios = [
            full / part for full, part in zip(self.start.shape[2:], tensor.shape[2:], strict=True)
        ]
        return Grid(_triple((ratio - 1) / 2 for ratio in ratios), _triple(ratios), exact=False)

    def plausible(self, tensor: torch.Tensor) -> bool:
        """Whether a volume was followed, or at least divides the input evenly (channels-last features do not)."""
        sizes = list(zip(self.start.shape[2:], tensor.shape[2:], strict=True))
        return id(tensor) in self.grids or all(full % part == 0 for full, part in sizes)

    def _note_norm(self, packet: Any, args: Any, first: torch.Tensor) -> None:
        """Instance normalisation arrives as batch norm in training mode on a view, or as group norm of single channels."""
        if (packet is _aten.native_batch_norm and args[5]) or (
            packet is _aten.native_group_norm and args[6] == args[4]
        ):
            self.normalised.add(self.root(first))

    def _grid(
        self, packet: Any, args: Any, kwargs: Any, first: torch.Tensor, output: torch.Tensor
    ) -> Grid | None:
        if output.ndim != 5 or packet in _REORDERED:
            return None
        grid = self.grids.get(id(first))
        if packet is _aten.convolution and grid is not None:
            kernel = args[1].shape[2:]
            stride, padding, dilation, transposed = args[3:7]
            return _convolved(
                grid, kernel, _three(stride), _three(padding), _three(dilation), transposed
            )
        if packet in _POOLS and grid is not None:
            kernel = _three(args[1])
            stride = _three(args[2]) if len(args) > 2 and args[2] else kernel
            padding = _three(args[3]) if len(args) > 3 else (0, 0, 0)
            dilation = (
                _three(args[4]) if packet is not _aten.avg_pool3d and len(args) > 4 else (1, 1, 1)
            )
            return _convolved(grid, kernel, stride, padding, dilation, False)
        if packet in _RESIZES and grid is not None:
            aligned = packet is _aten.upsample_trilinear3d and bool(
                kwargs.get("align_corners", args[2])
            )
            return _resized(grid, first.shape[2:], output.shape[2:], aligned)
        if packet is _aten.slice and grid is not None:
            return _sliced(grid, args, first)
        if packet in _PADS and grid is not None:
            before = [*args[1][-2::-2], 0, 0, 0][:3] if len(args[1]) >= 6 else [0, 0, 0]
            return _shifted(grid, [-amount for amount in before])
        for tensor in _tensors(args):
            if (
                tensor.ndim == 5
                and tensor.shape[2:] == output.shape[2:]
                and id(tensor) in self.grids
            ):
                return self.grids[id(tensor)]
        return None


def _convolved(
    grid: Grid, kernel: Any, stride: Any, padding: Any, dilation: Any, transposed: bool
) -> Grid:
    reach = [d * (k - 1) / 2 - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if transposed:
        origin = [
            o - s * r / t
            for o, s, r, t in zip(grid.origin, grid.spacing, reach, stride, strict=True)
        ]
        return Grid(
            _triple(origin),
            _triple(s / t for s, t in zip(grid.spacing, stride, strict=True)),
            grid.exact,
        )
    spacing = _triple(s * t for s, t in zip(grid.spacing, stride, strict=True))
    return Grid(_shifted(grid, reach).origin, spacing, grid.exact)


def _resized(grid: Grid, before: Any, after: Any, aligned: bool) -> Grid:
    if aligned:
        spacing = [
            s * (n - 1) / max(m - 1, 1) for s, n, m in zip(grid.spacing, before, after, strict=True)
        ]
        return Grid(grid.origin, _triple(spacing), grid.exact)
    ratios = [n / m for n, m in zip(before, after, strict=True)]
    shifted = _shifted(grid, [(ratio - 1) / 2 for ratio in ratios])
    return Grid(
        shifted.origin,
        _triple(s * r for s, r in zip(grid.spacing, ratios, strict=True)),
        grid.exact,
    )


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
    return tuple(values * 3 if len(values) == 1 else values)  # type: ignore[return-value]


def _triple(values: Any) -> tuple[float, float, float]:
    one, two, three = (float(value) for value in values)
    return one, two, three


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
