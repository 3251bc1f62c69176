"""The errors that this library raises on purpose.

Each message is one to three sentences for people: what was wrong (with the value), what was
expected, what to do next.
"""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "ImageError",
    "LayerNotFoundError",
    "MethodError",
    "MissingPackageError",
    "ModelError",
    "RegionError",
    "SaliencyExplainError",
    "SceneError",
    "TargetError",
    "UntrustedModelError",
]


class SaliencyExplainError(Exception):
    """Base of all errors whose message is meant for the user."""


class ImageError(SaliencyExplainError):
    """A volume cannot be read, written or given to the model."""


class ModelError(SaliencyExplainError):
    """A model file cannot be loaded, or the network fails on the image."""


class UntrustedModelError(ModelError):
    """Loading the file would run code that it carries, and ``trusted=True`` was not said."""


class TargetError(SaliencyExplainError):
    """The question (output, region, score) does not fit the model or the image."""


class MethodError(SaliencyExplainError):
    """An attribution method is unknown, wrongly parametrised or not applicable to the network."""


class LayerNotFoundError(MethodError):
    """The network has no layer of that name."""


class RegionError(SaliencyExplainError):
    """A label map does not fit the map that it should summarise."""


class SceneError(SaliencyExplainError):
    """A node is missing, of the wrong kind, or the scene cannot be written."""


class MissingPackageError(SaliencyExplainError):
    """An optional package is needed for a feature and is not installed."""


class Cancelled(SaliencyExplainError):  # noqa: N818 - a request that was granted, not a fault
    """The caller's ``cancelled()`` returned True between two passes."""
