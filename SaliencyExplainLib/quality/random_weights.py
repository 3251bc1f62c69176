"""A copy of a network with new random weights, layer by layer. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..engine import Engine
from ..errors import MetricError

__all__ = ["copied", "layers_from_output", "megabytes", "randomise"]


def copied(network: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a network without gradients.

    Raises
    ------
    MetricError
        If it cannot be copied.
    """
    try:
        twin = copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        raise MetricError(
            f"The network cannot be copied ({str(error).splitlines()[0]}), and it must not be "
            "randomised itself. Load it from its weights instead."
        ) from error
    for one in twin.parameters():
        one.requires_grad_(False)
    return twin


def megabytes(network: torch.nn.Module) -> float:
    """Size of parameters and buffers in MB (10^6 bytes)."""
    tensors = (*network.parameters(), *network.buffers())
    return round(sum(one.numel() * one.element_size() for one in tensors) / 1e6, 2)


def layers_from_output(engine: Engine, network: torch.nn.Module) -> list[str]:
    """Names of the modules with parameters of their own, the last that begins to run first.

    Modules that do not run as modules (TorchScript, or parts of an attention) stand behind the one
    that is declared before them.

    Parameters
    ----------
    engine : Engine
        Its image and target are used.
    network : torch.nn.Module
        Runs on one window.
    """
    owners = [(name, one) for name, one in network.named_modules() if _own(one)]
    started: dict[str, int] = {}

    def note(name: str) -> None:
        started.setdefault(name, len(started))

    hooks = []
    if not isinstance(network, torch.jit.ScriptModule):
        hooks = [
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: note(name))
            for name, module in owners
        ]
    try:
        twin = Engine(replace(engine.model, network=network), engine.image, engine.target)
        with twin.running(), torch.no_grad():
            twin.run_window(twin.plan.pad(twin.x), twin.plan.windows[0])
    finally:
        for hook in hooks:
            hook.remove()
    place, places = -1.0, {}
    for name, _ in owners:
        place = float(started[name]) if name in started else place + 1.0 / (len(owners) + 1)
        places[name] = place
    return sorted(places, key=lambda name: -places[name])


def randomise(network: torch.nn.Module, names: Sequence[str], seed: int) -> None:
    """Give modules new random weights, in place.

    Each by its own ``reset_parameters``; where there is none, or it changes nothing, from a normal
    distribution with the mean and spread of each parameter, single values by their opposite. The
    random state of torch is left as it was.
    """
    modules = dict(network.named_modules())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name in names:
            _randomise(modules[name])


def _randomise(module: torch.nn.Module) -> None:
    own = _own(module)
    before = [one.clone() for one in own]
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    if not all(torch.equal(one, old) for one, old in zip(own, before, strict=True)):
        return
    for one in own:
        if one.numel() > 1:
            one.copy_(one.mean() + one.std() * torch.randn_like(one))
        else:
            one.neg_()


def _own(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters of a module itself, not of its parts, that can be drawn."""
    return [one for one in module.parameters(recurse=False) if one.is_floating_point()]
