"""Convolution, transposed convolution and maximum pooling in a box of their output.

With kernel k, stride s, padding p and dilation d, output voxel o of a convolution or pooling reads
the input voxels s o - p + d t, t = 0 .. k - 1; of a transposed convolution, input voxel i reaches
the output voxels s i - p + d t.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch.nn import functional

from .local_rules import Operation, Read, Rule, Value
from .spans import Spans, full, shape_of

_aten = torch.ops.aten
#: Memory for what an operation on a slab needs.
_SLAB_BYTES = 8 * 2**20

__all__ = ["Convolution", "MaxPooling", "Transposed", "padded_arguments", "three"]


class _Sliding(Rule):
    """A kernel of `size` voxels that moves by `stride`: convolution and pooling."""

    def __init__(
        self,
        operation: Operation,
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        super().__init__(operation)
        self.axes = tuple(zip(three(stride), three(padding), three(dilation), size, strict=True))

    def asked(self, spans: Spans) -> Spans:
        """Voxels under the kernel, those in the padding included."""
        return tuple(
            (s * low - p, s * (high - 1) - p + d * (k - 1) + 1)
            for (low, high), (s, p, d, k) in zip(spans, self.axes, strict=True)
        )

    def reads(self, value: Value, spans: Spans) -> Spans:
        """Voxels under the kernel; at least one, where it lies in the padding."""
        return _clipped(self.asked(spans), value.shape)

    def reaches(self, value: Value, spans: Spans) -> Spans:  # noqa: ARG002 - others look at it
        """Where the kernel lies over a changed voxel."""
        found = tuple(
            (-((d * (k - 1) - low - p) // s), (high - 1 + p) // s + 1)
            for (low, high), (s, p, d, k) in zip(spans, self.axes, strict=True)
        )
        return tuple(
            (max(low, 0), min(high, size))
            for (low, high), size in zip(found, self.shape[2:], strict=True)
        )


class Convolution(_Sliding):
    """With zero padding."""

    def __init__(self, operation: Operation) -> None:
        _, weight, _, stride, padding, dilation, *_ = operation.arguments
        super().__init__(operation, weight.shape[2:], stride, padding, dilation)

    def compute(self, read: Read, spans: Spans) -> Any:
        """Convolve what lies under the kernel; the padding is read as zeros."""
        value, weight, bias, stride, padding, dilation, *rest = self.operation.arguments
        wide = max(prod(stride) * _blocked(weight.shape[1]), _blocked(weight.shape[0]))
        slabs = _slabs(spans, wide, weight.device)
        if len(slabs) > 1:
            return torch.cat([self.compute(read, slab) for slab in slabs], dim=2)
        if spans == full(self.shape):
            part = read(value, full(value.shape))
            return self.operation.function(part, weight, bias, stride, padding, dilation, *rest)
        part = read(value, self.asked(spans))
        if _onednn_serves(part, weight):
            return _aten.mkldnn_convolution(
                part, weight, bias, [0, 0, 0], stride, dilation, rest[-1]
            )
        return self.operation.function(part, weight, bias, stride, [0, 0, 0], dilation, *rest)

    def per_voxel(self) -> float:
        """Kernel times input channels of a group, for each output channel."""
        weight = self.operation.arguments[1]
        return float(weight.numel())


class Transposed(Rule):
    """Transposed convolution."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        _, weight, _, stride, padding, dilation, *_ = operation.arguments
        self.axes = tuple(
            zip(three(stride), three(padding), three(dilation), weight.shape[2:], strict=True)
        )

    def reads(self, value: Value, spans: Spans) -> Spans:
        """Voxels whose kernel reaches into the box, or begins before it where none does."""
        found = tuple(
            (min(-((d * (k - 1) - low - p) // s), (low + p) // s), (high - 1 + p) // s + 1)
            for (low, high), (s, p, d, k) in zip(spans, self.axes, strict=True)
        )
        return _clipped(found, value.shape)

    def reaches(self, value: Value, spans: Spans) -> Spans:  # noqa: ARG002 - others look at it
        """Voxels under the kernels of changed voxels."""
        found = tuple(
            (s * low - p, s * (high - 1) - p + d * (k - 1) + 1)
            for (low, high), (s, p, d, k) in zip(spans, self.axes, strict=True)
        )
        return tuple(
            (max(low, 0), min(high, size))
            for (low, high), size in zip(found, self.shape[2:], strict=True)
        )

    def compute(self, read: Read, spans: Spans) -> Any:
        """Spread the input voxels that reach the box, and cut the box out."""
        value, weight, bias, stride, padding, dilation, transposed, extra, groups = (
            self.operation.arguments
        )
        slabs = _slabs(spans, weight[0].numel() // prod(stride), weight.device)
        if len(slabs) > 1:
            return torch.cat([self.compute(read, slab) for slab in slabs], dim=2)
        if spans == full(self.shape):
            part = read(value, full(value.shape))
            return self.operation.function(
                part, weight, bias, stride, padding, dilation, transposed, extra, groups
            )
        source = self.reads(value, spans)
        # What lies before the box is cut off by padding where that is possible: it saves a copy.
        before = [
            low - (s * first - p)
            for (low, _), (first, _), (s, p, *_) in zip(spans, source, self.axes, strict=True)
        ]
        over = [
            s * (last - 1) - p + d * (k - 1) + 1 - high
            for (_, high), (_, last), (s, p, d, k) in zip(spans, source, self.axes, strict=True)
        ]
        cut = [
            min(one, max(other, 0) + s - 1)
            for one, other, (s, *_) in zip(before, over, self.axes, strict=True)
        ]
        more = [max(0, one - other) for one, other in zip(cut, over, strict=True)]
        result = self.operation.function(
            read(value, source), weight, bias, stride, cut, dilation, True, more, groups
        )
        inner = [
            slice(one - done, one - done + high - low)
            for one, done, (low, high) in zip(before, cut, spans, strict=True)
        ]
        return result[(slice(None), slice(None), *inner)]

    def per_voxel(self) -> float:
        """Kernel voxels that fall on one output voxel, times the channels."""
        weight = self.operation.arguments[1]
        return float(weight.numel()) / prod(axis[0] for axis in self.axes)


class MaxPooling(_Sliding):
    """Maximum under the kernel; the padding never wins."""

    def __init__(self, operation: Operation) -> None:
        _, size, stride, padding, dilation, *_ = padded_arguments(operation, [[], 0, 1, False], 2)
        super().__init__(
            operation, three(size), three(stride or size), three(padding), three(dilation)
        )

    def compute(self, read: Read, spans: Spans) -> Any:
        """Pool what lies under the kernel."""
        (value,) = self.operation.inputs
        strides, _, dilations, sizes = zip(*self.axes, strict=True)
        part = read(value, self.asked(spans), fill=-torch.inf)
        return (functional.max_pool3d(part, sizes, strides, 0, dilations), None)

    def per_voxel(self) -> float:
        """Comparisons."""
        return float(self.shape[1] * prod(axis[3] for axis in self.axes))


def padded_arguments(operation: Operation, defaults: list[Any], required: int) -> list[Any]:
    """All positional arguments; the first `required` have no default."""
    given = list(operation.arguments)
    return given + defaults[len(given) - required :]


def three(value: Any) -> tuple[int, ...]:
    """One number an axis, of one for all or one each."""
    values = [value] * 3 if isinstance(value, int) else list(value)
    return tuple(values * 3 if len(values) == 1 else values)


def _clipped(spans: Spans, shape: Sequence[int]) -> Spans:
    """A box inside the tensor; at least one voxel."""
    inside = []
    for (low, high), size in zip(spans, shape[2:], strict=True):
        low = min(max(low, 0), size - 1)
        inside.append((low, max(min(high, size), low + 1)))
    return tuple(inside)


def _onednn_serves(part: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN can be asked for a convolution.

    For an input with B C I J up to 20480 PyTorch takes its own convolution instead (torch 2.13,
    ``ConvParams::use_mkldnn``), which takes 3 to 16 times as long (16 channels, 9^3 to 33^3) and is
    not the one that the whole pass took.
    """
    return (
        part.device.type == "cpu"
        and part.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _slabs(spans: Spans, numbers: int, device: torch.device) -> list[Spans]:
    """A box in slabs along I that each need little memory.

    On a CPU, memory beyond 32 MB comes fresh from the system for each operation and is cleared page
    by page (glibc's largest ``M_MMAP_THRESHOLD``): a convolution of 4 channels took 37 ms on 96^3,
    but 13 ms in 8 slabs.

    Parameters
    ----------
    spans : Spans
    numbers : int
        That a voxel needs.
    device : torch.device
    """
    (low, high), *others = spans
    size = 4 * numbers * prod(shape_of(spans))
    count = min(high - low, -(-size // _SLAB_BYTES)) if device.type == "cpu" else 1
    if count <= 1:
        return [spans]
    edges = [low + (high - low) * step // count for step in range(count + 1)]
    return [((first, last), *others) for first, last in pairwise(edges)]


def _blocked(channels: int) -> int:
    """Channels as oneDNN stores them, in blocks of 16."""
    return -(-channels // 16) * 16
