"""The network of an nnU-Net v2 plan, built by the package dynamic-network-architectures.

Without trust a plan may name nothing but that package's networks and layers of torch.nn, with plain
values as their arguments. Deep supervision is off: the network gives its scores alone.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from ..errors import ModelError, UntrustedModelError
from .checkpoint import first_line
from .limits import bounded_memory

__all__ = ["build_network"]

_NETWORKS = "dynamic_network_architectures.architectures"
#: What plans that are older than their ``architecture`` section call their networks.
_OLD_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")


def build_network(
    configuration: dict[str, Any], inputs: int, outputs: int, *, trusted: bool
) -> torch.nn.Module:
    """Build the network of a configuration of a plan, without weights.

    Parameters
    ----------
    configuration : dict
        Of plans.json, with what it inherits.
    inputs, outputs : int
        Channels.
    trusted : bool
        Whether classes outside of dynamic-network-architectures and torch.nn may be imported.

    Raises
    ------
    ModelError
        If a package or class is missing, or the network cannot be built.
    UntrustedModelError
        If the plan names such a class and `trusted` is False.
    """
    architecture = configuration.get("architecture") or _old_architecture(configuration)
    kind = _network_class(str(architecture["network_class_name"]), trusted=trusted)
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        if arguments.get(name) is not None:
            arguments[name] = _layer_class(str(arguments[name]), trusted=trusted)
    if "deep_supervision" in inspect.signature(kind).parameters:
        arguments["deep_supervision"] = False
    try:
        with nullcontext() if trusted else bounded_memory():
            network = kind(input_channels=inputs, num_classes=outputs, **arguments)
    except (AssertionError, RuntimeError, ImportError, MemoryError) as error:
        raise ModelError(
            f"The nnU-Net network {kind.__name__} could not be built: {first_line(error)}. Check "
            "the plan."
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise ModelError(
            f"The nnU-Net plan's {kind.__name__} gave {type(network).__name__}; a network was "
            "expected."
        )
    return network


def _network_class(name: str, *, trusted: bool) -> Any:
    if not name.startswith(f"{_NETWORKS}."):
        if not trusted:
            raise UntrustedModelError(
                f"The nnU-Net plan builds {name!r}, which is no network of "
                "dynamic-network-architectures: importing it would run code. If you know where the "
                "folder comes from, give the trainer's folder and allow it with trusted=True "
                "(--trust)."
            )
        found = pydoc.locate(name)
        if found is None:
            raise ModelError(f"The nnU-Net network {name!r} is not installed. Install its package.")
        return found
    module, _, kind = name.rpartition(".")
    for place in (module, f"{_NETWORKS}.unet"):
        try:
            found = getattr(importlib.import_module(place), kind, None)
        except ModuleNotFoundError as error:
            if error.name and not error.name.startswith("dynamic_network_architectures"):
                raise ModelError(
                    f"The nnU-Net network {kind} needs the package {error.name!r}, which is not "
                    f"installed (pip install {error.name})."
                ) from error
            if error.name == "dynamic_network_architectures":
                raise ModelError(
                    "This is an nnU-Net folder. Its network is built by the package "
                    "dynamic-network-architectures, which is not installed (pip install --no-deps "
                    "dynamic-network-architectures)."
                ) from error
            continue
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            return found
    raise ModelError(
        f"The installed dynamic-network-architectures has no network {kind!r}. Install the version "
        "that the model was trained with."
    )


def _layer_class(name: str, *, trusted: bool) -> Any:
    """A class of torch.nn by its path, such as ``torch.nn.modules.conv.Conv3d``."""
    module, _, kind = name.rpartition(".")
    found = getattr(torch.nn, kind, None)
    known = module == "torch.nn" or module.startswith("torch.nn.modules.")
    if known and isinstance(found, type) and issubclass(found, torch.nn.Module):
        return found
    if trusted and (located := pydoc.locate(name)) is not None:
        return located
    if trusted or known:
        raise ModelError(f"The nnU-Net plan names the layer {name!r}, which is not installed.")
    raise UntrustedModelError(
        f"The nnU-Net plan names {name!r}, which is no layer of torch.nn: importing it would run "
        "code. If you know where the folder comes from, give the trainer's folder and allow it "
        "with trusted=True (--trust)."
    )


def _old_architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The ``architecture`` section of a plan from before nnunetv2 2.3, which had none."""
    kind = configuration["UNet_class_name"]
    if kind not in _OLD_NETWORKS:
        raise ModelError(
            f"The nnU-Net plan is of an old kind with the network {kind!r}. Known there: "
            f"{', '.join(_OLD_NETWORKS)}."
        )
    convolutions = list(configuration["n_conv_per_stage_encoder"])
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    arguments: dict[str, Any] = {
        "n_stages": len(convolutions),
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(convolutions))],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    each = "n_conv_per_stage" if kind == _OLD_NETWORKS[0] else "n_blocks_per_stage"
    return {
        "network_class_name": f"{_NETWORKS}.unet.{kind}",
        "arch_kwargs": arguments | {each: convolutions},
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
