"""Load what a person has, in whatever form a network is kept.

In memory, as a MONAI bundle, an nnU-Net folder, TorchScript, a program of torch.export, or weights
beside a network. A model file can carry code: a pickle, a TorchScript or exported program, a bundle
whose configuration holds Python expressions, a plan that names classes. Such files are opened only
with ``trusted=True``; plain tensors are read with ``weights_only=True``.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError, UntrustedModelError
from .bundle import find_bundle, read_bundle
from .checkpoint import fill, first_line, read_weights, sha256_of_file
from .device import AUTOMATIC, choose_device
from .exported import is_exported, read_exported
from .inferer import Windows, read_inferer
from .model import Model
from .nnunet import find_nnunet, read_nnunet
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


def load_model(source: Any, trusted: bool = False, **options: Any) -> Model:
    """Load a model.

    Parameters
    ----------
    source : torch.nn.Module, Model, str or Path
        A network; a MONAI bundle (folder or .zip; JSON or YAML); a trained folder of nnU-Net v2, or
        a fold or checkpoint in it (the first fold, where none is named); a TorchScript file (.ts,
        .pt); a program of torch.export (.pt2); or a state dict (.pt, .pth, .safetensors) together
        with ``network=``.
    trusted : bool
        Whether code inside the file may run.
    task : {"segmentation", "classification", "regression"}
        Needed for everything but a bundle or an nnU-Net folder, which say it.
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
            f"There is no model at {str(path)!r}. Give a bundle folder or .zip, an nnU-Net folder, "
            "or a .ts, .pt2, .pt, .pth or .safetensors file."
        )
    if not (path.is_file() or path.is_dir()):
        raise ModelError(
            f"{str(path)!r} is neither a file nor a folder (a device or a pipe). Give a model."
        )
    return _finished(_read(path, trusted, options), options)


def _read(path: Path, trusted: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Network and facts of a file or folder."""
    with find_bundle(path) as bundle:
        if bundle is not None:
            return _read_bundle(bundle, path.name, trusted)
    trained = find_nnunet(path)
    if trained is not None:
        return read_nnunet(trained, trusted=trusted)
    if path.is_dir():
        raise ModelError(
            f"The folder {path.name!r} is no MONAI bundle (it has no configs/metadata.json) and no "
            "trained nnU-Net folder (it has no plans.json and dataset.json)."
        )
    return _read_file(path, trusted, options)


def _read_bundle(bundle: Path, name: str, trusted: bool) -> dict[str, Any]:
    facts = read_bundle(bundle, trusted=trusted)
    weights: Path = facts["weights"]
    if facts["network"] is None:
        facts["network"] = _scripted(weights)
    else:
        fill(facts["network"], read_weights(weights, trusted=trusted), weights.name)
    facts["provenance"] |= {"name": name, "sha256": sha256_of_file(weights)}
    return facts


def _read_file(path: Path, trusted: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    provenance: dict[str, Any] = {"format": "TorchScript", "name": path.name}
    names = _names_in(path)
    if any(name.endswith("/constants.pkl") for name in names):
        _need_trust(path, "a TorchScript file: it holds a program", trusted)
        provenance["sha256"] = sha256_of_file(path)
        return {"network": _scripted(path), "provenance": provenance}
    if is_exported(names):
        _need_trust(path, "a torch.export file: it holds a program and pickled objects", trusted)
        return read_exported(path, names)
    if any(name.endswith("plans.json") for name in names):
        raise ModelError(
            f"{path.name!r} is a zipped nnU-Net model. Unzip it, and give the folder that holds "
            "plans.json."
        )
    weights = read_weights(path, trusted=trusted)
    provenance["sha256"] = sha256_of_file(path)
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
    fill(network, weights, path.name)
    safe = path.suffix == ".safetensors"
    provenance["format"] = "safetensors" if safe else "state dict"
    return {"network": network, "provenance": provenance}


def _need_trust(path: Path, what: str, trusted: bool) -> None:
    if not trusted:
        raise UntrustedModelError(
            f"{path.name!r} is {what}, which loading and running it would execute. "
            "If you know where it comes from, allow it with trusted=True (--trust)."
        )


def _names_in(path: Path) -> list[str]:
    """Names of the files in a zip; none in another file."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _scripted(path: Path) -> torch.nn.Module:
    try:
        network: torch.nn.Module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise ModelError(
            f"{path.name!r} could not be opened as TorchScript: {first_line(error)}."
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
    network.eval()  # a frozen TorchScript network is so already, and has no mode
    device = options.get("device", device)
    if device is not None:
        network.to(choose_device(device))
    activation = options.get("activation") or facts.get("activation")
    if activation is None:
        activation = (
            "none" if task == "regression" else ("sigmoid" if len(labels) == 1 else "softmax")
        )
    count = sum(parameter.numel() for parameter in network.parameters())
    inferer = read_inferer(options.get("inferer", facts.get("inferer")))
    _refuse_window(inferer, facts)
    return Model(
        network=network,
        task=task,
        labels=labels,
        channels=_names("channels", options, facts),
        preprocess=_preprocess(options.get("preprocess", facts.get("preprocess"))),
        inferer=inferer,
        activation=activation,
        provenance={"class": type(network).__name__, **facts["provenance"], "parameters": count},
    )


def _refuse_window(inferer: Any, facts: Mapping[str, Any]) -> None:
    """A program that was exported for one size takes no windows of another."""
    sizes = facts.get("accepts", ())[2:]
    if not isinstance(inferer, Windows) or not sizes:
        return
    pairs = list(zip(inferer.roi_size, sizes, strict=True))
    if any(fixed is not None and size != fixed for size, fixed in pairs):
        raise ModelError(
            f"The program was exported for an input of {facts['provenance']['input']} (B, C, I, J, "
            f"K); windows of {' x '.join(map(str, inferer.roi_size))} were asked for. Leave out "
            "inferer=, or export it for that size."
        )


def _names(what: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str, ...]:
    names = options.get(what) or facts.get(what) or ()
    if isinstance(names, str) or not isinstance(names, Iterable):
        kind = "text" if isinstance(names, str) else "value"
        raise ModelError(f"The {what} are a list of names; the {kind} {names!r} was given.")
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
            f"The network {network!r} could not be made: {first_line(error)}."
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise ModelError(f"{network!r} gave {type(made).__name__}; a torch.nn.Module was expected.")
    return made
