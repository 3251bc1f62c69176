"""What went wrong inside the worker, as a kind, a sentence and details."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from ..errors import SaliencyExplainError, is_out_of_memory

__all__ = ["Fault", "fault_of"]

_LONGEST = 1000
_CARD = ("cuda", "mps", "hip")


@dataclass(frozen=True)
class Fault:
    """Name of an error class, one sentence for people, the traceback."""

    kind: str
    message: str
    details: str


def fault_of(error: BaseException) -> Fault:
    """Describe an exception that ended a job."""
    details = "".join(traceback.format_exception(error))
    if is_out_of_memory(error):
        return Fault("OutOfMemoryError", _memory_sentence(error), details)
    if isinstance(error, SaliencyExplainError):
        return Fault(type(error).__name__, _shortened(str(error)), details)
    if isinstance(error, ModuleNotFoundError):
        return Fault(
            "MissingPackageError",
            f"The worker's Python finds no package {error.name!r}, which this job needs. Install "
            "it there, or choose another interpreter.",
            details,
        )
    if isinstance(error, SystemExit):
        said = f"The model or a library ended the job (exit status {error.code})."
        return Fault("Unexpected", said, details)
    said = _shortened(str(error)) or "no message"
    return Fault("Unexpected", f"Unexpected {type(error).__name__}: {said}", details)


def _memory_sentence(error: BaseException) -> str:
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause).lower())
        cause = cause.__cause__
    card = any(word in text for text in texts for word in _CARD)
    where = "The graphics card's memory" if card else "The memory"
    other = "the CPU" if card else "a smaller volume"
    return (
        f"{where} was not enough for this job. Choose a smaller region or window, a method with "
        f"fewer passes, or {other}."
    )


def _shortened(text: str) -> str:
    """One line; what was given may have been a whole volume."""
    line = " ".join(text.split())
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"
