"""The worker's models: the last one stays loaded; what is told about a model and its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MethodError, ModelError, UntrustedModelError
from .protocol import ModelSource, Trust, json_values
from .trust import fingerprint, sha256_of

if TYPE_CHECKING:
    from ..model import LayerInfo, Model

__all__ = ["ModelCache", "NotTrustedError", "default_layers", "described"]

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


def described(model: Model, sha256: str = "") -> dict[str, Any]:
    """Describe a model as JSON values, with the hash of the file or folder as it is trusted."""
    from ..model import model_facts

    facts = {**model_facts(model), "sha256": sha256, "text": model.describe()}
    made: dict[str, Any] = json_values(facts)
    return made


def default_layers(
    layers: Sequence[LayerInfo], task: str, methods: Sequence[str]
) -> Mapping[str, str | None]:
    """Layer that each method takes when none is named; None where it takes or knows none.

    Raises
    ------
    MethodError
        If a method is unknown.
    """
    from .. import methods as known_methods
    from ..methods.layer import default_layers as all_defaults

    known, found = known_methods(), all_defaults(layers, task)
    for name in methods:
        if name not in known:
            raise MethodError(f"There is no method {name!r}. All: {', '.join(known)}.")
    return {name: found.get(name) for name in methods}
