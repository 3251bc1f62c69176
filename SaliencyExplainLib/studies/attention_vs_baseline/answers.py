"""What classifiers answer: the probability of each class, and the class that is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import Cancelled, StudyError

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from ...model import Model

__all__ = ["all_probabilities", "class_number", "class_probabilities", "predicted_class"]

Tell = Callable[[float, str], None]


def class_probabilities(model: Model, image: MetaTensor) -> tuple[float, ...]:
    """Return a classifier's probability of each class; (1 - p, p) for a single output.

    Parameters
    ----------
    model : Model
        A classification network.
    image : MetaTensor, shape (C, I, J, K)

    Raises
    ------
    StudyError
        If the network is no classifier.
    """
    from ...engine import Engine
    from ...image import as_image
    from ...masks import activated
    from ...target import Target

    if model.task != "classification":
        raise StudyError(
            f"Labels are compared with the answers of classifiers; this network does {model.task}. "
            "Leave the labels out."
        )
    engine = Engine(model, model.prepare(as_image(image)), Target())
    with engine.running():
        output = engine.output(engine.x)
    single = output.shape[1] == 1
    found = activated(output, "sigmoid" if single else model.activation)[0].tolist()
    return (1 - found[0], found[0]) if single else tuple(found)


def class_number(model: Model, label: int | str) -> int:
    """Return the number of a class that is given by its number or label.

    A network with a single output has class 0, and class 1, which its label names.

    Raises
    ------
    StudyError
        If there is no such class.
    """
    names = ("", *model.labels) if len(model.labels) == 1 else model.labels
    if isinstance(label, str):
        if label not in names[-len(model.labels) :]:
            raise StudyError(
                f"The label {label!r} is none of the model's: {', '.join(model.labels) or 'none'}. "
                "Give its name, or the number of the class."
            )
        return names.index(label)
    if label < 0 or (names and label >= len(names)):
        raise StudyError(f"There is no class {label}; the classes are 0 to {len(names) - 1}.")
    return int(label)


def predicted_class(probabilities: Sequence[float]) -> int:
    """Return the most probable class."""
    return int(np.argmax(probabilities))


def all_probabilities(
    models: Mapping[str, Model],
    images: Sequence[MetaTensor],
    progress: Tell | None,
    cancelled: Callable[[], bool] | None,
) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Probabilities of each class, by model and image.

    Raises
    ------
    StudyError
        If a network is no classifier, or they have different numbers of classes.
    Cancelled
        If the caller stopped it.
    """
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in models}
    total = len(models) * len(images)
    for name, model in models.items():
        for image in images:
            if cancelled is not None and cancelled():
                raise Cancelled("The comparison was cancelled. Nothing was changed.")
            found[name].append(class_probabilities(model, image))
            if progress is not None:
                progress(sum(map(len, found.values())) / total, f"answers of {name}")
    counts = {name: len(one[0]) for name, one in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise StudyError(f"The models have different numbers of classes: {told}.")
    return {name: tuple(one) for name, one in found.items()}
