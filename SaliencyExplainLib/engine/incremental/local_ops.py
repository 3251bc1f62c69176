"""Which rule holds for an operation of a network; what is not known here depends on everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from .local_kernels import Convolution, MaxPooling, Transposed, padded_arguments, three
from .local_rules import Operation, Pointwise, Rule, Separable, Value, Whole

__all__ = ["rule_for"]

_aten = torch.ops.aten


def rule_for(operation: Operation) -> Rule:
    """The rule of an operation; :class:`Whole` where none is known to be right.

    That holds for arguments in a form that is not expected here, too.
    """
    try:
        return _known_rule(operation) or Whole(operation)
    except (IndexError, TypeError, ValueError, RuntimeError):
        return Whole(operation)


def _known_rule(operation: Operation) -> Rule | None:
    shape, function = operation.shape, operation.function
    spatial = len(shape) == 5 and shape[0] == 1
    first = operation.arguments[0] if operation.arguments else None
    if not spatial or any(
        len(value.shape) == 5 and value.shape[0] != 1 for value in operation.inputs
    ):
        return None
    if isinstance(first, Value) and len(first.shape) == 5 and len(operation.inputs) == 1:
        found = _rule_of_one(operation, first, function.overloadpacket)
        if found is not None:
            return found
    if _is_pointwise(operation):
        packet = function.overloadpacket
        return Pointwise(operation, single=packet not in _SPLITS)
    return None


def _rule_of_one(operation: Operation, value: Value, packet: Any) -> Rule | None:
    """Operations with a neighbourhood: one input that changes, the rest are constants."""
    arguments = operation.arguments
    if packet is _aten.convolution and len(value.shape) == 5:
        return Transposed(operation) if arguments[6] else Convolution(operation)
    if packet is _aten.max_pool3d_with_indices:
        return MaxPooling(operation)
    if packet in _IDENTITIES and value.shape == operation.shape:
        return Pointwise(operation, identity=True)
    along = _axis_map(operation, packet)
    return None if along is None else Separable(operation, along)


_IDENTITIES = (
    _aten.view, _aten._unsafe_view, _aten.reshape, _aten.expand, _aten.alias, _aten.detach,
    _aten.lift_fresh, _aten.clone, _aten.contiguous,
)  # fmt: skip
_SPLITS = (_aten.split, _aten.split_with_sizes)
_EVERY_CHANNEL = (
    _aten._softmax, _aten._log_softmax, _aten.split, _aten.split_with_sizes, _aten.slice,
    _aten.index_select,
)  # fmt: skip
#: Pointwise, though torch 2.13 does not say so.
_UNTAGGED = (_aten._prelu_kernel, _aten.hardswish, _aten.log_sigmoid_forward, _aten._to_copy)
_REDUCTIONS = (_aten.mean, _aten.sum, _aten.amax, _aten.amin)


def _is_pointwise(operation: Operation) -> bool:
    packet, arguments = operation.function.overloadpacket, operation.arguments
    if torch.Tag.pointwise in operation.function.tags or packet in _UNTAGGED:
        operands: list[Value | torch.Tensor] = [*operation.inputs, *_constants(operation)]
        # Those with fewer axes would be cut along the wrong ones, unless they have one voxel.
        return all(len(one.shape) == 5 or prod(one.shape[-3:]) == 1 for one in operands)
    if packet is _aten.native_batch_norm:
        return not arguments[5] and len(operation.inputs) == 1
    if packet is _aten._native_batch_norm_legit_no_training:
        return len(operation.inputs) == 1
    if packet is _aten.cudnn_batch_norm or packet is _aten.miopen_batch_norm:
        return not arguments[5] and len(operation.inputs) == 1
    if packet is _aten.cat:
        parts = arguments[0]
        return _channel(_argument(operation, 1, "dim", 0)) and all(
            tuple(part.shape[2:]) == operation.shape[2:] for part in parts
        )
    if packet in _EVERY_CHANNEL:
        place = 2 if packet in _SPLITS else 1
        return _channel(_argument(operation, place, "dim", 0)) and len(operation.inputs) == 1
    if packet in _REDUCTIONS:
        axes = _argument(operation, 1, "dim", None)
        return isinstance(axes, list) and len(axes) == 1 and _channel(axes[0])
    if packet is _aten.repeat:
        return list(arguments[1])[2:] == [1, 1, 1]
    return False


def _axis_map(
    operation: Operation, packet: Any
) -> Callable[[int, torch.Tensor], torch.Tensor] | None:
    """The operation along one axis, of those that work along each axis alone."""
    arguments, shape = operation.arguments, operation.shape
    name = packet._qualified_op_name.removeprefix("aten::")
    if name == "upsample_trilinear3d" and operation.function is packet.default:
        return lambda axis, line: _aten.upsample_linear1d(
            line, [shape[2 + axis]], arguments[2], _scale(arguments, 3 + axis)
        )
    if name in ("upsample_nearest3d", "_upsample_nearest_exact3d") and (
        operation.function is packet.default
    ):
        single = getattr(_aten, name.replace("3d", "1d"))
        return lambda axis, line: single(line, [shape[2 + axis]], _scale(arguments, 2 + axis))
    if name == "avg_pool3d":
        _, size, stride, padding, ceil, counted, divisor = padded_arguments(
            operation, [[], 0, False, True, None], 2
        )
        if divisor is not None:
            return None
        stride = stride or size
        return lambda axis, line: functional.avg_pool1d(
            line, three(size)[axis], three(stride)[axis], three(padding)[axis], ceil, counted
        )
    if name == "_adaptive_avg_pool3d":
        return lambda axis, line: functional.adaptive_avg_pool1d(line, shape[2 + axis])
    if name in ("reflection_pad3d", "replication_pad3d"):
        mode = "reflect" if name.startswith("reflection") else "replicate"
        return lambda axis, line: functional.pad(line, _pair(arguments[1], axis), mode=mode)
    if name == "constant_pad_nd" and not _argument(operation, 2, "value", 0):
        amounts = list(arguments[1])
        if any(amounts[6:]):
            return None
        return lambda axis, line: functional.pad(line, _pair(amounts, axis))
    if name == "slice":
        dim = _argument(operation, 1, "dim", 0) % 5
        start, stop = _argument(operation, 2, "start", None), _argument(operation, 3, "end", None)
        step = _argument(operation, 4, "step", 1)
        if dim < 2:
            return None
        return lambda axis, line: line[..., start:stop:step] if axis == dim - 2 else line
    if name in ("flip",):
        axes = [dim % 5 for dim in arguments[1]]
        return (
            None
            if min(axes) < 2
            else lambda axis, line: line.flip(-1) if axis + 2 in axes else line
        )
    return None


def _argument(operation: Operation, place: int, name: str, default: Any) -> Any:
    if len(operation.arguments) > place:
        return operation.arguments[place]
    return operation.keywords.get(name, default)


def _scale(arguments: tuple[Any, ...], place: int) -> float | None:
    return arguments[place] if len(arguments) > place else None


def _pair(amounts: Sequence[int], axis: int) -> list[int]:
    """Padding before and after along an axis; torch lists the last axis first."""
    place = 2 * (2 - axis)
    return list(amounts[place : place + 2]) if len(amounts) > place else [0, 0]


def _constants(operation: Operation) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, found.append, (operation.arguments, operation.keywords))
    return found


def _channel(dim: int) -> bool:
    return dim % 5 == 1
