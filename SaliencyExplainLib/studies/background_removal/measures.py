"""How good a mask is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SCORES", "centre_mm", "mask_scores"]

SCORES = ("accuracy", "precision", "sensitivity", "Dice")


def mask_scores(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Compare two masks over the whole volume.

    Returns
    -------
    dict
        Accuracy, precision (Matos et al. call it specificity), sensitivity and Dice, 0 to 1. With
        nothing found precision is 0; the truth is never empty here.
    """
    hit = int((found & truth).sum())
    return {
        "accuracy": float((found == truth).mean()),
        "precision": hit / max(1, int(found.sum())),
        "sensitivity": hit / max(1, int(truth.sum())),
        "Dice": 2 * hit / max(1, int(found.sum()) + int(truth.sum())),
    }


def centre_mm(mask: Any) -> NDArray[np.float64]:
    """Middle of a mask in RAS, in mm."""
    from ...volume import to_ras, voxels_of

    return to_ras(mask.affine, np.argwhere(voxels_of(mask)[0] > 0).mean(0))
