"""Heads to train on (masked brains) and to test on (whole, moved, with artefacts).

What a test scan has and a training image has not: skull and scalp, a place that is anywhere within
some centimetres, more air in front and behind, and one of four artefacts::

    none    blob (a bright ball in the air or scalp)    stripe (a bright slab through the head)
    ghost (the head again, weaker, half the volume along the phase axis A)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..heads import WIDTH_MM, synthetic_head

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = ["ARTEFACTS", "TISSUES", "Scan", "masked_brain", "whole_head"]

ARTEFACTS = ("none", "blob", "stripe", "ghost")
TISSUES = ("background", "CSF", "grey matter", "white matter")
#: The longest shift along R, A and S in mm; voxels of air before and behind the head.
SHIFT_MM, AIR = (18.0, 22.0, 18.0), 4
_NOISE = 0.03
_DARK = 0.02


@dataclass(frozen=True)
class Scan:
    """A scan and the truth about it, on one grid.

    Attributes
    ----------
    image, tissues, brain : MetaTensor, shape (1, I, J, K)
        Intensities; labels of :data:`TISSUES`; mask of the brain with its CSF.
    artefact : str
    """

    image: MetaTensor
    tissues: MetaTensor
    brain: MetaTensor
    artefact: str


def masked_brain(size: int, seed: int) -> Scan:
    """Return a brain without its head, as the network is trained on; 208 mm wide."""
    from ...image import make_image

    head = synthetic_head(size, seed, noise=_NOISE)
    labels, brain = _truth(head.tissues.as_tensor().numpy())
    affine = head.image.affine
    voxels = np.where(brain, head.image.as_tensor()[0].numpy(), 0.0)
    return Scan(
        make_image(voxels, affine, f"brain {seed}"),
        make_image(labels, affine),
        make_image(brain, affine),
        "none",
    )


def whole_head(size: int, seed: int, artefact: str) -> Scan:
    """Return a whole head, moved, with an artefact.

    Its grid has :data:`AIR` more voxels at each end of A.
    Image and truth are moved by the same interpolation (linear), and noise is added afterwards.
    """
    from scipy.ndimage import shift

    from ...image import make_image

    chance = np.random.default_rng((17, seed))
    head = synthetic_head(size, seed, noise=0.0)
    spacing = WIDTH_MM / size
    voxels = chance.uniform(-1, 1, 3) * SHIFT_MM / spacing
    margin = ((0, 0), (AIR, AIR), (0, 0))

    def moved(volume: NDArray[np.float32], outside: float) -> NDArray[np.float64]:
        padded = np.pad(volume.astype(np.float64), margin, constant_values=outside)
        return np.asarray(shift(padded, voxels, order=1, mode="constant", cval=outside))

    scan = moved(head.image.as_tensor()[0].numpy(), _DARK)
    labels, brain = _truth(np.stack([moved(one, 0.0) for one in head.tissues.as_tensor().numpy()]))
    scan = _spoilt(scan, artefact, spacing, chance)
    scan = scan + _NOISE * chance.normal(size=scan.shape)
    affine = np.asarray(head.image.affine, dtype=np.float64).copy()
    affine[1, 3] -= AIR * spacing
    return Scan(
        make_image(scan, affine, f"head {seed}"),
        make_image(labels, affine),
        make_image(brain, affine),
        artefact,
    )


def _truth(shares: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """What fills most of each voxel, of 1 CSF, 2 grey and 3 white matter; where these are half."""
    rest = 1 - shares.sum(0)
    brain = rest < 0.5
    return np.where(brain, 1 + shares.argmax(0), 0), brain


def _spoilt(
    scan: NDArray[np.float64], artefact: str, spacing: float, chance: np.random.Generator
) -> NDArray[np.float64]:
    """Add an artefact; its place and strength are drawn."""
    place, strength = chance.uniform(0.15, 0.85, 3) * scan.shape, chance.uniform(0.7, 1.3)
    along = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"))
    if artefact == "blob":
        place[2] = chance.choice([0.12, 0.88]) * scan.shape[2]
        away = ((along - place[:, None, None, None]) ** 2).sum(0) * spacing**2
        return np.asarray(scan + 1.6 * strength * np.exp(-away / (2 * 12.0**2)))
    if artefact == "stripe":
        near = np.abs(along[1] - place[1]) * spacing < 6.5
        return np.asarray(scan + 0.35 * strength * near)
    if artefact == "ghost":
        return scan + 0.22 * strength * np.roll(scan, scan.shape[1] // 2, axis=1)
    return scan
