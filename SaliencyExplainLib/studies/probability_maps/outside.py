"""Do maps of a group lie where they should? The share outside of a mask, with its interval.

share(person) = sum over channels and voxels outside of |A_c(v)| / the same over all voxels.

The accuracy on data with the same bias cannot tell a network that reads a scanner's signature from
one that reads the disease; where the signature lies outside of the organ, this share can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import StudyError
from ...explanation import Explanation
from ...volume import resample_labels, voxels_of
from ..statistics import bootstrap

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from ...volume import Volume

__all__ = ["OutsideShares", "attribution_outside"]

PARTS = ("absolute", "positive", "negative")


@dataclass(frozen=True)
class OutsideShares:
    """The part of the attribution outside of a mask, over a group.

    Attributes
    ----------
    shares : tuple of float
        One a person, 0 to 1; NaN where the map (or the part of it that was asked for) is zero.
    volumes : tuple of float
        Part of the volume that lies outside, 0 to 1: the share of a map that is the same
        everywhere.
    mean, low, high : float
        Mean share over the group, and its 95 % interval (bootstrap over persons; NaN for one
        person).
    inside : str
        Name of the mask.
    part : str
        Which attribution was counted.
    """

    shares: tuple[float, ...]
    volumes: tuple[float, ...]
    mean: float
    low: float
    high: float
    inside: str
    part: str

    @property
    def sentence(self) -> str:
        """The finding in words."""
        kind = "" if self.part == "absolute" else f"{self.part} "
        known = int(np.isfinite(self.shares).sum())
        if known == 0:
            return f"No map has any {kind}attribution."
        interval = "" if known < 2 else f" ({100 * self.low:.1f} to {100 * self.high:.1f})"
        left = len(self.shares) - known
        return (
            f"{100 * self.mean:.1f} %{interval} of the {kind}attribution lies outside of "
            f"{self.inside}, which is {100 * float(np.mean(self.volumes)):.0f} % of the volume "
            f"({known} map{'s' if known > 1 else ''}"
            + (f"; {left} that are zero were left out" if left else "")
            + ")."
        )


def attribution_outside(
    explanations: Sequence[Explanation | Volume | MetaTensor],
    masks: Volume | MetaTensor | Sequence[Volume | MetaTensor],
    *,
    part: str = "absolute",
    inside: str = "the mask",
    seed: int = 0,
) -> OutsideShares:
    """Measure how much of the maps of a group lies outside of a mask.

    Parameters
    ----------
    explanations : sequence of Explanation, Volume or MetaTensor
        One map a person; all channels are counted.
    masks : Volume or MetaTensor, shape (1, X, Y, Z), or a sequence of them
        Where attribution belongs (voxels above 0), one a person or one for all, by world position.
    part : {"absolute", "positive", "negative"}
        Which attribution is counted.
    inside : str
        Name of the mask, for the sentence.
    seed : int
        Of the bootstrap.

    Returns
    -------
    OutsideShares

    Raises
    ------
    StudyError
        If there is no map, the numbers of maps and masks differ, a mask is empty on its map's grid
        or has several channels, or `part` is unknown.
    """
    group = list(explanations)
    if not group:
        raise StudyError("There is no map to check. Give one or more explanations.")
    if part not in PARTS:
        raise StudyError(f"The part is one of {', '.join(PARTS)}; {part!r} was given.")
    listed = [masks] * len(group) if hasattr(masks, "affine") else list(masks)
    if len(listed) != len(group):
        raise StudyError(
            f"{len(group)} maps and {len(listed)} masks were given. Give one mask for all, or one "
            "each."
        )
    shares, volumes = [], []
    for number, (one, mask) in enumerate(zip(group, listed, strict=True)):
        maps = one.maps if isinstance(one, Explanation) else one
        outside = ~_inside(mask, maps, number)
        values = _part(voxels_of(maps).astype(np.float64), part)
        whole = float(values.sum())
        shares.append(float(values[:, outside].sum()) / whole if whole else float("nan"))
        volumes.append(float(outside.mean()))
    found = bootstrap(shares, seed=seed)
    alone = len(shares) < 2
    return OutsideShares(
        tuple(shares),
        tuple(volumes),
        found.value,
        float("nan") if alone else found.low,
        float("nan") if alone else found.high,
        inside,
        part,
    )


def _inside(mask: Any, maps: Any, number: int) -> NDArray[np.bool_]:
    if mask.ndim != 4 or mask.shape[0] != 1:
        raise StudyError(
            f"A mask of shape (1, I, J, K) is needed; {tuple(mask.shape)} was given for map "
            f"{number}."
        )
    found = np.asarray(resample_labels(mask, maps).voxels[0] > 0)
    if not found.any():
        raise StudyError(
            f"The mask of map {number} is empty on the map's grid. Check that both belong to the "
            "same person."
        )
    return found


def _part(values: NDArray[np.float64], part: str) -> NDArray[np.float64]:
    if part == "absolute":
        return np.abs(values)
    return np.asarray((values if part == "positive" else -values).clip(0))
