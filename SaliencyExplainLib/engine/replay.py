"""Run a network again from a layer on: everything that came before answers from a record.

One forward pass is recorded. Afterwards each outermost module that had finished before the layer
began returns what it returned then, and only what follows is computed; code between modules
(additions, concatenations) runs as it is written. No tracing, no change of the network, any
``nn.Module``.

What could go wrong is looked for. A tensor that was overwritten in place after it was recorded
(residual additions, in-place activations) is recorded again as a copy, found by its version
counter. A record that no operation reads is replaced by a placeholder without memory. At last the
unchanged features are replayed and must give the recorded output bit for bit; otherwise (code that
relies on such side effects) each run computes the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ..errors import MethodError
from .record import find_layer

__all__ = ["Replay"]


@dataclass(eq=False)
class _Call:
    """One call of a module in the recorded pass."""

    module: torch.nn.Module
    number: int
    start: int
    output: Any = None
    end: int = -1
    versions: list[int] = field(default_factory=list)
    copied: bool = False


class Replay:
    """A network on one input, ready to be run again with other features at a layer.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode.
    x : Tensor, shape (1, C, I, J, K)
    layer : str
        Qualified module name; of a layer that runs several times the last call is meant.
    first : callable
        Turns what the network returns into its main output tensor.

    Attributes
    ----------
    features : Tensor, shape (1, K, i, j, k)
        Output of the layer.
    output : Tensor, shape (1, O, I, J, K) or (1, O)
        Output of the network.
    exact : bool
        Whether replaying works for this network; otherwise each run computes all of it.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        x: torch.Tensor,
        layer: str,
        first: Callable[[Any], torch.Tensor],
    ) -> None:
        if isinstance(network, torch.jit.ScriptModule):
            raise MethodError(
                "This is a TorchScript network: its layers cannot be run one by one. Load the "
                "original network with its "
                "state dict, or use a method that changes the input."
            )
        self._network = network
        self._x = x
        self._layer = find_layer(network, layer)
        self._first = first
        calls, output = self._record(frozenset())
        overwritten = _overwritten(calls)
        if overwritten:
            calls, output = self._record(overwritten)
        target = max(
            (call for call in calls if call.module is self._layer),
            key=lambda call: call.start,
            default=None,
        )
        if target is None or not isinstance(target.output, torch.Tensor):
            raise MethodError(
                f"The layer {layer!r} did not run, or does not give a tensor. Choose another: "
                "model.layers()."
            )
        self.output = output
        self.features: torch.Tensor = target.output
        self._features_overwritten = target.copied
        self._earlier_calls = sum(
            call.module is self._layer and call.start < target.start for call in calls
        )
        self._answers = _answers(calls, target)
        self.exact = self._verify()

    def run(self, features: torch.Tensor) -> torch.Tensor:
        """Output (B, O, ...) of the network for features (B, K, i, j, k); differentiable."""
        return self._replayed(features) if self.exact else self._whole(features)

    def _record(self, copied: frozenset[int]) -> tuple[list[_Call], torch.Tensor]:
        """Run once; calls by their number in `copied` keep a copy of their output."""
        calls: list[_Call] = []
        running: list[_Call] = []
        clock = iter(range(1 << 62))

        def begin(module: torch.nn.Module, _inputs: Any) -> None:
            running.append(_Call(module, len(calls), next(clock)))
            calls.append(running[-1])

        def finish(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            call = running.pop()
            call.copied = call.number in copied
            call.output = (
                tree_map_only(torch.Tensor, torch.clone, output) if call.copied else output
            )
            call.versions = [tensor._version for tensor in _tensors(call.output)]
            call.end = next(clock)

        with ExitStack() as attached, torch.no_grad():
            for name, module in self._network.named_modules():
                if name:
                    attached.callback(module.register_forward_pre_hook(begin).remove)
                    attached.callback(module.register_forward_hook(finish).remove)
            output = self._first(self._network(self._x.clone()))
        return calls, output

    def _verify(self) -> bool:
        """Replay the unchanged features; free the records that nothing reads."""
        reader = _Reader()
        try:
            with torch.no_grad(), reader:
                again = self._replayed(self.features)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        if not torch.equal(again, self.output):
            return False
        for answers in self._answers.values():
            for call in answers:
                call.output = tree_map_only(
                    torch.Tensor,
                    lambda tensor: tensor if id(tensor) in reader.read else _placeholder(tensor),
                    call.output,
                )
        return True

    def _replayed(self, features: torch.Tensor) -> torch.Tensor:
        with self._answering(features):
            batch = features.shape[0]
            return self._first(self._network(_expanded(self._x, batch).clone()))

    def _whole(self, features: torch.Tensor) -> torch.Tensor:
        """All of the network, with the layer's output exchanged by a hook."""
        seen = iter(range(1 << 62))
        hook = self._layer.register_forward_hook(
            lambda _m, _i, _o: features.clone() if next(seen) == self._earlier_calls else None
        )
        try:
            return self._first(self._network(_expanded(self._x, features.shape[0]).clone()))
        finally:
            hook.remove()

    @contextmanager
    def _answering(self, features: torch.Tensor) -> Iterator[None]:
        """Let the recorded modules answer from the record and the layer with `features`."""
        batch = features.shape[0]
        with ExitStack() as stack:
            for module, calls in self._answers.items():
                stack.enter_context(
                    _answer(module, [(call.output, call.copied) for call in calls], batch)
                )
            kept = self._answers.get(self._layer, [])
            given = [(call.output, call.copied) for call in kept] + [
                (features, self._features_overwritten)
            ]
            stack.enter_context(_answer(self._layer, given, batch))
            yield


class _Reader(TorchDispatchMode):
    """Notes which tensors operations read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read.update(id(tensor) for tensor in _tensors((args, kwargs)))
        return func(*args, **(kwargs or {}))


@contextmanager
def _answer(module: torch.nn.Module, answers: list[tuple[Any, bool]], batch: int) -> Iterator[None]:
    """Let a module's first calls return recorded outputs; later calls run as ever."""
    own = vars(module).get("forward")
    original = module.forward
    waiting = iter(answers)

    def forward(*args: Any, **kwargs: Any) -> Any:
        answer = next(waiting, None)
        if answer is None:
            return original(*args, **kwargs)
        output, overwritten = answer
        grown = tree_map_only(torch.Tensor, lambda tensor: _expanded(tensor, batch), output)
        return tree_map_only(torch.Tensor, torch.clone, grown) if overwritten else grown

    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _answers(calls: list[_Call], target: _Call) -> dict[torch.nn.Module, list[_Call]]:
    """Outermost calls that had ended when the layer began, by module, in order."""
    before = [call for call in calls if call.end < target.start]
    outermost: dict[torch.nn.Module, list[_Call]] = {}
    until = -1
    for call in sorted(before, key=lambda call: call.start):
        if call.start > until:
            outermost.setdefault(call.module, []).append(call)
            until = call.end
    return outermost


def _overwritten(calls: list[_Call]) -> frozenset[int]:
    """Numbers of the calls whose output was changed in place after they ended."""
    return frozenset(
        call.number
        for call in calls
        if [tensor._version for tensor in _tensors(call.output)] != call.versions
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


def _expanded(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """A record of one, for a batch; tensors without a batch axis of 1 stay."""
    if batch == 1 or tensor.ndim == 0 or tensor.shape[0] != 1:
        return tensor
    return tensor.expand(batch, *tensor.shape[1:])


def _placeholder(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)
