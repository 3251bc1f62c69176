"""MONAI bundles: folder or zip with ``configs/metadata.json`` and ``configs/inference.json``/YAML.

Only the parts that inference needs are built: the network, the preprocessing, the inferer. What a
configuration may do without trust: name classes of MONAI's networks, transforms and inferers with
plain values and ``@references`` (:mod:`.trust`). Python expressions (``$...``), other classes,
macros that read files, and a bundle's own scripts need ``trusted=True``.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..errors import ModelError, UntrustedModelError
from .limits import bounded_memory, read_json, read_text, refuse_endless, refuse_packed
from .trust import harmless_config, without_reading

__all__ = ["find_bundle", "read_bundle"]

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_METADATA = "configs/metadata.json"
_WEIGHTS = ("models/model.pt", "models/model.pth", "models/model.safetensors", "models/model.ts")
#: Names under which bundles keep each part, the most usual first.
_PARTS = {
    "network": ("network_def", "net_def", "network", "net", "model"),
    "preprocess": ("preprocessing", "pre_processing", "transforms", "inference_transform"),
    "inferer": ("inferer",),
    "postprocess": ("postprocessing", "post_processing"),
}
#: An unpacked bundle may be this large; a zip bomb is not unpacked.
_MAX_UNPACKED = 8 * 10**9
#: Bytes that a network may take beside those of its weights.
_SPARE = 256 << 20


@contextmanager
def find_bundle(path: Path) -> Iterator[Path | None]:
    """Give the root of the bundle at `path` (a folder or zip), or None when it is something else.

    A zip is unpacked into a temporary folder that is removed afterwards.
    """
    if path.is_dir():
        yield path if (path / _METADATA).is_file() else None
        return
    if not zipfile.is_zipfile(path):
        yield None
        return
    with _opened(path) as archive:
        roots = [name[: -len(_METADATA)] for name in archive.namelist() if name.endswith(_METADATA)]
        if not roots:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            _unpack(archive, Path(folder), path)
            yield Path(folder) / min(roots, key=len)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path.name!r} is a damaged zip file. Download it again.") from error


def _unpack(archive: zipfile.ZipFile, folder: Path, path: Path) -> None:
    name = path.name
    refuse_packed(archive, name, path.stat().st_size)
    for member in archive.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or re.match(r"^[A-Za-z]:", member.filename):
            raise ModelError(
                f"{name!r} wants to write outside its folder ({member.filename!r}). It was not "
                "opened."
            )
    size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_UNPACKED:
        raise ModelError(
            f"{name!r} would unpack to {size / 1e9:.0f} GB (limit {_MAX_UNPACKED / 1e9:.0f}). It "
            "was not opened."
        )
    try:
        archive.extractall(folder)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        # Not only damage: a password, an unknown packing, a file where a folder is.
        raise ModelError(
            f"{name!r} could not be unpacked: {str(error) or type(error).__name__}. Download it "
            "again."
        ) from error


def read_bundle(root: Path, *, trusted: bool) -> dict[str, Any]:
    """Read a bundle's parts.

    Returns
    -------
    dict
        ``network`` (without weights; None when the weights are TorchScript), ``weights`` (path),
        ``preprocess``, ``inferer``, ``task``, ``labels``, ``channels``, ``activation``,
        ``provenance``.

    Raises
    ------
    ModelError
        If a part is missing or cannot be built, or the network is not 3-D.
    UntrustedModelError
        If building the parts would run code and `trusted` is False.
    """
    metadata = read_json(root / _METADATA)
    config_path = next(
        (root / "configs" / name for name in _CONFIGS if (root / "configs" / name).is_file()), None
    )
    if config_path is None:
        raise ModelError(
            f"The bundle has no configs/inference.json or .yaml (looked in {root.name!r})."
        )
    config = _config(config_path)
    ids = {
        part: next((name for name in names if name in config), None)
        for part, names in _PARTS.items()
    }
    if ids["network"] is None:
        raise ModelError(
            f"The bundle names no network. Expected one of {', '.join(_PARTS['network'])} in "
            f"{config_path.name}."
        )
    _refuse_2d(config, ids["network"], metadata)
    ours = {"bundle_root": str(root), "device": "cpu"}
    buildable = without_reading({**config, **ours})
    wanted = [name for part, name in ids.items() if name and part != "postprocess"]
    _refuse_missing_classes({name: buildable[name] for name in wanted}, root, trusted=trusted)
    if not trusted:
        buildable = harmless_config(buildable, [*wanted, *ours])
    weights = next((root / name for name in _WEIGHTS if (root / name).is_file()), None)
    scripted = weights is not None and weights.suffix == ".ts"
    if scripted and not trusted:
        raise UntrustedModelError(
            "The bundle's weights are TorchScript, a program that would run. If you know where the "
            "bundle comes from, "
            "allow it with trusted=True (--trust)."
        )
    # Half precision in the file is single precision in memory; buffers need not be in it.
    most = _SPARE if weights is None else _SPARE + 16 * weights.stat().st_size
    with _own_scripts(root) if trusted else bounded_memory(most):
        parts = _build(buildable, ids, with_network=not scripted)
    if weights is None:
        raise ModelError(
            "The bundle has no weights (models/model.pt is missing). Download the complete bundle, "
            "or put the weights there."
        )
    outputs, inputs = _format(metadata, "outputs"), _format(metadata, "inputs")
    return {
        **parts,
        "weights": weights,
        "task": _task(outputs),
        "labels": _names(outputs),
        "channels": _names(inputs),
        "activation": _activation(config.get(ids["postprocess"] or "", {})),
        "provenance": {
            "format": "MONAI bundle",
            "title": metadata.get("name") or metadata.get("task", ""),
            "version": metadata.get("version", ""),
            "made_with_monai": metadata.get("monai_version", ""),
            "input_channels": _count(_format(metadata, "inputs")),
        },
    }


def _build(
    config: dict[str, Any], ids: dict[str, str | None], *, with_network: bool
) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    # Keys like "network#norm" change a part by its path; a checked configuration has none.
    parser = ConfigParser({key: value for key, value in config.items() if not _is_path(key)})
    parser.update({key: value for key, value in config.items() if _is_path(key)})
    parser["device"] = "$torch.device('cpu')"
    built: dict[str, Any] = {"network": None}
    for part in ("network", "preprocess", "inferer"):
        name = ids[part]
        if name is None or (part == "network" and not with_network):
            continue
        try:
            with warnings.catch_warnings():
                # MONAI 1.6 announces a new default of Orientation that is the one used here
                # (RAS metadata).
                warnings.simplefilter("ignore", FutureWarning)
                built[part] = parser.get_parsed_content(name)
        except Exception as error:
            raise ModelError(
                f"The bundle's {name!r} could not be built: {_cause(error)}. {_advice(error)}"
            ) from error
    network = built["network"]
    if with_network and not isinstance(network, torch.nn.Module):
        raise ModelError(
            f"The bundle's {ids['network']!r} gave {type(network).__name__}; a network was "
            "expected."
        )
    return built


@contextmanager
def _own_scripts(root: Path) -> Iterator[None]:
    """Let a trusted bundle import its own packages inside; forget them afterwards.

    Most bundles call theirs ``scripts``: a second bundle would get the first one's.
    """
    folder, before, cache = root.resolve(), set(sys.modules), sys.pycache_prefix
    sys.path.insert(0, str(folder))
    try:
        # Compiled code beside the scripts is not what the person read, or whose hash was trusted.
        with tempfile.TemporaryDirectory() as own:
            sys.pycache_prefix = own
            yield
    finally:
        sys.pycache_prefix = cache
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if any(Path(place).is_relative_to(folder) for place in _places(sys.modules[name])):
                del sys.modules[name]


def _places(module: Any) -> list[str]:
    file = getattr(module, "__file__", None)
    return [file] if file else list(getattr(module, "__path__", []))


def _is_path(key: Any) -> bool:
    return "#" in str(key) or "::" in str(key)


def _refuse_missing_classes(parts: dict[str, Any], root: Path, *, trusted: bool) -> None:
    """Say of a class that it is the bundle's own code, or that this MONAI does not have it."""
    from monai.bundle.config_item import ComponentLocator

    locator = ComponentLocator()
    for where, target in ((name, one) for name, part in parts.items() for one in _targets(part)):
        home = target.partition(".")[0]
        if "." in target:
            own = (root / home).is_dir() or (root / f"{home}.py").is_file()
            if own and not trusted:
                raise UntrustedModelError(
                    f"The bundle would run code when loaded: {where} is built by its own "
                    f"{target!r} ({home}). "
                    "If you know where the bundle comes from, allow it with trusted=True (--trust)."
                )
        elif not locator.get_component_module_name(target):
            raise ModelError(
                f"The bundle's {where!r} uses {target!r}, which MONAI {_monai_version()} does not "
                "have. The bundle was made for another version of MONAI."
            )


def _targets(part: Any) -> Iterator[str]:
    """Names of the classes that a section builds."""
    inner: Any = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and isinstance(part.get("_target_"), str):
        yield part["_target_"]
    for one in inner:
        yield from _targets(one)


def _monai_version() -> str:
    import monai

    return str(monai.__version__)


def _refuse_2d(config: dict[str, Any], network_id: str, metadata: dict[str, Any]) -> None:
    definition = config.get(network_id)
    dimensions = definition.get("spatial_dims", 3) if isinstance(definition, dict) else 3
    shape = _format(metadata, "inputs").get("spatial_shape", [])
    if dimensions == 2 or (not isinstance(definition, dict) and len(shape) == 2):
        raise ModelError(
            "The bundle's network is 2-D. This extension explains networks that take 3-D volumes."
        )


def _format(metadata: dict[str, Any], side: str) -> dict[str, Any]:
    """What the metadata says about the first input or output; empty where it says nothing."""
    found: Any = metadata
    for key in ("network_data_format", side):
        found = found.get(key, {}) if isinstance(found, dict) else {}
    first: Any = next(iter(found.values()), {}) if isinstance(found, dict) else {}
    return first if isinstance(first, dict) else {}


def _task(output: dict[str, Any]) -> str | None:
    form = str(output.get("format", "")).lower()
    if form in ("segmentation", "labels"):
        return "segmentation"
    if form in ("classes", "classification", "probabilities"):
        return "classification"
    if form in ("regression", "magnitude", "value", "values"):
        return "regression"
    return None


def _count(part: dict[str, Any]) -> int | None:
    """Number of channels that the metadata say."""
    number = part.get("num_channels")
    return number if isinstance(number, int) and number > 0 else None


def _names(part: dict[str, Any]) -> tuple[str, ...]:
    """Channel names in the order of their numbers."""
    channels = part.get("channel_def", {})
    if not isinstance(channels, dict) or not all(str(key).isdigit() for key in channels):
        return ()
    return tuple(str(channels[key]) for key in sorted(channels, key=int))


def _activation(postprocessing: Any) -> str | None:
    """What the bundle's own Activations transform does."""
    steps = (
        postprocessing.get("transforms", []) if isinstance(postprocessing, dict) else postprocessing
    )
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and str(step.get("_target_", "")).rpartition(".")[2].startswith(
            "Activations"
        ):
            for name in ("softmax", "sigmoid"):
                if step.get(name) in (True, [True]):
                    return name
    return None


def _config(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_json(path)
    try:
        import yaml
    except ImportError as error:
        raise ModelError(
            "The bundle's configuration is YAML. Install PyYAML to read it (pip install pyyaml)."
        ) from error
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelError(f"{path.name!r} of the bundle is no valid YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name!r} of the bundle is no mapping.")
    refuse_endless(content, path.name)
    return content


def _cause(error: BaseException) -> str:
    """The innermost reason; MONAI wraps it in long texts."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no reason given'}"


def _advice(error: BaseException) -> str:
    text = _cause(error)
    if "unexpected keyword argument" in text:
        return (
            "The bundle was made for another version of MONAI, which had that argument (this is "
            f"{_monai_version()})."
        )
    missing = re.search(r"No module named '(\w+)", text)
    if missing:
        return f"Install the missing package (pip install {missing[1]})."
    if "ModuleNotFoundError" in text or "OptionalImportError" in text:
        return "Install the missing package."
    return "Check the bundle's configuration."
