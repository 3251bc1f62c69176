"""Maps of several layers as one.

KWC is added as it is: its layers carry their own weight, in voxels of the prediction. Every other
map C_l is made comparable first, as the public code of Mullan and Sonka does (package
attribution-quality; doi:10.1117/1.JMI.10.5.054001)::

    KWC       C = sum_l C_l
    others    C = sum_l ReLU(C_l) / (max C_l + 1e-7)

Maxima are those on the network's grid, onto which each layer's map was interpolated from its true
place; there the points of the layer's own grid are among the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import StudyError
from ...methods import methods

if TYPE_CHECKING:
    from ...explanation import Explanation

__all__ = ["combine_layers"]

#: Kept from dividing by zero, as published.
_LITTLE = 1e-7


def combine_layers(explanations: Sequence[Explanation]) -> Explanation:
    """Join maps that one method made at several layers, for the same image and target.

    Parameters
    ----------
    explanations : sequence of Explanation
        One a layer, from :func:`SaliencyExplainLib.explain_layers` or
        :func:`SaliencyExplainLib.explain`.

    Returns
    -------
    Explanation
        Maps of 0 or more: added as they are for a method whose layers have weights of their own
        (kernel-weighted contribution), else each divided by its maximum before. ``layers`` names
        all.

    Raises
    ------
    StudyError
        If there is none, or methods, targets or grids differ.
    """
    if not explanations:
        raise StudyError("There is no map to join. Give the explanations of at least one layer.")
    first = explanations[0]
    for one in explanations[1:]:
        alike = (
            one.method == first.method,
            one.target == first.target,
            one.maps.shape == first.maps.shape,
            (one.network_maps is None) == (first.network_maps is None),
        )
        if not all(alike):
            raise StudyError(
                f"Maps of one method, target and image can be joined; {first.title} at "
                f"{', '.join(first.layers)} and {one.title} at {', '.join(one.layers)} differ in "
                "one of these. Join them apart."
            )
    weighted = getattr(methods().get(first.method), "layers_have_weights", False)
    maps: Any = 0.0
    network_maps: Any = 0.0
    seconds = {one.seconds for one in explanations}
    for one in explanations:
        inside = one.maps if one.network_maps is None else one.network_maps
        scale = 1.0 if weighted else 1.0 / (float(inside.max()) + _LITTLE)
        maps = maps + _positive(one.maps) * scale
        if one.network_maps is not None:
            network_maps = network_maps + _positive(one.network_maps) * scale
    return replace(
        first,
        maps=_image(maps, first.maps),
        network_maps=None
        if first.network_maps is None
        else _image(network_maps, first.network_maps),
        layer_map=None,
        signed=False,
        unit="relative",
        parameters={
            **first.parameters,
            "layer": ", ".join(layer for one in explanations for layer in one.layers),
        },
        layers=tuple(layer for one in explanations for layer in one.layers),
        warnings=tuple(dict.fromkeys(note for one in explanations for note in one.warnings)),
        # Maps of one pass through all layers each carry the time of that pass.
        seconds=sum(seconds),
    )


def _positive(maps: Any) -> Any:
    return maps.as_tensor().clamp(min=0)


def _image(values: Any, like: Any) -> Any:
    from ...image import make_image

    return make_image(values, like.affine)
