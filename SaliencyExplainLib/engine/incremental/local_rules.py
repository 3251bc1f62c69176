"""Where each operation of a network reads, and where a change of its input can be seen.

A rule knows three things of one recorded operation: which voxels of an input the output voxels in
a box are made from (`reads`), which output voxels a changed box of an input can reach (`reaches`),
and how to compute the output in a box alone (`compute`). An operation that is not
known depends on everything: never wrong, only slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch

from .spans import Spans, full, shape_of

__all__ = ["Operation", "Pointwise", "Read", "Rule", "Separable", "Value", "Whole"]

_aten = torch.ops.aten


@dataclass(eq=False)
class Value:
    """A tensor of the recorded pass that depends on the input.

    Attributes
    ----------
    shape : tuple of int
    everywhere : bool
        Any change of the input changes all of it.
    base : Tensor or None
        What it was for the unperturbed input, in `held`; None where nobody asks for it.
    held : Spans
    needed : Spans or None
        What later operations read of it; None if nothing.
    """

    shape: tuple[int, ...]
    everywhere: bool = False
    base: torch.Tensor | None = None
    held: Spans = ()
    needed: Spans | None = None
    last_read: int = -1


@dataclass(eq=False)
class Operation:
    """One operation: `arguments` hold values where the recorded pass had tensors of theirs."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value | None, ...]
    rule: Rule = field(init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.outputs[0].shape if self.outputs and self.outputs[0] is not None else ()


class Read(Protocol):
    """Gives a value's voxels in a box; what lies outside the tensor is `fill`."""

    def __call__(self, value: Value, spans: Spans, fill: float = 0.0) -> torch.Tensor:
        """Return a tensor (1, C, i, j, k), or all of a tensor without voxels."""


class Rule:
    """Base: every voxel depends on every voxel.

    Attributes
    ----------
    keeps : bool
        Whether unchanged voxels of the inputs are read beside changed ones.
    single : bool
        Whether only the first of several outputs is computed.
    """

    keeps = True
    single = True

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.shape = operation.shape

    def reads(self, value: Value, spans: Spans) -> Spans:  # noqa: ARG002 - others look at it
        """Box of an input that the output in `spans` is made from."""
        return full(value.shape)

    def reaches(self, value: Value, spans: Spans) -> Spans:  # noqa: ARG002 - others look at it
        """Box of the output that can change with an input's `spans`."""
        return full(self.shape)

    def compute(self, read: Read, spans: Spans) -> Any:  # noqa: ARG002 - others look at it
        """What the operation gives in `spans`."""
        return self._call(lambda one: read(one, full(one.shape)) if isinstance(one, Value) else one)

    def work(self, spans: Spans) -> float:
        """Multiply-adds (or, of other operations, numbers written) for the output in `spans`."""
        return self.per_voxel() * prod(shape_of(spans))

    def per_voxel(self) -> float:
        """Work for one output voxel; for all of an output without voxels."""
        operation = self.operation
        if operation.function in (_aten.mm.default, _aten.addmm.default, _aten.bmm.default):
            left = operation.arguments[-2]
            return float(prod(self.shape) * left.shape[-1])
        return float(self.shape[1] if len(self.shape) == 5 else prod(self.shape))

    def _call(self, cut: Callable[[Any], Any]) -> Any:
        """The operation on arguments in which `cut` exchanges values and tensors."""
        arguments = _exchanged(self.operation.arguments, cut)
        keywords = {name: _exchanged(one, cut) for name, one in self.operation.keywords.items()}
        return self.operation.function(*arguments, **keywords)


class Whole(Rule):
    """Normalisation over the image, attention, global pooling, and all that is not known here."""

    single = False


class Pointwise(Rule):
    """Output voxel v from input voxels v, over all channels; inputs of one voxel are spread out."""

    def __init__(
        self, operation: Operation, *, identity: bool = False, single: bool = True
    ) -> None:
        super().__init__(operation)
        self.identity = identity
        self.keeps = len(operation.inputs) > 1
        self.single = single

    def reads(self, value: Value, spans: Spans) -> Spans:
        """The same voxels."""
        return tuple(
            span if size == out else (0, size)
            for span, (_, size), out in zip(spans, full(value.shape), self.shape[2:], strict=False)
        )

    def reaches(self, value: Value, spans: Spans) -> Spans:
        """The same voxels; all of them along an axis on which the input is spread out."""
        if len(value.shape) != 5:
            return full(self.shape)
        return tuple(
            span if size == out else (0, out)
            for span, size, out in zip(spans, value.shape[2:], self.shape[2:], strict=True)
        )

    def compute(self, read: Read, spans: Spans) -> Any:
        """The operation on cut inputs."""
        if self.identity:
            (value,) = self.operation.inputs
            return read(value, spans)
        return self._call(
            lambda one: (
                read(one, self.reads(one, spans))
                if isinstance(one, Value)
                else self._cut(one, spans)
            )
        )

    def _cut(self, constant: torch.Tensor, spans: Spans) -> torch.Tensor:
        """A constant of the recorded pass in the box; per-channel constants stay."""
        if constant.ndim != 5:
            return constant
        inner = (
            slice(*span) if size == out else slice(None)
            for span, size, out in zip(spans, constant.shape[2:], self.shape[2:], strict=True)
        )
        return constant[(slice(None), slice(None), *inner)]


class Separable(Rule):
    """A linear map along each axis in turn: interpolation, average pooling, padding, cutting.

    Parameters
    ----------
    operation : Operation
    along : callable
        Takes the axis (0 to 2) and a tensor (1, n, n); gives the operation along that axis.
    """

    def __init__(
        self, operation: Operation, along: Callable[[int, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(operation)
        (value,) = operation.inputs
        self.matrices = [
            along(axis, torch.eye(size)[None])[0].T for axis, size in enumerate(value.shape[2:])
        ]
        used = [matrix != 0 for matrix in self.matrices]
        self._inputs = [_extent(one) for one in used]
        self._outputs = [_extent(one.T) for one in used]
        #: Axes along which voxels are only taken, each from one place.
        self._places = [
            matrix.argmax(1)
            if bool((matrix.amax(1) == 1).all() and (one.sum(1) == 1).all())
            else None
            for matrix, one in zip(self.matrices, used, strict=True)
        ]

    def reads(self, value: Value, spans: Spans) -> Spans:  # noqa: ARG002 - others look at it
        """Voxels with a weight."""
        return _over(self._inputs, spans)

    def reaches(self, value: Value, spans: Spans) -> Spans:  # noqa: ARG002 - others look at it
        """Voxels in which a changed voxel has a weight."""
        return _over(self._outputs, spans)

    def compute(self, read: Read, spans: Spans) -> Any:
        """The weights' rows of the box, along each axis; the axis that shrinks most first."""
        (value,) = self.operation.inputs
        source = self.reads(value, spans)
        part = read(value, source)
        order = sorted(
            range(3), key=lambda axis: shape_of(spans)[axis] / max(1, shape_of(source)[axis])
        )
        for axis in order:
            (low, high), (first, last) = spans[axis], source[axis]
            places = self._places[axis]
            if places is None:
                matrix = self.matrices[axis][low:high, first:last].to(part)
                part = (part.movedim(axis + 2, -1) @ matrix.T).movedim(-1, axis + 2)
            elif not torch.equal(places[low:high], torch.arange(first, last)):
                part = part.index_select(axis + 2, (places[low:high] - first).to(part.device))
        return part


def _exchanged(item: Any, cut: Callable[[Any], Any]) -> Any:
    """An argument with its values and tensors exchanged; several times as fast as a tree map."""
    if isinstance(item, Value | torch.Tensor):
        return cut(item)
    if isinstance(item, list | tuple):
        return [_exchanged(one, cut) for one in item]
    return item


def _extent(used: torch.Tensor) -> list[tuple[int, int]]:
    """First and behind the last True in each row; (n, 0) in a row without any."""
    size = used.shape[1]
    places = torch.arange(size)
    first = torch.where(used, places, size).amin(1).tolist()
    last = torch.where(used, places + 1, 0).amax(1).tolist()
    return list(zip(first, last, strict=True))


def _over(extents: list[list[tuple[int, int]]], spans: Spans) -> Spans:
    """Hull of the extents of the lines in a box; one voxel where they have none."""
    found = []
    for extent, (low, high) in zip(extents, spans, strict=True):
        rows = extent[low:high]
        first, last = min(row[0] for row in rows), max(row[1] for row in rows)
        found.append((first, last) if first < last else (0, 1))
    return tuple(found)
