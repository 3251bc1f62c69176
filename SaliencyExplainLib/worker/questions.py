"""What a request means here: images, targets and methods from its JSON values and references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..methods import Method, make_method
from .jobs import is_reference, read_array
from .protocol import Question, Reference

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ..target import Target

__all__ = ["image_of", "image_or_none", "method_of", "target_of"]


def image_of(reference: Reference) -> MetaTensor:
    """Image that a reference points at.

    Raises
    ------
    WorkerError
        If its file is missing or damaged.
    """
    image: MetaTensor = read_array(reference).as_image()
    return image


def image_or_none(reference: Reference | None) -> MetaTensor | None:
    """The same; None where there is none."""
    return None if reference is None else image_of(reference)


def target_of(question: Question) -> Target:
    """Target of a question."""
    from ..target import Target

    values = {one.name: getattr(question, one.name) for one in fields(question)}
    if question.segment is not None:
        values["segment"] = image_of(question.segment)
    return Target(**values)


def method_of(name: str, parameters: Mapping[str, Any]) -> Method:
    """Method of a name and JSON values; a reference becomes its image.

    Raises
    ------
    MethodError
        If it is unknown, or a value does not fit.
    """
    given = {
        key: image_of(value) if is_reference(value) else value for key, value in parameters.items()
    }
    return make_method(name, given)
