"""Record the attention of a network as it is used, and which voxels its tokens stand for.

Attention is recognised where it happens: a product of something that came out of a softmax with
values whose rows are tokens. So it does not matter whether a network wrote ``matmul``, ``einsum``,
``scaled_dot_product_attention`` or ``nn.MultiheadAttention``, and nothing in it is touched. The
weights are read off that product, hence row q always holds the weights with which output token q
was made, even where a network multiplies by the transposed matrix.

Tokens are followed through every operation that moves or mixes them: patch embedding, flattening,
class tokens, shifted windows, patch merging, convolutions between stages. Everything is kept only
as long as the network itself keeps its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ...errors import MethodError
from ...model.follow import Grid, Place, moved, tensors_in
from .token_ops import KEPT, LAYOUT, POOLED, PRODUCTS, REGRID, SOFTMAX, VIEWS, joins_channels
from .tokens import NOTHING, AttentionCall, TokenGrid, TokenTable, is_constant, slim

__all__ = ["HEADS", "AttentionRecorder", "recorded_attention"]

#: How the heads of one attention become one matrix -> name of the reduction.
HEADS = {"mean": "mean", "max": "amax", "min": "amin"}

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Known:
    """Which token each element of a tensor belongs to; `weights`: it came out of a softmax."""

    tokens: torch.Tensor
    weights: bool = False


@dataclass(frozen=True)
class _Volume:
    """Features (1, C, i, j, k) by their place; and the tokens that they were made of, if any."""

    place: Place
    source: TokenGrid | None = None


class AttentionRecorder(TorchDispatchMode):
    """While active, watches every operation; see :func:`recorded_attention`.

    Attributes
    ----------
    table : TokenTable
        Its tape holds the attention.
    output : Tensor of int or None
        Tokens of the network's main output, if they could be followed.
    unplaced : list of str
        Modules with attention over tokens that could not be followed.
    """

    def __init__(self, volume: torch.Tensor, heads: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.table = TokenTable(tuple(volume.shape[2:]), volume.device)
        self.heads = HEADS[heads]
        self.inside: list[str] = [""]
        self.output: torch.Tensor | None = None
        self.unplaced: list[str] = []
        self._known: Any = WeakTensorKeyDictionary()

    @property
    def calls(self) -> list[AttentionCall]:
        """Attention in the order in which it ran."""
        return [entry for entry in self.table.tape if isinstance(entry, AttentionCall)]

    def call(self, name: str) -> AttentionCall:
        """Return the last attention in the module of that name; the last of all for "".

        Raises
        ------
        MethodError
            If there is none; what there is is said.
        """
        calls = self.calls
        if not calls and self.unplaced:
            raise MethodError(
                f"The tokens of the attention in {self.unplaced[0]!r} could not be followed from "
                "the voxels of the image, so there is no map of it. Use a gradient method."
            )
        if not calls:
            raise MethodError(
                "The network has no attention between tokens of the volume (no softmax that is "
                "multiplied with values was seen). Use a gradient method, or Grad-CAM."
            )
        found = [one for one in calls if not name or one.name == name]
        if not found:
            names = list(dict.fromkeys(one.name for one in calls))
            raise MethodError(
                f"There is no attention in a module {name!r}. The network's attention is in: "
                f"{', '.join(names)}. Left empty, the last is used."
            )
        return found[-1]

    def begin(self, volume: torch.Tensor) -> None:
        """Say which tensor is the network's input."""
        self._known[volume] = _Volume(Place(Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1.0))

    def end(self, result: Any) -> None:
        """Note which tokens the main output belongs to."""
        known = self._known.get(next(tensors_in((result,)), None))
        self.output = known.tokens if isinstance(known, _Known) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [tensor for tensor in tensors_in(args) if tensor in self._known]
        if inputs:
            outputs = list(tensors_in((result,)))
            found = self._follow(func, args, kwargs, inputs, outputs)
            for output, known in zip(outputs, found, strict=False):
                if known is not None:
                    self._known[output] = known
        return result

    def _follow(
        self, func: Any, args: Any, kwargs: Any, inputs: list[Any], outputs: list[Any]
    ) -> list[Any]:
        """What is known of each output of an operation."""
        packet = func.overloadpacket
        if not outputs:
            return []
        if packet in PRODUCTS:
            at = PRODUCTS[packet]
            return [self._product(args[at], args[at + 1], outputs[0])]
        largest = max(inputs, key=lambda tensor: tensor.numel())
        kept = torch.Tag.pointwise in func.tags or packet in KEPT
        if kept:
            return [self._same(largest, outputs[0], packet in SOFTMAX)]
        if joins_channels(packet, args, outputs[0]):
            return [self._same(inputs[0], outputs[0], False)]
        if packet in REGRID or isinstance(self._known[inputs[0]], _Volume):
            placed = self._moved(packet, args, outputs[0])
            if placed is not None:
                return [placed]
        if packet in POOLED:
            return [self._pooled(args, outputs[0])]
        return self._laid_out(func, args, kwargs, len(outputs)) if packet in LAYOUT else []

    def _tokens(self, tensor: Any) -> torch.Tensor | None:
        """Token of each element of a tensor; a volume's voxels become tokens here."""
        known = self._known.get(tensor) if isinstance(tensor, torch.Tensor) else None
        if isinstance(known, _Volume):
            grid, old, shape = known.place.grid, known.source, tuple(tensor.shape[2:])
            if old is None:
                tokens = self.table.on_grid(grid, shape)
            elif old.grid == grid and old.shape == shape:
                tokens = old.tokens
            else:
                tokens = self.table.regridded(old, grid, shape)
            known = self._known[tensor] = _Known(tokens.expand(tensor.shape))
        return None if known is None else known.tokens

    def _same(self, first: torch.Tensor, output: torch.Tensor, softmax: bool) -> Any:
        """Element by element: the output's tokens are the input's."""
        known = self._known[first]
        if isinstance(known, _Volume):
            return known if output.ndim == 5 and output.shape[2:] == first.shape[2:] else None
        if softmax:
            known = replace(known, weights=True)
        if first.shape == output.shape:
            return known
        if first.ndim == output.ndim == 5 and first.shape[2:] == output.shape[2:]:
            return replace(known, tokens=known.tokens[:, :1].expand(output.shape))
        if torch.broadcast_shapes(first.shape, output.shape) != output.shape:
            return None
        return replace(known, tokens=known.tokens.expand(output.shape))

    def _moved(self, packet: Any, args: Any, output: torch.Tensor) -> Any:
        """Behind an operation on a volume that moves its voxels or changes their number."""
        known = self._known.get(args[0]) if isinstance(args[0], torch.Tensor) else None
        if known is None or output.ndim != 5 or args[0].ndim != 5:
            return None
        if isinstance(known, _Known):
            try:
                source = self.table.lay_out(known.tokens[0, 0])
            except MethodError:
                return None
            if source.tokens.numel() != args[0][0, 0].numel():
                return None
            known = _Volume(Place(source.grid, 1.0), source)
        if packet in VIEWS and output.shape[2:] == args[0].shape[2:]:
            return known
        place = moved(packet, args, known.place, args[0], output)
        return None if place is None else replace(known, place=place)

    def _pooled(self, args: Any, output: torch.Tensor) -> Any:
        """A mean over tokens is a token made of all of them."""
        tokens = self._tokens(args[0])
        if tokens is None or output.dtype == torch.bool:
            return None
        given = args[1] if len(args) > 1 and args[1] is not None else range(tokens.ndim)
        axes = sorted({axis % tokens.ndim for axis in ([given] if type(given) is int else given)})
        rest = [axis for axis in range(tokens.ndim) if axis not in axes]
        rows = slim(tokens).permute(*rest, *axes)
        heads = rows.shape[: len(rest)]
        rows = rows[tuple(slice(0, 1 if step == 0 else None) for step in rows.stride())]
        leading = rows.shape[: len(rest)]
        rows = rows.reshape(leading.numel(), -1)
        merged = rows[:, 0] if rows.shape[1] == 1 else self.table.merged(rows)
        return _Known(merged.view(leading).expand(heads).reshape(output.shape))

    def _laid_out(self, func: Any, args: Any, kwargs: Any, count: int) -> list[Any]:
        """Move the tokens as the operation moves their values."""
        packet = func.overloadpacket
        if packet in (_aten.cat, torch.ops.aten.stack):
            tensors = args[0]
            given = [self._tokens(one) for one in tensors]
            weights = False
            if packet is _aten.cat:
                axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
                given = [
                    self._special(one, axis) if tokens is None else tokens
                    for one, tokens in zip(tensors, given, strict=True)
                ]
            elif any(tokens is None for tokens in given):
                return []
            carried = func(given, *args[1:], **kwargs)
        else:
            tokens = self._tokens(args[0])
            if tokens is None:
                return []
            weights = self._known[args[0]].weights
            if packet in VIEWS:
                carried = tokens.reshape(args[1])
            elif packet is _aten.constant_pad_nd:
                carried = torch.nn.functional.pad(tokens, args[1], value=NOTHING)
            else:
                carried = func(tokens, *args[1:], **kwargs)
        results = [carried] if isinstance(carried, torch.Tensor) else list(carried)
        return [_Known(slim(one), weights) for one in results[:count]]

    def _special(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """Tokens that a network adds of its own accord, along the axis of the joint."""
        shape = [1] * tensor.ndim
        shape[axis] = tensor.shape[axis]
        return self.table.special(tensor.shape[axis]).view(shape).expand(tensor.shape)

    def _product(self, first: torch.Tensor, second: torch.Tensor, output: torch.Tensor) -> Any:
        """A matrix product: attention, a linear layer, or queries times keys."""
        a, b = self._known.get(first), self._known.get(second)
        left, right = self._tokens(first), self._tokens(second)
        if left is not None and left.ndim == 2:
            left = left[None]
        if right is not None and right.ndim == 2:
            right = right[None]
        shape = output.shape if output.ndim == 3 else (1, *output.shape)
        if isinstance(a, _Known) and a.weights:
            rows = self._attention(first, left, None if right is None else right.mT)
            return (
                None if rows is None else _Known(rows[..., None].expand(shape).view(output.shape))
            )
        if isinstance(b, _Known) and b.weights:
            rows = self._attention(second.mT, None if right is None else right.mT, left)
            return None if rows is None else _Known(rows[:, None].expand(shape).view(output.shape))
        if left is not None:
            rows = self._mixed(left)
            return _Known(rows[..., None].expand(shape).reshape(output.shape))
        if right is not None:
            rows = self._mixed(right.mT)
            return _Known(rows[:, None].expand(shape).reshape(output.shape))
        return None

    def _mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, n) of what is a mixture along the last axis of (B, n, k)."""
        if is_constant(tokens, -1):
            return tokens[..., 0]
        rows = tokens.reshape(-1, tokens.shape[-1])
        unique, inverse = rows.unique(dim=0, return_inverse=True)
        if len(unique) == len(rows):
            return self.table.merged(rows).view(tokens.shape[:-1])
        return self.table.merged(unique)[inverse].view(tokens.shape[:-1])

    def _attention(
        self, weights: torch.Tensor, rows: torch.Tensor | None, values: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Note weights (B, Q, K) that were used on values; give the output's tokens (B, Q).

        ``rows`` (B, Q, K) are the tokens of the weights, ``values`` (B, d, K) those of the values.
        """
        if weights.ndim == 2:
            weights = weights[None]
        if values is None:
            self.unplaced.append(self.inside[-1])
            return None
        if not is_constant(values, 1):
            # Attention between channels: the tokens stay apart.
            return None
        keys = values[:, 0]
        if rows is not None and is_constant(rows, -1):
            queries = rows[..., 0]
        elif weights.shape[1] == weights.shape[2]:
            queries = keys
        else:
            # Queries that are the network's own (attention pooling).
            queries = self.table.special(weights.shape[1]).expand(weights.shape[:2])
        queries, keys = queries.contiguous(), keys.contiguous()
        both, window = torch.cat([queries, keys], 1).unique(dim=0, return_inverse=True)
        fused = weights.new_zeros((len(both), *weights.shape[1:]), dtype=torch.float32)
        place = window.view(-1, 1, 1).expand(weights.shape)
        fused.scatter_reduce_(0, place, weights.float(), self.heads, include_self=False)
        both = both.long()
        size = weights.shape[1]
        self.table.tape.append(
            AttentionCall(self.inside[-1], fused, both[:, :size], both[:, size:])
        )
        return queries


@contextmanager
def recorded_attention(
    network: torch.nn.Module, volume: torch.Tensor, heads: str = "mean"
) -> Iterator[AttentionRecorder]:
    """Record the attention of one forward pass, without gradient; nothing stays attached.

    Inside, torch's fused attention kernels are off, because they never hold the weights.

    Parameters
    ----------
    network : torch.nn.Module
    volume : Tensor, shape (1, C, I, J, K)
        As the network will get it; only its shape and device are used.
    heads : {"mean", "max", "min"}
        How the heads become one matrix.

    Yields
    ------
    AttentionRecorder
    """
    recorder = AttentionRecorder(volume, heads)

    def enter(name: str) -> None:
        recorder.inside.append(name)

    def leave(output: Any, final: bool) -> None:
        recorder.inside.pop()
        if final and output is not None:
            recorder.end(output)

    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as attached:
        for name, module in network.named_modules():
            before = module.register_forward_pre_hook(lambda _m, _i, name=name: enter(name))
            attached.callback(before.remove)
            after = module.register_forward_hook(
                lambda _m, _i, out, name=name: leave(out, not name), always_call=True
            )
            attached.callback(after.remove)
        first = network.register_forward_pre_hook(lambda _m, given: recorder.begin(given[0]))
        attached.callback(first.remove)
        attached.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        attached.enter_context(sdpa_kernel(SDPBackend.MATH))
        attached.enter_context(torch.no_grad())
        attached.enter_context(recorder)
        yield recorder
