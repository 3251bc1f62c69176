"""The layers of a network: names, output shapes, and where their voxels really lie.

The network is run once on tensors without data (shapes only, no computing), while every
convolution, pooling, up-sampling, crop and pad is followed. So the grid of a layer follows from
strides, padding and kernels, not from a guess: with stride 2 and padding 1 a feature voxel i at the
bottom of a 4-level U-Net sits at input voxel 8 i, while resizing its map to the input's size would
put it 3.5 voxels away along each axis.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import ModelError
from .follow import Follower, Grid, Place, spread_evenly, tensors_in

__all__ = ["Grid", "LayerInfo", "evaluating", "trace_layers", "with_values"]

_NORMALISED = (
    "feeds an instance normalisation: the mean gradient of each channel is zero there, and maps "
    "that are weighted by it are rounding noise"
)
_SINGLE = "has a single voxel: a map of it is the same everywhere"
_DEAD = "was zero everywhere in the window that was looked at: every map of it is empty"
_CONSTANT = "was the same everywhere in the window that was looked at: a map of it shows no place"


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
        Its output goes straight into an instance normalisation, where the gradient has zero mean:
        Grad-CAM weights are zero there in theory and rounding noise in practice.
    calls : int
        How often it ran in one forward pass.
    leaf : bool
        Whether it has no sub-modules.
    activation : bool
        Whether it is a nonlinearity (its type says so).
    final : bool
        Whether its output is the network's own.
    passes_on : bool
        Whether it gives what it was given (a dropout, an identity).
    problem : str
        Why maps of this layer would be empty or noise, as the end of a sentence that begins with
        the layer; empty where nothing is known against it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grid: Grid
    feeds_instance_norm: bool
    calls: int
    leaf: bool
    activation: bool
    final: bool = False
    passes_on: bool = False
    problem: str = ""


def trace_layers(
    network: torch.nn.Module, shape: Sequence[int], device: Any = "cpu"
) -> list[LayerInfo]:
    """List every module that gives a volume of features, in the order in which they finish.

    Parameters
    ----------
    network : torch.nn.Module
        Left as it is: a copy without data is run, or, where it cannot be copied, the network itself
        in eval mode.
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
    except Exception:  # noqa: BLE001 - code that looks at data fails in many ways without any
        pass  # the real run below decides, and says what is wrong
    try:
        with evaluating(network), torch.no_grad():
            return _trace(network, torch.zeros((1, *shape), device=device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"The network does not run on an input of shape {tuple(shape)} (C, I, J, K): "
            f"{str(error).splitlines()[0]}."
        ) from error


def with_values(
    network: torch.nn.Module, layers: Sequence[LayerInfo], x: torch.Tensor
) -> list[LayerInfo]:
    """Run the network once and say which layers are dead or constant on this image.

    Parameters
    ----------
    network : torch.nn.Module
    layers : sequence of LayerInfo
    x : Tensor, shape (1, C, I, J, K)
        On the network's grid, of the shape that the layers were traced with.

    Returns
    -------
    list of LayerInfo
    """
    found: dict[str, str] = {}

    def look(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 5:
            low, high = torch.aminmax(output.flatten(2), dim=2)
            dead = not bool(low.any() or high.any())
            found[name] = _DEAD if dead else _CONSTANT * bool((low == high).all())

    modules = dict(network.named_modules())
    with ExitStack() as attached:
        for layer in layers:
            hook = modules[layer.name].register_forward_hook(
                lambda _m, _i, out, name=layer.name: look(name, out)
            )
            attached.callback(hook.remove)
        with evaluating(network), torch.no_grad():
            network(x.clone())
    return [
        layer
        if layer.problem == _SINGLE
        else replace(layer, problem=found[layer.name])
        if found.get(layer.name)
        else layer
        for layer in layers
    ]


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module has its own mode again, whatever happened.

    A frozen TorchScript module has no mode, and an exported one refuses ``eval()``.
    """
    modes = [(one, one.training) for one in network.modules() if hasattr(one, "training")]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _trace_without_data(
    network: torch.nn.Module, shape: Sequence[int], device: Any
) -> list[LayerInfo]:
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        with FakeCopyMode(fake):
            twin = copy.deepcopy(network)
        with evaluating(twin):
            return _trace(twin, torch.empty((1, *shape), device=device))


def _trace(network: torch.nn.Module, volume: torch.Tensor) -> list[LayerInfo]:
    follower = Follower(volume)
    seen: dict[str, _Finished] = {}

    def note(name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 5:
            calls = seen.pop(name).calls + 1 if name in seen else 1
            same = any(output is one for one in tensors_in(inputs)) and not module._parameters
            place = follower.places.get(id(output))
            state = follower.state(output)
            seen[name] = _Finished(module, output, state, place, calls, same)

    with ExitStack() as attached:
        for name, module in network.named_modules():
            if name:
                hook = module.register_forward_hook(
                    lambda m, given, out, name=name: note(name, m, given, out)
                )
                attached.callback(hook.remove)
        attached.enter_context(follower)
        result = network(volume)
    final = {follower.state(tensor) for tensor in list(tensors_in((result,)))[:1]}
    normalised = follower.normalised - follower.used
    return [
        LayerInfo(
            name=name,
            kind=type(one.module).__name__,
            shape=tuple(one.output.shape[1:]),
            grid=one.place.grid if one.place else spread_evenly(volume, one.output),
            feeds_instance_norm=one.state in normalised,
            calls=one.calls,
            leaf=next(one.module.children(), None) is None,
            activation=_is_activation(one.module),
            final=one.state in final,
            passes_on=one.passes_on,
            problem=_problem(tuple(one.output.shape[2:]), normalised=one.state in normalised),
        )
        for name, one in seen.items()
        if one.place or _divides(volume, one.output)
    ]


@dataclass(frozen=True)
class _Finished:
    """A module's last call; `state` and `place` as they were when it finished."""

    module: torch.nn.Module
    output: torch.Tensor
    state: tuple[int, int]
    place: Place | None
    calls: int
    passes_on: bool


def _problem(shape: Sequence[int], *, normalised: bool) -> str:
    """What the network's structure says against a layer."""
    return _SINGLE if max(shape) == 1 else _NORMALISED * normalised


def _is_activation(module: torch.nn.Module) -> bool:
    kind, home = type(module).__name__, type(module).__module__
    monai_own = kind in ("MemoryEfficientSwish", "Swish", "Mish") and "blocks" in home
    return home.startswith("torch.nn.modules.activation") or monai_own


def _divides(volume: torch.Tensor, features: torch.Tensor) -> bool:
    """Whether features that were not followed may be a volume: channels-last ones are none."""
    sizes = zip(volume.shape[2:], features.shape[2:], strict=True)
    return all(full % part == 0 for full, part in sizes)
