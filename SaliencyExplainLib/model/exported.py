"""Programs of ``torch.export`` (``.pt2``): the network with its own modules and names again.

An exported program is one flat graph that remembers which module each operation came from.
``torch.export.unflatten`` gives the modules back, and :mod:`.exported_layers` their types, so that
layer methods work as on the network that was exported. The program was traced for one shape, or a
range of shapes: that becomes the window.

Loading runs what the file says (``torch.load`` without ``weights_only``, expressions that are
evaluated): the caller asks for trust before.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from .checkpoint import first_line, sha256_of_file
from .exported_layers import arguments_of, with_own_layers
from .inferer import Windows

__all__ = ["is_exported", "read_exported"]

#: A device in the JSON of a program.
_GPU = re.compile(rb'"type":\s*"cuda",\s*"index":\s*(\d+|null)')
#: Operations with a switch for training, and where it stands among their arguments.
_TRAINING = {
    "batch_norm": "training",
    "dropout": "train",
    "feature_dropout": "train",
    "alpha_dropout": "train",
    "feature_alpha_dropout": "train",
    "native_dropout": "train",
    "rrelu": "training",
    "_native_batch_norm_legit": "training",
    "_native_batch_norm_legit_functional": "training",
    "native_batch_norm": "training",
    "_batch_norm_with_update": None,
    "_batch_norm_with_update_functional": None,
}


def is_exported(names: Sequence[str]) -> bool:
    """Whether the files in a zip are those of an exported or compiled program (.pt2)."""
    return any(
        name.endswith("archive_format") or name == "serialized_exported_program.json"
        for name in names
    )


def read_exported(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Read a program that the person trusts.

    Returns
    -------
    dict
        ``network``, ``inferer``, ``accepts`` (sizes that the program was traced for, None where any
        goes), ``provenance``.

    Raises
    ------
    ModelError
        If it is compiled, damaged, was exported in training mode, or takes anything but one volume.
    """
    if any("/aotinductor/" in name for name in names):
        raise ModelError(
            f"{path.name!r} is a compiled program (AOTInductor), which gives no gradients and has "
            "no layers. Save the network with torch.export.save instead."
        )
    program = _loaded(path)
    _refuse_training(program, path.name)
    shape, told = _input(program, path.name)
    rank = _output_rank(program, path.name)
    network, layers = with_own_layers(program, _example(program))
    sizes = shape[2:]
    i, j, k = (-1 if size is None else size for size in sizes)
    slides = rank == 5 and any(size is not None for size in sizes)
    return {
        "network": network,
        "inferer": Windows((i, j, k)) if slides else None,
        "accepts": shape,
        "provenance": {
            "format": "torch.export",
            "name": path.name,
            "sha256": sha256_of_file(path),
            "input": told,
            "input_channels": shape[1],
            "layers": layers,
            "class": _class_of(program),
        },
    }


def _loaded(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(
                str(path) if torch.cuda.is_available() else _on_cpu(path.read_bytes())
            )
    except Exception as error:
        raise ModelError(
            f"{path.name!r} could not be opened as a program of torch.export: {first_line(error)}. "
            f"It is read with PyTorch {torch.__version__}; export it again with a version that is "
            "not newer."
        ) from error


def _on_cpu(content: bytes) -> io.BytesIO:
    """A program that names no GPU; ``torch.export.load`` has no ``map_location`` (PyTorch 2.13)."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as given:
        if not any(_GPU.search(given.read(one)) for one in given.namelist() if _is_json(one)):
            return io.BytesIO(content)
        with zipfile.ZipFile(made, "w") as archive:
            for name in given.namelist():
                part = given.read(name)
                if _is_json(name):
                    part = _GPU.sub(b'"type": "cpu", "index": null', part)
                elif name.endswith(".pt"):
                    kept, moved = io.BytesIO(part), io.BytesIO()
                    torch.save(torch.load(kept, map_location="cpu", weights_only=False), moved)
                    part = moved.getvalue()
                archive.writestr(name, part)
    made.seek(0)
    return made


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def _refuse_training(program: Any, name: str) -> None:
    """A network that was exported before ``eval()`` draws at random, and learns from each image."""
    for node in program.graph.nodes:
        packet = getattr(getattr(node.target, "overloadpacket", None), "__name__", "").rstrip("_")
        if packet not in _TRAINING:
            continue
        switch = _TRAINING[packet]
        if switch is None or arguments_of(node).get(switch) is True:
            raise ModelError(
                f"{name!r} was exported in training mode: its {node.name} would still change from "
                "run to run. Call network.eval() before torch.export.export."
            )


def _input(program: Any, name: str) -> tuple[tuple[int | None, ...], str]:
    """Sizes (B, C, I, J, K) that the program takes, None where they may vary, and in words."""
    given = [program.graph_signature.user_inputs, _placeholders(program)]
    values = [given[1].get(one) for one in given[0]]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor):
        raise ModelError(
            f"{name!r} takes {len(values)} inputs; one volume (B, C, I, J, K) was expected. Export "
            "a network that takes the image alone."
        )
    if values[0].ndim != 5:
        raise ModelError(
            f"{name!r} takes an input with {values[0].ndim} axes. This extension explains networks "
            "that take 3-D volumes (B, C, I, J, K)."
        )
    sizes: list[int | None] = []
    told: list[str] = []
    for size in values[0].shape:
        fixed = isinstance(size, int)
        sizes.append(size if fixed else None)
        told.append(str(size) if fixed else _range(program, size))
    if sizes[0] not in (None, 1):
        raise ModelError(
            f"{name!r} was exported for batches of {sizes[0]} images. Export it with an example of "
            "one image, or with a dynamic batch."
        )
    return tuple(sizes), " x ".join(told)


def _placeholders(program: Any) -> dict[str, Any]:
    return {one.name: one.meta.get("val") for one in program.graph.nodes if one.op == "placeholder"}


def _range(program: Any, size: Any) -> str:
    """Sizes that may vary: "4 to 64", "from 4 on"."""
    known = program.range_constraints.get(size.node.expr)
    if known is None:
        return "any"
    low, high = int(known.lower), str(known.upper)
    return f"{low} to {high}" if high.isdigit() else f"from {low} on"


def _output_rank(program: Any, name: str) -> int:
    """Axes of the one tensor that the program gives."""
    last = next(iter(reversed(program.graph.nodes)))
    given = program.graph_signature.user_outputs
    values = {one.name: one.meta.get("val") for one in last.all_input_nodes}
    found = [values.get(one) for one in given]
    if len(found) != 1 or not isinstance(found[0], torch.Tensor) or found[0].ndim not in (2, 5):
        raise ModelError(
            f"{name!r} gives {len(found)} outputs of which one tensor (B, O, I, J, K) or (B, O) "
            "was expected. Export a network that gives its scores alone."
        )
    return int(found[0].ndim)


def _class_of(program: Any) -> str:
    """Name of the class of the network that was exported, as its operations tell."""
    for node in program.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack and stack[0][0] == "":
            kind = stack[0][1]
            return str(getattr(kind, "__name__", kind)).rpartition(".")[2]
    return "exported program"


def _example(program: Any) -> torch.Tensor | None:
    """The image that the program was exported with, where the file keeps it."""
    kept = program.example_inputs
    inputs = kept[0] if kept else ()
    return inputs[0].detach() if inputs and isinstance(inputs[0], torch.Tensor) else None
