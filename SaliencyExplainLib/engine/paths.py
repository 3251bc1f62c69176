"""Which layers carry all that the output depends on.

Behind a skip connection a layer sees only a part of what reaches the output: hiding its features
then tells about that part alone. A layer carries everything if, in the graph of one forward pass,
every path from the input to the output leads through what it gave.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

__all__ = ["sole_carriers"]

#: A tensor in a graph: the node that made it, and which of its results it is.
_Result = tuple[Any, int]


def sole_carriers(
    network: torch.nn.Module, x: torch.Tensor, first: Callable[[Any], torch.Tensor]
) -> frozenset[str]:
    """Names of the layers through which everything passes on its way to the output.

    Costs one forward pass, without the memory of its intermediate results.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode.
    x : Tensor, shape (1, C, I, J, K)
    first : callable
        Turns what the network returns into its main output tensor.

    Returns
    -------
    frozenset of str
        Qualified names; of a layer that runs several times the last call counts. Empty where the
        output cannot be differentiated.
    """
    results: dict[str, _Result] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or output.grad_fn is None:
            return None
        # What an identity gives is also what others may take past it: a result of its own.
        given = output.clone() if any(output is one for one in inputs) else output
        results[name] = (given.grad_fn, given.output_nr)
        return given

    nothing = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda none: none)
    with ExitStack() as attached, nothing, torch.enable_grad():
        for name, module in network.named_modules():
            if name:
                hook = module.register_forward_hook(
                    lambda _m, given, out, name=name: note(name, given, out)
                )
                attached.callback(hook.remove)
        # The network gets a copy: a leaf cannot be overwritten in place.
        volume = x.detach().clone().requires_grad_().clone()
        source = (volume.grad_fn, volume.output_nr)
        output = first(network(volume))
    if output.grad_fn is None:
        return frozenset()
    start = (output.grad_fn, output.output_nr)
    if not _reaches(start, source, None):
        return frozenset()
    return frozenset(
        name for name, result in results.items() if not _reaches(start, source, result)
    )


def _reaches(start: _Result, source: _Result, closed: _Result | None) -> bool:
    """Whether a path leads back from `start` to `source` with one result closed to it."""
    waiting, seen = [start], set()
    while waiting:
        result = waiting.pop()
        if result == closed or result in seen:
            continue
        if result == source:
            return True
        seen.add(result)
        waiting.extend(edge for edge in result[0].next_functions if edge[0] is not None)
    return False
