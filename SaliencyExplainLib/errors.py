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
    "MetricError",
    "MissingPackageError",
    "ModelError",
    "OutOfMemoryError",
    "RegionError",
    "SaliencyExplainError",
    "SceneError",
    "StudyError",
    "TargetError",
    "UntrustedModelError",
    "WorkerError",
    "is_out_of_memory",
]

#: Words of PyTorch (CPU, CUDA, MPS), its C++ parts and NumPy when an allocation fails.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "cublas_status_alloc_failed",
)


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


class MetricError(SaliencyExplainError):
    """A quality metric is unknown, wrongly parametrised or not defined on this map."""


class StudyError(SaliencyExplainError):
    """A study cannot go on in its folder, or a result of it does not fit together."""


class RegionError(SaliencyExplainError):
    """A label map does not fit the map that it should summarise."""


class SceneError(SaliencyExplainError):
    """A node is missing, of the wrong kind, or the scene cannot be written."""


class MissingPackageError(SaliencyExplainError):
    """An optional package is needed for a feature and is not installed."""


class WorkerError(SaliencyExplainError):
    """The process that runs the jobs could not be started, ended, hung or was not understood."""


class OutOfMemoryError(SaliencyExplainError):
    """The memory of the machine or of the graphics card was not enough."""


class Cancelled(SaliencyExplainError):  # noqa: N818 - a request that was granted, not a fault
    """The caller's ``cancelled()`` returned True between two passes."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, is a lack of memory."""
    while error is not None:
        # By name: torch, which has a class of that name as well, need not be imported.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        text = str(error).lower()
        if isinstance(error, RuntimeError | OSError) and any(word in text for word in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
