"""Maps that no method under test made, in the place of one that a method made.

The even map has an Attribution Quality of exactly 1, the truth shows what can be reached. The sum
of a layer's features is what Score-CAM is in the public code (package attribution-quality): its
softmax runs over an axis of length 1, so that every weight is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...image import make_image
from ...methods.cam_pass import OnePassCam

if TYPE_CHECKING:
    import torch

    from ...engine import LayerPass
    from ...explanation import Explanation

__all__ = ["SumOfFeatures", "as_explanation"]


@dataclass(frozen=True)
class SumOfFeatures(OnePassCam):
    """ReLU of the sum of a layer's features: Score-CAM with every weight 1."""

    name: ClassVar[str] = "sum_of_features"
    title: ClassVar[str] = "Sum of features"
    family: ClassVar[str] = "layer"
    summary: ClassVar[str] = "Where are the features active, whatever they do?"
    paper: ClassVar[str] = "https://github.com/Mullans/AttributionQuality, its Score-CAM"
    signed: ClassVar[bool] = False
    needs_layer: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    unit: ClassVar[str] = "relative"
    combine: ClassVar[str] = "sum"
    weaknesses: ClassVar[str] = "knows nothing of the target"

    def weights(
        self,
        found: LayerPass,
        part: torch.Tensor,
        sums: torch.Tensor,  # noqa: ARG002 - as for its kin
    ) -> torch.Tensor:
        """1 a position and channel."""
        return part.sum() * found.features.new_ones(found.features.shape[0])


def as_explanation(values: Any, like: Explanation, title: str) -> Explanation:
    """Return a map that no method made, on the grid of one that a method made.

    Parameters
    ----------
    values : array, shape (1, I, J, K)
        0 or more; network and scan have the same grid.
    like : Explanation
        Of the same image and target.
    title : str
        For people.
    """
    made = make_image(values, like.maps.affine)
    return replace(
        like,
        maps=made,
        network_maps=made,
        layer_map=None,
        layers=(),
        method=title,
        title=title,
        unit="relative",
        signed=False,
        warnings=(),
    )
