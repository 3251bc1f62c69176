"""What a bundle's configuration may do without trust: build parts of MONAI from plain values.

MONAI runs every ``$import`` of a configuration that it is given, wherever it stands, opens every
``%`` macro, and looks up a reader of images by any dotted name. So only what was checked here is
handed to it: the wanted sections and what they refer to. Readers lose their arguments before.
"""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import ModelError, UntrustedModelError

__all__ = ["harmless_config", "without_reading"]

#: Transforms of MONAI that run code, import packages or write files when built or called.
_ACTIVE_TRANSFORMS = re.compile(
    r"^(Rand)?(Lambda|TorchVision|TorchIO|SaveImage|Save|Cucim|Cu|Img2Tensorboard|DataStats)"
)
#: They build what their ``reader`` names, any function or a package that is not installed.
_READING = re.compile(r"^LoadImage(d|D|Dict)?$")


def harmless_config(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the named sections of a configuration and all that they refer to.

    Parameters
    ----------
    config : dict
        The whole configuration, :func:`without_reading`; it is not changed.
    names : sequence of str
        Sections that will be built.

    Raises
    ------
    UntrustedModelError
        If something in these sections could run code.
    ModelError
        If a reference points outside the configuration.
    """
    for key in map(str, config):
        if "#" in key or "::" in key:
            raise _refused(key, "changes a part by its path")
    needed: dict[str, Any] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in needed or name not in config:
            continue
        needed[name] = config[name]
        for where, value in _leaves(needed[name], name):
            reason = _code_in(where, value)
            if reason:
                raise _refused(where, reason)
            todo.extend(_references(where, value))
    return needed


def _refused(where: str, reason: str) -> UntrustedModelError:
    return UntrustedModelError(
        f"The bundle's configuration would run code when loaded: {where} {reason}. "
        "If you know where the bundle comes from, allow it with trusted=True (--trust)."
    )


def _code_in(where: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    if value.startswith("$"):
        return f"is the Python expression {_short(value)}"
    if value.startswith("%"):
        return f"reads the file {_short(value)}"
    if "://" in value:
        return f"downloads {_short(value)}"
    if where.endswith("_mode_") and value != "default":
        return f"asks for the mode {_short(value)}"
    if where.endswith("_target_") and not _harmless(value):
        return (
            f"builds {_short(value)}, which is no network, transform or inferer of MONAI "
            "that only computes"
        )
    return None


def _harmless(target: str) -> bool:
    """Whether a ``_target_`` is a network, transform or inferer of MONAI that only computes."""
    from monai import transforms
    from monai.inferers import SimpleInferer, SlidingWindowInferer
    from monai.networks import nets

    module, _, name = target.rpartition(".")
    if not name.isidentifier() or _ACTIVE_TRANSFORMS.match(name):
        return False
    inferers = {one.__name__: one for one in (SimpleInferer, SlidingWindowInferer)}
    found = getattr(nets, name, None) or getattr(transforms, name, None) or inferers.get(name)
    kinds = (torch.nn.Module, transforms.Transform, *inferers.values())
    if not isinstance(found, type) or not issubclass(found, kinds):
        return False
    places = ("monai.networks.nets", "monai.transforms", "monai.inferers")
    if module and not any(f"{module}.".startswith(f"{place}.") for place in places):
        return False
    return not module or pydoc.locate(target) is found


def _references(where: str, value: Any) -> list[str]:
    """Sections that a text refers to; "@##other" counts upwards from where it stands."""
    from monai.bundle import ConfigParser

    if not isinstance(value, str) or "@" not in value:
        return []
    try:
        absolute = ConfigParser.resolve_relative_ids(where, value)
    except ValueError as error:
        raise ModelError(
            f"The bundle's configuration is wrong at {where}: {str(error).rstrip('.')}."
        ) from error
    return re.findall(r"@(\w+)", absolute)


def without_reading(value: Any) -> Any:
    """Return a configuration whose transforms that read files have no arguments but their keys.

    The scan is read already; a reader is never used.
    """
    if isinstance(value, dict):
        target = str(value.get("_target_", "")).rpartition(".")[2]
        kept = {"_target_", "keys"} if _READING.match(target) else set(value)
        return {key: without_reading(inner) for key, inner in value.items() if key in kept}
    return [without_reading(inner) for inner in value] if isinstance(value, list) else value


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Each plain value with its place in MONAI's notation: section::key::0."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}::{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{where}::{index}")
    else:
        yield where, value


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
