"""The worker's models: the last one stays loaded; what is told about a model and its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MethodError, ModelError, SaliencyExplainError, UntrustedModelError
from .protocol import ModelSource, Trust, json_values
from .trust import fingerprint, sha256_of

if TYPE_CHECKING:
    from ..model import LayerInfo, Model

__all__ = ["ModelCache", "NotTrustedError", "default_layers", "layer_facts", "model_facts"]

_OPTIONS = (
    "task",
    "labels",
    "channels",
    "activation",
    "network",
    "network_arguments",
    "device",
)


class NotTrustedError(UntrustedModelError):
    """A model would run code; `trust` says which file and its hash."""

    def __init__(self, message: str, trust: Trust) -> None:
        super().__init__(message)
        self.trust = trust


class ModelCache:
    """Keeps the last model, for as long as its files and options stay the same."""

    def __init__(self) -> None:
        self._key: Any = None
        self._model: Model | None = None
        self._sha256 = ""

    def load(self, source: ModelSource) -> tuple[Model, bool]:
        """Return the model, and whether it was there already.

        Raises
        ------
        NotTrustedError
            If loading would run code and the person has not agreed to it, or to another state of
            the file.
        ModelError
            If it cannot be loaded.
        """
        unknown = set(source.options) - set(_OPTIONS)
        if unknown:
            raise ModelError(
                f"A model has no option {min(unknown)!r} here. Options: {', '.join(_OPTIONS)}."
            )
        key = _key(source)
        if self._model is not None and key == self._key:
            return self._model, True
        self.drop()
        sha256 = sha256_of(source.path)
        model = _loaded(source, sha256)
        # Read again: a file that was exchanged meanwhile is not taken for the one that was hashed.
        if _key(source) != key:
            raise ModelError(
                f"{Path(source.path).name!r} was changed while it was read. Try again."
            )
        self._key, self._model, self._sha256 = key, model, sha256
        return model, False

    def drop(self) -> None:
        """Forget the model and give its memory back."""
        self._key, self._model, self._sha256 = None, None, ""

    @property
    def sha256(self) -> str:
        """Hash of the loaded file or folder."""
        return self._sha256


def _key(source: ModelSource) -> Any:
    said = (source.trusted, source.trusted_sha256)
    options = json.dumps(json_values(source.options), sort_keys=True)
    return str(Path(source.path).absolute()), fingerprint(source.path), said, options


def _loaded(source: ModelSource, sha256: str) -> Model:
    from ..model import load_model

    agreed = source.trusted or (bool(source.trusted_sha256) and source.trusted_sha256 == sha256)
    try:
        return load_model(source.path, trusted=agreed, **source.options)
    except UntrustedModelError as error:
        reason = str(error)
        if source.trusted_sha256 and not agreed:
            name = Path(source.path).name
            reason = f"{name!r} is not the file that was trusted: it has changed since. {reason}"
        raise NotTrustedError(reason, Trust(source.path, sha256, reason)) from error


def model_facts(model: Model, sha256: str = "") -> dict[str, Any]:
    """Describe a model as JSON values."""
    roi = getattr(model.inferer, "roi_size", None)
    facts = {
        "task": model.task,
        "labels": list(model.labels),
        "channels": list(model.channels),
        "parameters": sum(one.numel() for one in model.network.parameters()),
        "activation": model.activation,
        "preprocessing": model.preprocess.describe(),
        "inference": model.inferer.describe(),
        "spacing_mm": _spacing(model.preprocess.transform),
        "window": None if roi is None else list(roi),
        "scripted": model.scripted,
        "device": str(model.device),
        "format": model.provenance.get("format", ""),
        "name": model.provenance.get("name", ""),
        "sha256": sha256,
        "text": model.describe(),
        "provenance": model.provenance,
    }
    made: dict[str, Any] = json_values(facts)
    return made


def _spacing(transform: Any) -> list[float] | None:
    """Voxel size that the preprocessing resamples to, in mm; None where it does not."""
    steps = list(getattr(transform, "transforms", [transform]))
    for step in reversed(steps):
        inner = getattr(step, "spacing_transform", step)
        found = getattr(inner, "pixdim", None)
        if found is not None:
            sizes = [float(one) for one in list(found)[:3]]
            # One number stands for all axes; NaN and 0 leave an axis as it is.
            sizes = sizes * 3 if len(sizes) == 1 else sizes
            return sizes if len(sizes) == 3 and all(size > 0 for size in sizes) else None
    return None


def layer_facts(layers: Sequence[LayerInfo]) -> list[dict[str, Any]]:
    """Describe layers as JSON values, in the order in which they run."""
    return [
        {
            "name": one.name,
            "kind": one.kind,
            "shape": list(one.shape),
            "origin_voxels": list(one.grid.origin),
            "spacing_voxels": list(one.grid.spacing),
            "place_followed": one.grid.exact,
            "feeds_instance_norm": one.feeds_instance_norm,
            "leaf": one.leaf,
            "activation": one.activation,
            "final": one.final,
        }
        for one in layers
    ]


def default_layers(
    layers: Sequence[LayerInfo], task: str, methods: Sequence[str]
) -> Mapping[str, str | None]:
    """Layer that each method takes when none is named; None where it takes none.

    Raises
    ------
    MethodError
        If a method is unknown.
    """
    from .. import methods as known_methods
    from ..methods.layer import default_layer

    known, found = known_methods(), {}
    for name in methods:
        if name not in known:
            raise MethodError(f"There is no method {name!r}. All: {', '.join(known)}.")
        takes = any(one.name == "layer" for one in fields(known[name]))
        try:
            found[name] = default_layer(layers, task).name if takes else None
        except SaliencyExplainError:
            found[name] = None
    return found
