"""Layers of an exported program as layers of torch.nn again.

``torch.export.unflatten`` gives modules with the old names, but each is an interpreter of its part
of the graph. What asks for a module's type (DeepLift's rules, whether there is an instance
normalisation, which layer is an activation) would not know it. So a module that is one known
operation becomes the torch.nn module of that operation, with the same tensors, if it gives the
same answer bit by bit while the program is run on noise; else the interpreter stays.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch

__all__ = ["arguments_of", "with_own_layers"]


def with_own_layers(program: Any, example: torch.Tensor | None) -> tuple[torch.nn.Module, str]:
    """Unflatten a program, with layers of torch.nn where they can be made.

    Parameters
    ----------
    program : torch.export.ExportedProgram
    example : Tensor, optional
        An input of a shape to compare on; without one nothing is rebuilt.

    Returns
    -------
    torch.nn.Module
    str
        How many of the layers could be rebuilt, in words.
    """
    network: torch.nn.Module = torch.export.unflatten(program)
    leaves = {name: one for name, one in network.named_modules() if _is_leaf(name, one)}
    same: dict[str, torch.nn.Module] = {}
    if example is not None:
        # Not the example itself: often it is all zero, where many layers would look alike.
        noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
        with ExitStack() as attached, torch.no_grad():
            for name, leaf in leaves.items():
                layer = _layer(leaf)
                if layer is not None:
                    _compare(name, leaf, layer.eval(), same, attached)
            # A program that does not take noise (an index, a check of its values) keeps its own.
            with suppress(RuntimeError, AssertionError, IndexError, ValueError):
                network(noise.to(example))
    for name, layer in same.items():
        home, _, own = name.rpartition(".")
        setattr(network.get_submodule(home), own, layer)
    return network, f"{len(same)} of {len(leaves)} as torch.nn modules"


def _compare(
    name: str,
    leaf: torch.nn.Module,
    layer: torch.nn.Module,
    same: dict[str, torch.nn.Module],
    attached: ExitStack,
) -> None:
    """When the leaf runs, put the layer among the `same` if it answers alike."""
    given: list[torch.Tensor] = []

    def keep(_module: Any, inputs: Any) -> None:
        given.append(inputs[0].clone())  # an operation in place would change it

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        try:
            alike = torch.equal(layer(given.pop()), output)
        except (RuntimeError, TypeError, ValueError):
            alike = False
        if alike:
            same[name] = layer

    attached.callback(leaf.register_forward_pre_hook(keep).remove)
    attached.callback(leaf.register_forward_hook(look).remove)


def _is_leaf(name: str, module: torch.nn.Module) -> bool:
    return bool(name) and hasattr(module, "graph") and next(module.children(), None) is None


def _layer(leaf: torch.nn.Module) -> torch.nn.Module | None:
    """The torch.nn module that a part of the graph is; None if it is no single known operation."""
    nodes: list[Any] = list(leaf.graph.nodes)  # type: ignore[union-attr, arg-type]  # an fx graph
    calls = [one for one in nodes if one.op == "call_function"]
    inputs = [one for one in nodes if one.op == "placeholder"]
    if len(calls) != 1 or len(inputs) != 1 or not hasattr(calls[0].target, "overloadpacket"):
        return None
    call = calls[0]
    name = call.target.overloadpacket.__name__
    build = _KNOWN.get(name.rstrip("_"))
    given = arguments_of(call)
    if build is None or next(iter(given.values())) is not inputs[0]:
        return None
    tensors: dict[str, torch.Tensor | None] = {}
    seen = inputs[0].meta.get("val")
    options: dict[str, Any] = {"inplace": name.endswith("_"), "seen": getattr(seen, "shape", ())}
    for key, value in list(given.items())[1:]:
        if isinstance(value, torch.fx.Node):
            if value.op != "get_attr":
                return None
            tensors[key] = _attribute(leaf, str(value.target))
        else:
            options[key] = value
    return build(tensors, options)


def arguments_of(node: Any) -> dict[str, Any]:
    """Arguments of an operation by the names of its schema, with its defaults."""
    schema = node.target._schema.arguments
    return {
        one.name: node.args[at]
        if at < len(node.args)
        else node.kwargs.get(one.name, one.default_value)
        for at, one in enumerate(schema)
    }


def _attribute(module: Any, path: str) -> torch.Tensor:
    for part in path.split("."):
        module = getattr(module, part)
    tensor: torch.Tensor = module
    return tensor


def _with(layer: torch.nn.Module, tensors: dict[str, torch.Tensor | None]) -> torch.nn.Module:
    """Give a layer that was made without data its tensors."""
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    return layer


def _convolution(transposed: bool) -> Callable[[Any, Any], torch.nn.Module | None]:
    def build(tensors: Any, options: Any) -> torch.nn.Module | None:
        weight, bias = tensors["weight"], tensors.get("bias")
        groups = options["groups"]
        kind = torch.nn.ConvTranspose3d if transposed else torch.nn.Conv3d
        inputs = weight.shape[0] if transposed else weight.shape[1] * groups
        outputs = weight.shape[1] * groups if transposed else weight.shape[0]
        names = ("stride", "padding", "dilation", *(["output_padding"] if transposed else []))
        steps: dict[str, Any] = {
            name: options[name] if isinstance(options[name], str) else _three(options[name])
            for name in names
        }
        layer = kind(
            inputs,
            outputs,
            tuple(weight.shape[2:]),
            groups=groups,
            bias=bias is not None,
            device="meta",
            **steps,
        )
        return _with(layer, {"weight": weight, "bias": bias})

    return build


def _three(value: Any) -> tuple[int, ...]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values * 3 if len(values) == 1 else values)


def _batch_norm(tensors: Any, options: Any) -> torch.nn.Module | None:
    mean = tensors.get("running_mean")
    if mean is None or options["training"]:
        return None
    layer = torch.nn.BatchNorm3d(
        len(mean),
        eps=options["eps"],
        momentum=options["momentum"],
        affine=tensors.get("weight") is not None,
        device="meta",
    )
    layer.num_batches_tracked = torch.tensor(0)
    return _with(layer, tensors)


def _instance_norm(tensors: Any, options: Any) -> torch.nn.Module | None:
    if tensors.get("running_mean") is not None or not options["use_input_stats"]:
        return None
    weight = tensors.get("weight")
    if len(options["seen"]) != 5:
        return None
    layer = torch.nn.InstanceNorm3d(
        int(options["seen"][1]),
        eps=options["eps"],
        momentum=options["momentum"],
        affine=weight is not None,
        device="meta",
    )
    return _with(layer, {} if weight is None else tensors)


def _group_norm(tensors: Any, options: Any) -> torch.nn.Module | None:
    weight = tensors.get("weight")
    if weight is None:
        return None
    layer = torch.nn.GroupNorm(options["num_groups"], len(weight), options["eps"], device="meta")
    return _with(layer, tensors)


def _layer_norm(tensors: Any, options: Any) -> torch.nn.Module | None:
    affine = tensors.get("weight") is not None
    layer = torch.nn.LayerNorm(
        options["normalized_shape"],
        eps=options["eps"],
        elementwise_affine=affine,
        bias=tensors.get("bias") is not None,
        device="meta",
    )
    return _with(layer, tensors if affine else {})


def _linear(tensors: Any, options: Any) -> torch.nn.Module | None:  # noqa: ARG001 - one signature
    weight, bias = tensors["weight"], tensors.get("bias")
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _with(layer, {"weight": weight, "bias": bias})


def _prelu(tensors: Any, options: Any) -> torch.nn.Module | None:  # noqa: ARG001 - one signature
    layer = torch.nn.PReLU(tensors["weight"].numel(), device="meta")
    return _with(layer, {"weight": tensors["weight"]})


def _plain(
    kind: Callable[..., torch.nn.Module], **names: str
) -> Callable[[Any, Any], torch.nn.Module | None]:
    """Make a layer without tensors from the options that it calls otherwise."""

    def build(tensors: Any, options: Any) -> torch.nn.Module | None:
        values = {own: options[name] for own, name in names.items()}
        tuples = {own: tuple(one) if isinstance(one, list) else one for own, one in values.items()}
        return None if tensors else kind(**tuples)

    return build


_KNOWN: dict[str, Callable[[Any, Any], torch.nn.Module | None]] = {
    "conv3d": _convolution(transposed=False),
    "conv_transpose3d": _convolution(transposed=True),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "prelu": _prelu,
    "relu": _plain(torch.nn.ReLU, inplace="inplace"),
    "leaky_relu": _plain(torch.nn.LeakyReLU, negative_slope="negative_slope", inplace="inplace"),
    "elu": _plain(torch.nn.ELU, alpha="alpha", inplace="inplace"),
    "silu": _plain(torch.nn.SiLU, inplace="inplace"),
    "gelu": _plain(torch.nn.GELU, approximate="approximate"),
    "sigmoid": _plain(torch.nn.Sigmoid),
    "tanh": _plain(torch.nn.Tanh),
    "softmax": _plain(torch.nn.Softmax, dim="dim"),
    "dropout": _plain(torch.nn.Dropout, p="p", inplace="inplace"),
    "max_pool3d": _plain(
        torch.nn.MaxPool3d,
        kernel_size="kernel_size",
        stride="stride",
        padding="padding",
        dilation="dilation",
        ceil_mode="ceil_mode",
    ),
    "avg_pool3d": _plain(
        torch.nn.AvgPool3d,
        kernel_size="kernel_size",
        stride="stride",
        padding="padding",
        ceil_mode="ceil_mode",
        count_include_pad="count_include_pad",
        divisor_override="divisor_override",
    ),
    "adaptive_avg_pool3d": _plain(torch.nn.AdaptiveAvgPool3d, output_size="output_size"),
}
