"""Record what a network does to one input, operation by operation.

What runs is recorded, whatever wrote it: modules, functions, TorchScript. Only operations that
depend on the input are kept; everything else they take is a constant. An operation that writes into
its argument is recorded as the one that does not, and its result takes the argument's name. What
cannot be repeated on other voxels is a reason to refuse the record: numbers read from tensors,
results whose shape depends on values, chance, writing into a part of a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from .local_ops import rule_for
from .local_rules import Operation, Value, Whole

__all__ = ["Tape"]

_aten = torch.ops.aten
_UNREPEATABLE = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
)


class Tape(TorchDispatchMode):
    """While active, records what depends on `x`.

    Parameters
    ----------
    x : Tensor, shape (1, C, I, J, K)
        The very tensor that the network is given.
    most_bytes : int
        Memory for what is kept; beyond it the record is refused.

    Attributes
    ----------
    operations : list of Operation
    start : Value
        The input.
    reason : str
        Why the record is of no use; "" if it is.
    kept : int
        Bytes of the tensors that are kept.
    """

    def __init__(self, x: torch.Tensor, most_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.operations: list[Operation] = []
        self.reason = ""
        self.kept = 0
        self._most_bytes = most_bytes
        self._values = WeakTensorKeyDictionary()
        self._overwritten = WeakTensorKeyDictionary()
        self._constants: list[tuple[torch.Tensor, int]] = []
        self._with_base: list[Value] = []
        self.start = Value(tuple(x.shape))
        self._values[x] = self.start

    def close(self, output: torch.Tensor) -> Value | None:
        """End the record: the value of the network's output, which is kept; None if refused.

        Only the first of several results is computed again by most rules; another one that was read
        is a reason to refuse.
        """
        value: Value | None = self._values.get(output)
        if value is None:
            self._refuse("its output does not follow from its input by tensor operations")
        elif any(
            other is not None and other.last_read >= 0
            for operation in self.operations
            if operation.rule.single
            for other in operation.outputs[1:]
        ):
            self._refuse("it uses the second result of an operation (indices of a pooling)")
        elif any(tensor._version != version for tensor, version in self._constants):
            self._refuse("it changes a tensor of its own while it runs")
        else:
            self._keep(value, output)
        self._values = WeakTensorKeyDictionary()
        self._overwritten = WeakTensorKeyDictionary()
        self._constants = []
        return None if self.reason else value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _tensors((args, kwargs))
        if any(tensor in self._overwritten for tensor in read):
            self._refuse("it reads a view of a tensor that was overwritten")
        if self.reason or not any(tensor in self._values for tensor in read):
            return func(*args, **kwargs)
        return self._recorded(func, args, kwargs)

    def _recorded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and note it, or the reason to refuse the record."""
        refused = any(tag in func.tags for tag in _UNREPEATABLE)
        if refused:
            self._refuse(f"it decides by values or by chance ({func})")
        written = self._written(func, args)
        if refused or (written is None and func._schema.is_mutable):
            return func(*args, **kwargs)
        if written is None:
            result = func(*args, **kwargs)
            self._add(func, args, kwargs, tree_flatten(result)[0])
            return result
        self._save(written)
        inputs = (written.clone(), *args[1:]) if written not in self._values else args
        function = getattr(getattr(_aten, func._schema.name[6:-1]), func._overloadname)
        self._add(function, inputs, kwargs, [written])
        return func(*args, **kwargs)

    def _written(self, func: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
        """The argument that the operation writes into; it must be the first one."""
        places = [
            place
            for place, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not places:
            return None
        name = func._schema.name.removeprefix("aten::")
        known = name.endswith("_") and hasattr(getattr(_aten, name[:-1], None), func._overloadname)
        if places != [0] or not known or not isinstance(args[0], torch.Tensor):
            self._refuse(f"it writes into a tensor in a way that cannot be repeated ({func})")
            return None
        written: torch.Tensor = args[0]
        if written not in self._values and written._is_view():
            self._refuse("it writes into a part of a tensor")
            return None
        return written

    def _add(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: list[Any]
    ) -> None:
        """Note an operation, and keep what its rule reads beside changed voxels."""
        arguments, keywords = tree_map_only(
            torch.Tensor, lambda tensor: self._values.get(tensor, tensor), (args, kwargs)
        )
        tensors = {id(tensor): tensor for tensor in _tensors((args, kwargs))}
        inputs: dict[Value, torch.Tensor] = {}
        for tensor in tensors.values():
            value = self._values.get(tensor)
            if value is None:
                self._constants.append((tensor, tensor._version))
            else:
                inputs[value] = tensor
                value.last_read = len(self.operations)
        outputs = tuple(
            Value(tuple(result.shape)) if isinstance(result, torch.Tensor) else None
            for result in results
        )
        operation = Operation(function, arguments, keywords, tuple(inputs), outputs)
        operation.rule = rule_for(operation)
        everywhere = isinstance(operation.rule, Whole) or any(one.everywhere for one in inputs)
        for value, result in zip(outputs, results, strict=True):
            if value is not None:
                value.everywhere = everywhere
                self._values[result] = value
        self.operations.append(operation)
        if operation.rule.keeps:
            for value, tensor in inputs.items():
                self._keep(value, tensor if tensor is not results[0] else tensor.clone())

    def _keep(self, value: Value, tensor: torch.Tensor) -> None:
        """Keep what a value was; one that always changes as a whole is never asked for."""
        if value.base is not None or value.everywhere:
            return
        value.base = tensor
        self._with_base.append(value)
        self.kept += tensor.nbytes
        if self.kept > self._most_bytes:
            self._refuse(
                f"what would have to be kept takes more than {self._most_bytes / 2**20:.0f} MB"
            )

    def _save(self, written: torch.Tensor) -> None:
        """Copy what is kept in the memory that is about to be overwritten; its views are spoilt."""
        for value in self._with_base:
            if value.base is not None and _share_memory(value.base, written):
                value.base = value.base.clone()
        for tensor in list(self._values):
            if tensor is not written and _share_memory(tensor, written):
                del self._values[tensor]
                self._overwritten[tensor] = True

    def _refuse(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.operations = []
        for value in self._with_base:
            value.base = None
        self._with_base = []


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors may hold the same numbers: the same memory, and ranges that meet."""
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    (first, last), (start, stop) = _range(one), _range(other)
    return first < stop and start < last


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    """First and behind the last number of a tensor in its memory."""
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset())
    return first, first + int(reach) + 1
