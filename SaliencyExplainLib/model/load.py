"""Load what a person has: a network, a MONAI bundle, TorchScript, or weights and a network.

A model file can carry code: a pickle, a TorchScript program, a bundle whose configuration holds
Python expressions. Such files are opened only with ``trusted=True``; plain tensors are read with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError, UntrustedModelError
from .bundle import find_bundle, read_bundle
from .device import AUTOMATIC, choose_device
from .inferer import read_inferer
from .model import Model
from .preprocess import Preprocess

__all__ = ["load_model"]

_OPTIONS = (
    "task",
    "labels",
    "channels",
    "preprocess",
    "inferer",
    "activation",
    "network",
    "network_arguments",
    "device",
)
#: What reading a damaged file raises, as found by damaging some hundreds.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
#: Where training code puts the weights inside a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")


def load_model(source: Any, trusted: bool = False, **options: Any) -> Model:
    """Load a model.

    Parameters
    ----------
    source : torch.nn.Module, Model, str or Path
        A network; a MONAI bundle (folder or .zip; JSON or YAML); a TorchScript file (.ts, .pt); or
        a state dict (.pt, .pth, .safetensors) together with ``network=``.
    trusted : bool
        Whether code inside the file may run.
    task : {"segmentation", "classification", "regression"}
        Needed for everything but a bundle, which says it.
    labels, channels : sequence of str
        Names of outputs and inputs.
    preprocess : MONAI transform, optional
        From the scan's grid to the network's; None leaves the scan as it is.
    inferer : monai.inferers.Inferer, optional
        SlidingWindowInferer or SimpleInferer; None is the whole volume at once.
    activation : {"softmax", "sigmoid", "none"}
        Left out: "none" for regression, "sigmoid" for a single output, else "softmax".
    network : str or torch.nn.Module
        For a state dict: ``"package.module:factory"`` (called with `network_arguments`), or a
        network to fill.
    network_arguments : mapping
        Keyword arguments of the factory.
    device : str or torch.device
        Where the network runs: "cpu", "cuda", "cuda:1", "mps", or "auto" for the GPU there is.
        Left out: "auto" for a file, while a network that was given stays where it is.

    Returns
    -------
    Model
        Its network is in eval mode. A network that was given is not copied.

    Raises
    ------
    ModelError
        If the file is missing or of no known form, an option is unknown, or the weights do not fit.
    UntrustedModelError
        If loading would run code from the file.
    """
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ModelError(
            f"load_model has no option {unknown[0]!r}. Options: {', '.join(_OPTIONS)}."
        )
    if isinstance(source, Model):
        if options:
            raise ModelError(
                f"The model is loaded already; {', '.join(options)} cannot change it. Give the "
                "options when it is loaded first."
            )
        return source
    if isinstance(source, torch.nn.Module):
        facts: dict[str, Any] = {"network": source, "provenance": {"format": "network in memory"}}
        return _finished(facts, options, device=None)
    if not isinstance(source, str | PathLike):
        raise ModelError(
            f"A model is a network or the path of a file; {type(source).__name__} was given."
        )
    path = Path(source)
    if not path.exists():
        raise ModelError(
            f"There is no model at {str(path)!r}. Give a bundle folder or .zip, or a .ts, .pt or "
            ".pth file."
        )
    with find_bundle(path) as bundle:
        if bundle is not None:
            facts = read_bundle(bundle, trusted=trusted)
            if facts["network"] is None:
                facts["network"] = _scripted(facts["weights"])
            else:
                _fill(
                    facts["network"],
                    _read_weights(facts["weights"], trusted=trusted),
                    facts["weights"].name,
                )
            facts["provenance"] |= {"name": path.name, "sha256": _sha256(facts["weights"])}
            return _finished(facts, options)
    if path.is_dir():
        raise ModelError(
            f"The folder {path.name!r} is no MONAI bundle: it has no configs/metadata.json."
        )
    return _finished(_read_file(path, trusted, options), options)


def _read_file(path: Path, trusted: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    provenance = {"format": "TorchScript", "name": path.name, "sha256": _sha256(path)}
    if _is_torchscript(path):
        if not trusted:
            raise UntrustedModelError(
                f"{path.name!r} is a TorchScript file: it holds a program, which loading and "
                "running it would execute. "
                "If you know where it comes from, allow it with trusted=True (--trust)."
            )
        return {"network": _scripted(path), "provenance": provenance}
    weights = _read_weights(path, trusted=trusted)
    if isinstance(weights, torch.nn.Module):
        return {"network": weights, "provenance": provenance | {"format": "pickled network"}}
    network = options.get("network")
    if network is None:
        raise ModelError(
            f"{path.name!r} holds weights without a network. Say which network they belong to: "
            'network="package.module:factory" (--network), for example '
            '"monai.networks.nets:UNet" with network_arguments.'
        )
    network = _made(network, options.get("network_arguments") or {})
    _fill(network, weights, path.name)
    return {"network": network, "provenance": provenance | {"format": "state dict"}}


def _scripted(path: Path) -> torch.nn.Module:
    try:
        network: torch.nn.Module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise ModelError(
            f"{path.name!r} could not be opened as TorchScript: {_first_line(error)}."
        ) from error
    return network


def _finished(
    facts: dict[str, Any], options: Mapping[str, Any], device: str | None = AUTOMATIC
) -> Model:
    """Put a network and its facts together; `device` is where it goes unless an option says."""
    task = options.get("task") or facts.get("task")
    if task is None:
        raise ModelError(
            "The task of this model is not known. Say what it does: "
            'task="segmentation", "classification" or "regression" (--task).'
        )
    labels = _names("labels", options, facts)
    network = facts["network"]
    network.eval()
    device = options.get("device", device)
    if device is not None:
        network.to(choose_device(device))
    activation = options.get("activation") or facts.get("activation")
    if activation is None:
        activation = (
            "none" if task == "regression" else ("sigmoid" if len(labels) == 1 else "softmax")
        )
    count = sum(parameter.numel() for parameter in network.parameters())
    return Model(
        network=network,
        task=task,
        labels=labels,
        channels=_names("channels", options, facts),
        preprocess=_preprocess(options.get("preprocess", facts.get("preprocess"))),
        inferer=read_inferer(options.get("inferer", facts.get("inferer"))),
        activation=activation,
        provenance={**facts["provenance"], "class": type(network).__name__, "parameters": count},
    )


def _names(what: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str, ...]:
    names = options.get(what) or facts.get(what) or ()
    if isinstance(names, str):
        raise ModelError(f"The {what} are a list of names; the text {names!r} was given.")
    return tuple(str(name) for name in names)


def _preprocess(transform: Any) -> Preprocess:
    if isinstance(transform, Preprocess):
        return transform
    if transform is not None and not callable(transform):
        raise ModelError(
            f"The preprocessing must be a MONAI transform; {type(transform).__name__} was given."
        )
    return Preprocess(transform)


def _made(network: Any, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """The network that weights belong to."""
    if isinstance(network, torch.nn.Module):
        return network
    if not isinstance(network, str) or network.count(":") != 1:
        raise ModelError(
            f'The network is given as "package.module:factory"; {network!r} was given.'
        )
    module, name = network.split(":")
    try:
        made = getattr(importlib.import_module(module), name)(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"The network {network!r} could not be made: {_first_line(error)}."
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise ModelError(f"{network!r} gave {type(made).__name__}; a torch.nn.Module was expected.")
    return made


def _read_weights(path: Path, *, trusted: bool) -> Any:
    """A state dict (or, trusted, a pickled network)."""
    if not path.is_file():
        raise ModelError(
            f"The weights {path.name!r} are missing. Download the complete bundle, or put them "
            "there."
        )
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ModelError(
                f"{path.name!r} needs the package safetensors (pip install safetensors)."
            ) from error
        return load_file(str(path))
    with path.open("rb") as file:
        start = file.read(2)
    if not (zipfile.is_zipfile(path) or start[:1] == b"\x80"):
        raise ModelError(
            f"{path.name!r} is no model file. Give a bundle folder or .zip, or a .ts, .pt or .pth "
            "file."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trusted:
            raise UntrustedModelError(
                f"{path.name!r} holds pickled Python objects beside its tensors; opening them can "
                "run any code. "
                "If you know where it comes from, allow it with trusted=True (--trust)."
            ) from error
        content = _unpickled(path)
    except _DAMAGED as error:
        raise ModelError(
            f"{path.name!r} could not be read as weights: {_first_line(error)}."
        ) from error
    return content


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(f"{path.name!r} could not be unpickled: {_first_line(error)}.") from error


def _fill(network: torch.nn.Module, content: Any, name: str) -> None:
    """Load weights, wherever the checkpoint keeps them."""
    weights = content
    while isinstance(weights, Mapping) and not _is_state_dict(weights):
        inner = next(
            (weights[key] for key in _WRAPPERS if isinstance(weights.get(key), Mapping)), None
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
    for prefix in _PREFIXES:
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(
            f"The weights in {name!r} do not fit the network {type(network).__name__}: "
            f"{(lines or ['?'])[0]}. "
            "Check the network's arguments against those it was trained with."
        ) from error


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
