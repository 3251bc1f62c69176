"""Record the features of layers during a forward pass, ready to be differentiated."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import LayerNotFoundError, MethodError

__all__ = ["Record", "find_layer", "recorded"]


class _LayerReached(Exception):  # noqa: N818 - not a fault: the rest of the network is not needed
    """Ends a forward pass at a layer."""


@dataclass
class Record:
    """Outputs of each layer, one tensor (1, C, i, j, k) a call, in the order of the calls."""

    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def last(self, name: str) -> torch.Tensor:
        """Features of the layer's last call.

        Raises
        ------
        MethodError
            If it did not run, or does not give features with voxels.
        """
        calls = self.outputs.get(name, [])
        if not calls:
            raise MethodError(
                f"The layer {name!r} did not run in the forward pass. Choose another one: "
                "model.layers()."
            )
        if calls[-1].ndim != 5:
            raise MethodError(
                f"The layer {name!r} gives features of shape {tuple(calls[-1].shape)}; (1, C, i, "
                "j, k) is needed. "
                "Choose a convolution, an activation or a block: model.layers()."
            )
        return calls[-1]


def find_layer(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """Return the module of that qualified name.

    Raises
    ------
    LayerNotFoundError
        With the nearest names.
    """
    if name:
        with suppress(AttributeError):
            return network.get_submodule(name)
    modules = [found for found, _ in network.named_modules()]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    raise LayerNotFoundError(f"The network has no layer {name!r}.{hint} List all: model.layers().")


@contextmanager
def recorded(
    network: torch.nn.Module, names: Sequence[str], *, differentiable: bool, stop: bool = False
) -> Iterator[Record]:
    """Record the named layers while the block runs; the hooks are gone afterwards.

    Parameters
    ----------
    network : torch.nn.Module
    names : sequence of str
        Qualified module names.
    differentiable : bool
        Start the graph at the first of these layers: nothing before it is kept for the backward
        pass.
    stop : bool
        End the block when all layers have run: what comes behind them is not computed.

    Yields
    ------
    Record

    Raises
    ------
    LayerNotFoundError
        If a name is unknown.
    MethodError
        If the network is TorchScript, whose layers cannot be looked into.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise MethodError(
            "This is a TorchScript network: its layers cannot be looked into, so layer methods do "
            "not work. "
            "Load the original network with its state dict or as torch.export saves it (.pt2), or "
            "use a gradient or perturbation method."
        )
    record = Record()

    def keep(name: str, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            raise MethodError(
                f"The layer {name!r} gives {type(output).__name__}, no tensor. Choose a module "
                "inside it."
            )
        if not differentiable:
            record.outputs.setdefault(name, []).append(output.detach().clone())
            if stop and len(record.outputs) == len(set(names)):
                raise _LayerReached
            return None
        leaf = output if output.requires_grad else output.detach().requires_grad_()
        record.outputs.setdefault(name, []).append(leaf)
        # The copy goes on: an in-place activation behind the layer must not overwrite what was
        # recorded.
        return leaf.clone()

    with ExitStack() as attached:
        for name in names:
            hook = find_layer(network, name).register_forward_hook(
                lambda _m, _i, out, name=name: keep(name, out)
            )
            attached.callback(hook.remove)
        with suppress(_LayerReached):
            yield record
