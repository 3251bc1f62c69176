"""What a caller gives, as a request holds it: volumes become files in the folder of the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .jobs import JobFolder, is_reference
from .protocol import ModelSource, Question, Reference

__all__ = ["put", "put_all", "put_any", "question_with", "source_of"]


def source_of(model: ModelSource | str | Path) -> ModelSource:
    """Model of a path, or as it is."""
    return model if isinstance(model, ModelSource) else ModelSource(str(model))


def put(folder: JobFolder, name: str, volume: Any) -> Reference:
    """Write a volume, unless it is a reference already."""
    return volume if is_reference(volume) else folder.put(name, volume)


def put_any(folder: JobFolder, name: str, volume: Any) -> Reference | None:
    """The same; None where there is none."""
    return None if volume is None else put(folder, name, volume)


def put_all(folder: JobFolder, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters of a method, with references in place of label maps."""
    return {
        name: put(folder, name, one) if hasattr(one, "affine") else one
        for name, one in (parameters or {}).items()
    }


def question_with(folder: JobFolder, question: Question | None, segment: Any) -> Question:
    """The question, with the segment as a reference."""
    asked = question or Question()
    if segment is None:
        return asked
    return replace(asked, segment=put(folder, "segment", segment))
