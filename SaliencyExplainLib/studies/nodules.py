"""Nodules with and without spicules: volumes whose evidence is known and lies outside of the label.

After the data set NoduleSeg (Mullan and Sonka, doi:10.5281/zenodo.7689509; J Med Imaging 10(5):
054001, 2023). A network is to segment the bodies of nodules that carry spicules, and to leave alone
the same bodies without; the spicules are not part of its label. So what it must look at is known::

    0 background                     2 spicules: evidence outside of the label
    1 plain nodule: bait             3 body of a spiculated nodule: the label

A body is a core sphere of radius 30 to 49 and six of 20 to 29, each moved by the mean of both radii
in a random direction; a spicule is a cone on one of the spheres; a nodule's brightness is 0.5 to 1;
fractal noise of 5 periods and 3 octaves, times 0.5, is added and the sum cut to [-1, 1]. The volume
is 384 of these units and 128 mm wide, whatever its voxels, unless another width is asked for.

Differs from NoduleSeg, whose generator needs VTK, ITK and an elastic warp without a seed:

- Bodies and cones are distances from formulas, so that one seed gives the same scene at any size,
  no voxel is interpolated, and a border voxel is about as bright as the part of it that is inside.
- Spicules are 16 to 20 units thick at their foot instead of 4 to 8: a voxel of 64 is 6 units, and
  published spicules would be gone. They are 25 to 49 long instead of 20 to 49, and in return there
  are 24 on the core and 8 on each other sphere, not 60 and 20.
- Spheres and cones point evenly in all directions, so the grid of nodules is not turned; each is
  moved inside its own cell instead, and made smaller where its spicules would leave the cell.
- Noise is interpolated between random values on a lattice (not simplex noise).
- Everything of a nodule is drawn before it is known whether its spicules are painted: neither
  size, shape, place nor brightness tells both kinds apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import ImageError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

__all__ = ["SpiculatedNodules", "spiculated_nodules"]

#: Width of the volume in mm, and units of the published lengths in a mm (384 are 128 mm).
_WIDTH_MM, _UNITS_PER_MM = 128.0, 3.0
#: Least free border of a nodule's cell, in units.
_BORDER = 6.0
#: Two spheres flow into each other over about this length, in units.
_ROUNDING = 3.0
_OCTAVES = (5, 10, 20)


@dataclass(frozen=True)
class SpiculatedNodules:
    """A volume with nodules, and the truth about it.

    Attributes
    ----------
    image : MetaTensor, shape (1, size, size, size)
        Intensities in [-1, 1]; the background has the mean 0.
    erased : MetaTensor, shape (1, size, size, size)
        The same without spicules: same bodies, same noise. Nothing in it is to be segmented.
    labels : MetaTensor, shape (1, size, size, size)
        0 to 3, see :data:`names`.
    seed : int
        What the scene was made from.
    """

    image: MetaTensor
    erased: MetaTensor
    labels: MetaTensor
    seed: int

    #: Labels of the bait, of the evidence outside of the target, and of the target.
    PLAIN: ClassVar[int] = 1
    SPICULES: ClassVar[int] = 2
    TARGET: ClassVar[int] = 3

    @property
    def names(self) -> dict[int, str]:
        """Names of the labels."""
        return {
            self.PLAIN: "plain nodule",
            self.SPICULES: "spicules",
            self.TARGET: "spiculated nodule",
        }

    @property
    def evidence(self) -> MetaTensor:
        """Mask of what a right segmentation needs: spicules and the bodies that carry them."""
        from ..image import make_image

        voxels = self.labels.as_tensor()
        found = (voxels == self.SPICULES) | (voxels == self.TARGET)
        return make_image(found, self.labels.affine)


@dataclass(frozen=True)
class _Nodule:
    """One nodule, in units; the first of the spheres is the core."""

    centre: NDArray[np.float64]
    scale: float
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    cones: NDArray[np.float64]  # (n, 9): foot (3), direction (3), height, radius of the foot, root
    waves: NDArray[np.float64]  # (n, 7): wave vector (3), phase, displacement (3)
    brightness: float


def spiculated_nodules(
    size: int = 64,
    seed: int = 0,
    count: int = 8,
    *,
    share: float = 0.5,
    noise: float = 0.5,
    width_mm: float = _WIDTH_MM,
) -> SpiculatedNodules:
    """Make a volume with nodules, some of them with spicules.

    Parameters
    ----------
    size : int
        Voxels along each axis, 16 or more.
    seed : int
        Seed of all chance, 0 or more. The same seed gives the same scene at every size.
    count : int
        Nodules, at least 1, one in each cell of the smallest cubic grid that has enough cells.
    share : float
        How probably a nodule has spicules, 0 to 1. Above 0, at least one of them has. It changes
        nothing but which spicules are painted.
    noise : float
        Amplitude of the noise, 0 or more.
    width_mm : float
        Width of the volume, 20 or more. Nodules are made smaller where their cell is too narrow for
        them: one alone (``count=1``) has its full size from about 80 mm on.

    Returns
    -------
    SpiculatedNodules
        Image, labels, and the image without spicules.

    Raises
    ------
    ImageError
        If a parameter is out of its range.

    Examples
    --------
    >>> scene = spiculated_nodules(size=32, seed=3)
    >>> tuple(scene.image.shape)
    (1, 32, 32, 32)
    """
    from ..image import make_image

    _check(size, seed, count, share, noise, width_mm)
    units = _UNITS_PER_MM * width_mm
    chances = [np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(count + 2)]
    spiculated = _choice(chances[0], count, share)
    bodies = np.zeros((size, size, size))
    spicules = np.zeros_like(bodies)
    labels = np.zeros(bodies.shape, dtype=np.uint8)
    grid = int(np.ceil(round(count ** (1 / 3), 9)))
    for number in range(count):
        nodule = _draw(chances[number + 2], np.unravel_index(number, (grid,) * 3), grid, units)
        where, body, thorns = _paint(nodule, size, units / size)
        bodies[where] = np.maximum(bodies[where], nodule.brightness * body)
        if spiculated[number]:
            spicules[where] = np.maximum(spicules[where], nodule.brightness * thorns)
            labels[where][thorns >= 0.5] = SpiculatedNodules.SPICULES
        kind = SpiculatedNodules.TARGET if spiculated[number] else SpiculatedNodules.PLAIN
        labels[where][body >= 0.5] = kind
    grain = noise * _fractal_noise(chances[1], size)
    step = width_mm / size
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = (step - width_mm) / 2
    return SpiculatedNodules(
        image=make_image((np.maximum(bodies, spicules) + grain).clip(-1, 1), affine),
        erased=make_image((bodies + grain).clip(-1, 1), affine),
        labels=make_image(labels, affine),
        seed=seed,
    )


def _check(size: int, seed: int, count: int, share: float, noise: float, width_mm: float) -> None:
    rules = (
        ("size", size, size >= 16, "16 or more (voxels along each axis)"),
        ("seed", seed, seed >= 0, "0 or more"),
        ("count", count, count >= 1, "1 or more (nodules)"),
        ("share", share, 0 <= share <= 1, "between 0 and 1 (part of them with spicules)"),
        ("noise", noise, noise >= 0, "0 or more"),
        ("width_mm", width_mm, width_mm >= 20, "20 or more (mm)"),
    )
    for name, value, right, expected in rules:
        if not right:
            raise ImageError(f"{name} of a volume with nodules is {expected}; {value} was given.")


def _choice(chance: np.random.Generator, count: int, share: float) -> NDArray[np.bool_]:
    """Which nodules have spicules: drawn again until one has."""
    while True:
        found: NDArray[np.bool_] = chance.random(count) < share
        if found.any() or share == 0:
            return found


def _directions(chance: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Unit vectors, evenly in all directions, (count, 3)."""
    found = chance.standard_normal((count, 3))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def _draw(
    chance: np.random.Generator,
    cell: tuple[Any, ...],
    grid: int,
    units: float = _UNITS_PER_MM * _WIDTH_MM,
) -> _Nodule:
    """Draw a nodule in a cell of the grid, `units` being the width of the volume."""
    radii = np.append(chance.integers(30, 50, 1), chance.integers(20, 30, 6)).astype(np.float64)
    centres = np.zeros((7, 3))
    centres[1:] = _directions(chance, 6) * ((radii[0] + radii[1:]) / 2)[:, None]
    carrier = np.repeat(np.arange(7), [24, 8, 8, 8, 8, 8, 8])
    heights = chance.uniform(25, 49, carrier.size)
    thick = chance.uniform(8, 10, carrier.size)
    towards = _directions(chance, carrier.size)
    # As published: 5 % of a cone are inside its sphere.
    feet = centres[carrier] + towards * (radii[carrier] - 0.05 * heights)[:, None]
    roots = radii[carrier] / 2  # rounding and warping must not cut a spicule off its body
    cones = np.column_stack([feet, towards, heights, thick, roots])
    waves = np.column_stack(
        [
            _directions(chance, 6) * chance.uniform(0.03, 0.09, (6, 1)),
            chance.uniform(0, 2 * np.pi, 6),
            _directions(chance, 6) * chance.uniform(0, 3, (6, 1)),
        ]
    )
    reach = np.linalg.norm(feet + towards * heights[:, None], axis=1).max()
    reach = max(reach, (np.linalg.norm(centres, axis=1) + radii).max())
    half = units / grid / 2 - _BORDER
    scale = min(1.0, half / reach)
    free = max(0.0, half - reach * scale)
    centre = (np.asarray(cell, dtype=np.float64) + 0.5) * (units / grid)
    return _Nodule(
        centre=centre + chance.uniform(-free, free, 3),
        scale=scale,
        centres=centres,
        radii=radii,
        cones=cones,
        waves=waves,
        brightness=float(chance.uniform(0.5, 1.0)),
    )


def _paint(
    nodule: _Nodule, size: int, voxel: float
) -> tuple[tuple[slice, ...], NDArray[np.float64], NDArray[np.float64]]:
    """How much of each voxel (`voxel` units wide) the body fills, and how much body or spicules do.

    Returns
    -------
    where : tuple of slice
        The part of the volume that the nodule can reach.
    body, spicules : array
        0 to 1.
    """
    reach = nodule.scale * (nodule.cones[:, :3] + nodule.cones[:, 3:6] * nodule.cones[:, 6:7])
    ends = np.concatenate(
        [
            reach,
            nodule.scale * (nodule.centres - nodule.radii[:, None]),
            nodule.scale * (nodule.centres + nodule.radii[:, None]),
        ]
    )
    margin = 10 * nodule.scale + 2 * voxel
    low = np.floor((nodule.centre + ends.min(0) - margin) / voxel).clip(0, size).astype(int)
    high = np.ceil((nodule.centre + ends.max(0) + margin) / voxel).clip(0, size).astype(int)
    where = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    axes = [(np.arange(one.start, one.stop) + 0.5) * voxel for one in where]
    positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    local = (positions - nodule.centre) / nodule.scale
    unit = voxel / nodule.scale  # a voxel in the nodule's own units
    body = (0.5 - _body_distance(nodule, local) / unit).clip(0, 1)
    spicules = np.zeros(body.shape)
    for cone in nodule.cones:
        _add_cone(spicules, cone, local, unit)
    return where, body, spicules


def _body_distance(nodule: _Nodule, local: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the body's surface, negative inside."""
    warped = local.copy()
    for wave in nodule.waves:
        warped += np.sin(local @ wave[:3] + wave[3])[..., None] * wave[4:]
    total = np.zeros(local.shape[:-1])
    for centre, radius in zip(nodule.centres, nodule.radii, strict=True):
        away = np.sqrt(((warped - centre) ** 2).sum(axis=-1)) - radius
        total += np.exp(-away.clip(-100, 100) / _ROUNDING)
    return np.asarray(-_ROUNDING * np.log(total))


def _add_cone(
    filled: NDArray[np.float64],
    cone: NDArray[np.float64],
    local: NDArray[np.float64],
    unit: float,
) -> None:
    """Add a cone, computed only where it can be."""
    foot, towards, (height, radius, root) = cone[:3], cone[3:6], cone[6:]
    ends = np.stack([foot - root * towards, foot + height * towards])
    low, high = ends.min(0) - radius - unit, ends.max(0) + radius + unit
    part = []
    for axis in range(3):
        line = np.moveaxis(local[..., axis], axis, 0)[:, 0, 0]
        first, last = np.searchsorted(line, [low[axis], high[axis]])
        part.append(slice(int(first), int(last)))
    inside = local[tuple(part)] - foot
    along = inside @ towards
    across = np.sqrt(((inside - along[..., None] * towards) ** 2).sum(axis=-1).clip(0))
    thick = radius * (1 - along / height).clip(max=1)
    share = (0.5 + (thick - across) / unit).clip(0, 1) * (along > -root) * (along < height)
    target = filled[tuple(part)]
    np.maximum(target, share, out=target)


def _fractal_noise(chance: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Sum of octaves of a half, a quarter ... of the first's amplitude, (size, size, size)."""
    total = np.zeros((size, size, size))
    for octave, periods in enumerate(_OCTAVES):
        lattice = chance.uniform(-1, 1, (periods + 1,) * 3)
        place = (np.arange(size) + 0.5) * (periods / size)
        left = place.astype(int)
        part = place - left
        part = part**3 * (part * (6 * part - 15) + 10)  # Perlin's curve: no edge at the lattice
        weights = np.zeros((size, periods + 1))
        weights[np.arange(size), left] = 1 - part
        weights[np.arange(size), left + 1] += part
        for _ in range(3):  # each turn interpolates the first axis and puts it last
            lattice = np.tensordot(lattice, weights, axes=(0, 1))
        total += 0.5**octave * lattice
    return total
