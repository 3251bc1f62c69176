"""Weights from checkpoints: read without running what a file may carry, and put into a network.

``torch.load(weights_only=True)`` is what opens a file that nobody has vouched for. NumPy numbers
beside the tensors (an epoch's loss, the best Dice), which it refuses, are let through as blanks:
what stands for them here is called in NumPy's place, so that nothing of NumPy runs either.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError, UntrustedModelError
from .limits import refuse_greedy_pickle, refuse_packed

__all__ = ["DAMAGED", "fill", "first_line", "read_weights", "sha256_of_file"]

#: What reading a damaged file raises, as found by damaging some hundreds.
DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
#: Where training code puts the weights inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "net", "network")
#: What wrappers of networks (DataParallel, torch.compile, Lightning modules) put before each name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


class _Blank:
    """Stands for the type of a NumPy number; keeps nothing."""

    def __init__(self, *content: Any) -> None:
        """Take what a pickle gives."""

    def __setstate__(self, state: Any) -> None:
        """Take what a pickle gives."""


def _called(path: str, stand_in: Any) -> Any:
    """Let torch find something under the path that a pickle calls it by."""
    stand_in.__module__, _, stand_in.__qualname__ = path.rpartition(".")
    stand_in.__name__ = stand_in.__qualname__
    return stand_in


#: What is called in place of what a pickle of a NumPy number (NumPy 1 and 2) calls.
_NUMBERS = [
    _called("numpy.core.multiarray.scalar", lambda *_: None),
    _called("numpy._core.multiarray.scalar", lambda *_: None),
    _called("numpy.dtype", _Blank),
]


def read_weights(path: Path, *, trusted: bool) -> Any:
    """Read a state dict or a checkpoint; trusted, whatever was pickled.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or no file of weights.
    UntrustedModelError
        If it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise ModelError(
            f"The weights {path.name!r} are missing. Download the complete bundle, or put them "
            "there."
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(2)
    if not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):
        raise ModelError(
            f"{path.name!r} is no model file. Give a bundle folder or .zip, an nnU-Net folder, or "
            "a .ts, .pt2, .pt, .pth or .safetensors file."
        )
    if not trusted:
        refuse_greedy_pickle(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                refuse_packed(archive, path.name, path.stat().st_size)
    if not trusted:
        refuse_greedy_pickle(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trusted:
            raise UntrustedModelError(
                f"{path.name!r} holds pickled Python objects beside its tensors; opening them can "
                "run any code. "
                "If you know where it comes from, allow it with trusted=True (--trust)."
            ) from error
        content = _unpickled(path)
    except DAMAGED as error:
        raise ModelError(
            f"{path.name!r} could not be read as weights: {first_line(error)}."
        ) from error
    return content


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"{path.name!r} needs the package safetensors (pip install safetensors)."
        ) from error
    try:
        return load_file(str(path), device="cpu")
    except (SafetensorError, *DAMAGED) as error:
        raise ModelError(
            f"{path.name!r} could not be read as safetensors: {first_line(error)}."
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(f"{path.name!r} could not be unpickled: {first_line(error)}.") from error


def fill(network: torch.nn.Module, content: Any, name: str) -> None:
    """Load weights into a network, wherever the checkpoint keeps them.

    Parameters
    ----------
    network : torch.nn.Module
    content : Any
        What :func:`read_weights` gave.
    name : str
        Of the file, for messages.

    Raises
    ------
    ModelError
        If there are no weights, or they are those of another network.
    """
    weights = _fitting(_state_dict(content, name), network)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"The weights in {name!r} do not fit the network {type(network).__name__}: "
            f"{_differences(network, weights) or first_line(error)}. "
            "Check the network's arguments against those it was trained with."
        ) from error


def _state_dict(content: Any, name: str) -> dict[str, torch.Tensor]:
    weights = content
    while isinstance(weights, Mapping) and not _is_state_dict(weights):
        inner = next(
            (
                weights[key]
                for key in _WRAPPERS
                if isinstance(weights.get(key), Mapping | torch.nn.Module)
            ),
            None,
        )
        if inner is None:
            keys = ", ".join(map(str, list(weights)[:6]))
            raise ModelError(
                f"{name!r} holds no state dict (found: {keys}). Expected tensors by name, or one "
                f"of {_WRAPPERS}."
            )
        weights = inner
    if isinstance(weights, torch.nn.Module):
        weights = weights.state_dict()
    if not isinstance(weights, Mapping):
        raise ModelError(
            f"{name!r} holds {type(weights).__name__}; a state dict (tensors by name) was expected."
        )
    return dict(weights)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )


def _fitting(weights: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the network's own names.

    MONAI's U-Net calls its tensors ``model.*`` itself, so a prefix goes only where more names fit
    without it. A Lightning checkpoint keeps the loss beside the network: what is not under the
    prefix is left out where the rest is exactly the network.
    """
    own = set(network.state_dict())
    forms, form = [weights], weights
    while prefix := next((one for one in _PREFIXES if form and _all_under(one, form)), None):
        form = _without(prefix, form)
        forms.append(form)
    for one in _PREFIXES:
        part = _without(one, weights)
        if set(part) == own:
            forms.append(part)
    return max(forms, key=lambda one: len(own & set(one)))


def _all_under(prefix: str, weights: Mapping[str, Any]) -> bool:
    return all(name.startswith(prefix) for name in weights)


def _without(prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
    }


def _differences(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> str:
    """What is missing, too many, or of another shape: numbers, and the first few names."""
    own = network.state_dict()
    missing = [name for name in own if name not in weights]
    foreign = [name for name in weights if name not in own]
    reshaped = [
        f"{name} is {_shape(weights[name])} in the file and {_shape(own[name])} in the network"
        for name in own
        if name in weights and getattr(own[name], "shape", 0) != getattr(weights[name], "shape", 0)
    ]
    told = [
        f"{len(missing)} of its {len(own)} tensors are missing ({_some(missing)})" * bool(missing),
        f"{len(foreign)} in the file are not its own ({_some(foreign)})" * bool(foreign),
        f"{len(reshaped)} have another shape ({reshaped[0]})" if reshaped else "",
    ]
    return "; ".join(one for one in told if one)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _shape(tensor: Any) -> str:
    return " x ".join(map(str, getattr(tensor, "shape", ()))) or "one number"


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without a full stop at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
