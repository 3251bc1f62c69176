"""What several outputs looked at, as one map: the sum of the magnitudes of theirs.

For each output c that is predicted somewhere, S_c is the sum of its logits over its predicted mask;
the map is the sum over c of |dS_c/dx| (by the rule of the method). Matos et al. 2019 leave open
whether S is that of one class or of all but the background; here it is all that are named. The
magnitudes of the classes are added, not their signed maps, so that classes do not cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import MethodError, TargetError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from torch import Tensor

    from ...explanation import Explanation
    from ...model import Model

__all__ = ["METHODS", "magnitude_of_outputs", "outputs_of"]

#: Methods that the rule of the paper is compared with.
METHODS = ("guided_backprop", "deconvnet", "gradient")


def outputs_of(
    model: Model, prediction: MetaTensor, named: Sequence[int | str] | None = None
) -> list[int]:
    """Indices of the outputs that are meant.

    Parameters
    ----------
    model : Model
    prediction : MetaTensor, shape (1, I, J, K) or (O, I, J, K)
        What :func:`~SaliencyExplainLib.run.predict` gave; it tells the number of outputs of a model
        without labels.
    named : sequence of int or str, optional
        None: all but the first of a softmax network, all of another.

    Raises
    ------
    TargetError
        If the model has no such output.
    """
    exclusive = model.activation == "softmax"
    count = int(prediction.max()) + 1 if exclusive else prediction.shape[0]
    names = model.output_names(len(model.labels) or count)
    if named is None:
        return list(range(1 if exclusive else 0, len(names)))
    found = []
    for one in named:
        if isinstance(one, str) and one in names:
            found.append(names.index(one))
        elif isinstance(one, int) and 0 <= one < len(names):
            found.append(one)
        else:
            known = ", ".join(f"{index} {name}" for index, name in enumerate(names))
            raise TargetError(f"The model has no output {one!r}. Its outputs are {known}.")
    return found


def magnitude_of_outputs(
    model: Model,
    image: MetaTensor,
    outputs: Sequence[int],
    method: str = "guided_backprop",
    *,
    masks: Mapping[int, MetaTensor] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Explanation:
    """Explain several outputs of a segmentation network together.

    Parameters
    ----------
    model : Model
    image : MetaTensor, shape (C, I, J, K)
    outputs : sequence of int
        Those that are predicted nowhere are left out.
    method : str
        A method that needs one backward pass, see :data:`METHODS`.
    masks : mapping of int to MetaTensor, shape (1, I, J, K), optional
        Where each output is explained; left out: where it is predicted.
    progress, cancelled : callable, optional
        As for :func:`~SaliencyExplainLib.run.explain`.

    Returns
    -------
    Explanation
        Unsigned; its value is the sum of the outputs' values.

    Raises
    ------
    MethodError
        If the method is none of those, or none of the outputs is predicted.
    """
    from ...run import explain
    from ...target import Target

    if method not in METHODS:
        raise MethodError(f"method is one of {', '.join(METHODS)}; {method!r} was given.")
    found: list[Explanation] = []
    for number, index in enumerate(outputs):

        def tell(fraction: float, message: str, done: int = number) -> None:
            if progress is not None:
                progress((done + fraction) / len(outputs), message)

        target = (
            Target(output=index, region="prediction", reduce="sum")
            if masks is None
            else Target(output=index, region="segment", segment=masks[index], reduce="sum")
        )
        try:
            found.append(explain(model, image, target, method, progress=tell, cancelled=cancelled))
        except TargetError:  # its region is empty: it is predicted nowhere
            continue
    if not found:
        raise MethodError(
            "The network predicts none of the outputs anywhere in this image, so there is nothing "
            "to explain. Check that the image is what the model expects, or name other outputs."
        )
    return _joined(found)


def _joined(found: list[Explanation]) -> Explanation:
    """One explanation of all, unsigned."""
    from ...image import make_image

    first = found[0]
    names = [str(one.target.get("output_name")) for one in found]
    maps = _magnitudes([one.maps for one in found])
    grids = [one.network_maps for one in found if one.network_maps is not None]
    return replace(
        first,
        maps=make_image(maps, first.maps.affine),
        network_maps=make_image(_magnitudes(grids), grids[0].affine) if grids else None,
        value=sum(one.value for one in found),
        target={
            **first.target,
            "output_name": " + ".join(names),
            "region_voxels": sum(one.target.get("region_voxels") or 0 for one in found),
        },
        title=f"{first.title}, magnitude",
        signed=False,
        details={"outputs": names, "values": [one.value for one in found]},
        warnings=tuple(dict.fromkeys(text for one in found for text in one.warnings)),
        seconds=sum(one.seconds for one in found),
    )


def _magnitudes(maps: Sequence[MetaTensor]) -> Tensor:
    """Return the sum of magnitudes."""
    sizes = [one.as_tensor().abs() for one in maps]
    return sum(sizes[1:], start=sizes[0])
