"""Made-up T1-weighted heads: every tissue, structure, volume and lesion in them is known.

A head is a set of formulas in mm: ellipsoids (scalp, skull, brain, ventricles, hippocampi), a
folded border between grey and white matter, and a smooth bending of space that differs from head to
head. One seed gives the same head at any number of voxels, and a voxel on a border holds a part of
both sides, so that volumes are known below the size of a voxel. Borders as thick as a voxel make
small structures larger: a hippocampus by 6 % at 48 voxels a side, by 2 % at 96 (measured)::

    0 background   1 CSF   2 grey matter   3 white matter   4, 5 left and right hippocampus
    6, 7 left and right ventricle   8 lesion   9 skull and scalp

These are no anatomy: folds are waves, and nothing else is inside the brain. They serve where the
truth must be known, which no scan tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import ImageError
from ..volume import voxel_volume_ml

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = ["SyntheticHead", "synthetic_head"]

#: Width of the volume in mm, whatever its voxels.
WIDTH_MM = 208.0
#: Brightness of each label in a T1-weighted scan, white matter 0.8; 9: scalp, the skull is dark.
_BRIGHTNESS = {0: 0.02, 1: 0.22, 2: 0.52, 3: 0.80, 4: 0.56, 5: 0.56, 6: 0.18, 7: 0.18, 8: 0.48}
_SCALP, _SKULL = 0.70, 0.10
_BRAIN_MM = (66.0, 82.0, 62.0)
#: Thickness of CSF around the brain, skull and scalp, in mm.
_CSF_MM, _SKULL_MM, _SCALP_MM = 3.0, 5.0, 6.0
#: Mean depth of the white matter below the brain's surface, in mm.
_CORTEX_MM = 13.0
#: Half axes and places (right one; the left is mirrored) in mm from the brain's centre.
_HIPPOCAMPUS_MM, _HIPPOCAMPUS_AT = (7.5, 18.0, 7.5), (27.0, -14.0, -16.0)
_VENTRICLE_MM, _VENTRICLE_AT = (7.5, 28.0, 10.0), (11.0, 2.0, 12.0)


@dataclass(frozen=True)
class SyntheticHead:
    """A head and the truth about it.

    Attributes
    ----------
    image : MetaTensor, shape (1, size, size, size)
        T1-weighted scan of the whole head, about 0 to 1.
    brain_image : MetaTensor, shape (1, size, size, size)
        The same, zero outside of the brain and its CSF.
    labels : MetaTensor, shape (1, size, size, size)
        The label that fills most of each voxel, see :data:`NAMES`.
    tissues : MetaTensor, shape (3, size, size, size)
        Probabilities of CSF, grey and white matter as a tissue segmentation gives them: a
        hippocampus is grey, a ventricle CSF, and a lesion, which looks like it, mostly grey.
    volumes_ml : mapping of str to float
        Volumes of the structures as they are in the image, by name, in ml.
    seed : int
        What the head was made from.
    """

    image: MetaTensor
    brain_image: MetaTensor
    labels: MetaTensor
    tissues: MetaTensor
    volumes_ml: Mapping[str, float]
    seed: int

    NAMES: ClassVar[dict[int, str]] = {
        1: "CSF",
        2: "grey matter",
        3: "white matter",
        4: "left hippocampus",
        5: "right hippocampus",
        6: "left ventricle",
        7: "right ventricle",
        8: "lesion",
        9: "skull and scalp",
    }

    @property
    def brain(self) -> MetaTensor:
        """Mask of everything inside the skull, shape (1, size, size, size)."""
        from ..image import make_image

        inside = (self.labels.as_tensor() > 0) & (self.labels.as_tensor() < 9)
        return make_image(inside.numpy().astype(np.float32), self.labels.affine)


def synthetic_head(
    size: int = 48,
    seed: int = 0,
    *,
    lesions: int = 0,
    hippocampus_scale: tuple[float, float] | None = None,
    noise: float = 0.03,
) -> SyntheticHead:
    """Make a head.

    Parameters
    ----------
    size : int
        Voxels a side, 16 to 256; the volume is 208 mm wide, its axes are R, A, S.
    seed : int
        The same seed gives the same head, at any size but for the noise.
    lesions : int
        Number of lesions, about 4 to 9 mm in radius; only white matter becomes lesion.
    hippocampus_scale : tuple of float, optional
        Factors for the volumes of the left and right hippocampus, 0.2 to 2; drawn from 0.7 to 1.3
        each when left out.
    noise : float
        Standard deviation, where white matter is 0.8.

    Returns
    -------
    SyntheticHead

    Raises
    ------
    ImageError
        If a parameter is out of range.
    """
    from ..image import make_image

    _check(size, lesions, hippocampus_scale, noise)
    chance = np.random.default_rng((7, seed))
    spacing = WIDTH_MM / size
    where = _positions(size, chance)
    brain = np.array(_BRAIN_MM) * chance.uniform(0.92, 1.06) * chance.uniform(0.97, 1.03, 3)
    drawn = chance.uniform(0.7, 1.3, 2)
    scales = np.asarray(drawn if hippocampus_scale is None else hippocampus_scale, dtype=float)
    ventricles = chance.uniform(0.6, 1.6) * chance.uniform(0.9, 1.1, 2)
    folds = _folds(where, chance)

    def inside(distance_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((0.5 - distance_mm / spacing).clip(0, 1))

    surface = _ellipsoid_mm(where, (0, 0, 0), brain)
    parts = {
        9: inside(surface - _CSF_MM - _SKULL_MM - _SCALP_MM),
        1: inside(surface - _CSF_MM),
        2: inside(surface + (folds - 4).clip(0)),
        3: inside(surface + _CORTEX_MM + folds),
    }
    for label, side, scale in ((4, -1, scales[0]), (5, 1, scales[1])):
        at = np.array(_HIPPOCAMPUS_AT) * (side, 1, 1)
        parts[label] = inside(
            _ellipsoid_mm(where, at, np.array(_HIPPOCAMPUS_MM) * scale ** (1 / 3))
        )
    for label, side, scale in ((6, -1, ventricles[0]), (7, 1, ventricles[1])):
        at = np.array(_VENTRICLE_AT) * (side, 1, 1)
        parts[label] = inside(_ellipsoid_mm(where, at, np.array(_VENTRICLE_MM) * scale ** (1 / 3)))
    parts[8] = _lesions(where, lesions, brain, np.random.default_rng((11, seed)), inside)
    shares = _shares(parts)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -WIDTH_MM / 2 + spacing / 2
    skull = inside(surface - _CSF_MM - _SKULL_MM)
    outer = np.minimum(shares[9], np.maximum(skull - inside(surface - _CSF_MM), 0))
    plain = sum(_BRIGHTNESS[label] * shares[label] for label in _BRIGHTNESS)
    plain = plain + _SCALP * (shares[9] - outer) + _SKULL * outer
    scan = plain * _shading(where, chance)
    scan = scan + noise * np.random.default_rng((13, seed, size)).normal(size=scan.shape)
    within = 1 - shares[0] - shares[9]
    tissues = [
        shares[1] + shares[6] + shares[7] + 0.1 * shares[8],
        shares[2] + shares[4] + shares[5] + 0.7 * shares[8],
        shares[3] + 0.2 * shares[8],
    ]
    labels = np.stack([shares[label] for label in range(10)]).argmax(0)
    millilitres = voxel_volume_ml(affine)
    name = f"head {seed}"
    return SyntheticHead(
        image=make_image(scan, affine, name),
        brain_image=make_image(np.where(within > 0.5, scan, 0.0), affine, name),
        labels=make_image(labels, affine),
        tissues=make_image(np.stack(tissues), affine, name),
        volumes_ml={
            text: float(shares[label].sum()) * millilitres
            for label, text in SyntheticHead.NAMES.items()
        },
        seed=seed,
    )


def _check(size: int, lesions: int, scale: tuple[float, float] | None, noise: float) -> None:
    if not 16 <= size <= 256:
        raise ImageError(f"A head has 16 to 256 voxels a side; {size} was asked for.")
    if lesions < 0 or noise < 0:
        raise ImageError(
            f"The number of lesions and the noise cannot be negative; got {lesions} and {noise}."
        )
    if scale is not None and not (
        len(scale) == 2 and all(np.isfinite(one) and 0.2 <= one <= 2 for one in scale)
    ):
        raise ImageError(
            f"hippocampus_scale is two factors of 0.2 to 2 (left, right); got {scale}."
        )


def _positions(size: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Bent positions in mm from the brain's centre, shape (3, size, size, size)."""
    axis = (np.arange(size) + 0.5) * (WIDTH_MM / size) - WIDTH_MM / 2
    straight = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    bent = straight - chance.uniform(-4, 4, 3)[:, None, None, None]
    for _ in range(4):
        wave = chance.normal(size=3) / 60.0
        phase = np.tensordot(wave, straight, axes=1) + chance.uniform(0, 2 * np.pi)
        bent += chance.uniform(-2, 2, 3)[:, None, None, None] * np.sin(phase)
    return np.asarray(bent)


def _ellipsoid_mm(
    where: NDArray[np.float64],
    at: NDArray[np.float64] | tuple[float, ...],
    half: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Distance in mm to the surface of an ellipsoid to first order, negative inside."""
    away = where - np.asarray(at, dtype=np.float64)[:, None, None, None]
    axes = np.asarray(half, dtype=np.float64)[:, None, None, None]
    one = np.sqrt(((away / axes) ** 2).sum(0))
    two = np.sqrt(((away / axes**2) ** 2).sum(0))
    return np.asarray(one * (one - 1) / np.maximum(two, 1e-6))


def _folds(where: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    """How far the border of the white matter lies behind its mean place, in mm, within 11."""
    total = np.zeros(where.shape[1:])
    for _ in range(6):
        direction = chance.normal(size=3)
        wave = direction / np.linalg.norm(direction) * 2 * np.pi / chance.uniform(16, 30)
        total += np.sin(np.tensordot(wave, where, axes=1) + chance.uniform(0, 2 * np.pi))
    return np.asarray(3.6 * total.clip(-3, 3))


def _lesions(
    where: NDArray[np.float64],
    count: int,
    brain: NDArray[np.float64],
    chance: np.random.Generator,
    inside: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """How much of each voxel lesions fill; they lie in the white matter, off the other parts."""
    filled = np.zeros(where.shape[1:])
    for _ in range(count):
        direction = chance.normal(size=3)
        direction /= np.linalg.norm(direction)
        at = direction * brain * chance.uniform(0.4, 0.7)
        half = chance.uniform(4, 9) * chance.uniform(0.8, 1.2, 3)
        distance = _ellipsoid_mm(where, at, half)
        filled = np.maximum(filled, inside(distance))
    return filled


def _shares(parts: Mapping[int, NDArray[np.float64]]) -> dict[int, NDArray[np.float64]]:
    """What fills each voxel, 0 to 1 a label, 1 in all; an inner part displaces the outer ones.

    A lesion displaces white matter only.
    """
    shape = parts[9].shape
    left = {0: np.ones(shape)}
    for label in (9, 1, 2, 3, 4, 5, 6, 7):
        now = parts[label]
        left = {known: share * (1 - now) for known, share in left.items()}
        left[label] = now
    left[8] = np.minimum(parts[8], left[3])
    left[3] = left[3] - left[8]
    return left


def _shading(where: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    """Slow change of brightness over the head, about 5 percent, as of a receive coil."""
    slope = chance.normal(size=3) * 0.05 / 90.0
    return np.asarray(1 + np.tensordot(slope, where, axes=1))
