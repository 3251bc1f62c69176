"""Heads of patients and healthy people, scanned by two scanners; their tissue probability maps.

A patient is a head with lesions in the white matter, a healthy person one without (see
:mod:`..heads`). Every scan has a brightness of its own. Scanner B is told from scanner A by two
things that have nothing to do with the disease: foam behind and beside the head that shines a
little, and images that are a few percent brighter. The same head can be scanned by both.

The tissue maps are made from the scan, whichever scanner it came from: three normal distributions
fitted to the intensities within the brain by expectation maximisation (Dempster et al. 1977), as
tissue segmentation does; a voxel's probabilities are those of the three distributions given its
intensity, and 0 outside of the brain. No lesion class is among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..heads import WIDTH_MM, SyntheticHead, synthetic_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHANNELS", "REGIONS", "Person", "channels_of", "foam", "person", "tissue_maps"]

CHANNELS = ("CSF", "grey matter", "white matter")
#: Labels of :func:`regions`; 0 is the air, where the foam is.
REGIONS = {1: "lesion", 2: "brain outside lesions", 3: "skull and scalp"}
#: Brightness of the foam where white matter is 0.8, and how much brighter scanner B's images are.
_FOAM, _BRIGHTER = (0.06, 0.12), 1.04
#: Brightness of a scan: any within this factor, on both scanners.
_GAIN = 0.10
#: Half axes in mm of an average head with its scalp; the foam lies at 1.12 to 1.40 of them.
_HEAD_MM, _FOAM_FROM, _FOAM_TO = (79.0, 95.0, 75.0), 1.12, 1.40
#: Foam lies behind this coordinate (A, mm).
_FOAM_BEHIND_MM = -10.0
_BINS, _ROUNDS = 256, 40


@dataclass(frozen=True)
class Person:
    """A head as both scanners see it.

    Attributes
    ----------
    head : SyntheticHead
        The truth.
    patient : bool
    scans : mapping of str to ndarray, shape (1, size, size, size)
        By scanner, "A" and "B".
    maps : mapping of str to ndarray, shape (3, size, size, size)
        Tissue probability maps made from those scans.
    """

    head: SyntheticHead
    patient: bool
    scans: dict[str, NDArray[np.float32]]
    maps: dict[str, NDArray[np.float32]]

    def given(self, what: str, scanner: str) -> NDArray[np.float32]:
        """What a classifier gets, shape (C, size, size, size): "image", "brain" or "maps"."""
        if what == "maps":
            return self.maps[scanner]
        scan = self.scans[scanner]
        return scan if what == "image" else np.where(self.head.brain.numpy() > 0, scan, 0)

    @property
    def regions(self) -> NDArray[np.float32]:
        """Label map, shape (1, size, size, size), see :data:`REGIONS`."""
        labels = self.head.labels.numpy()
        found = np.select([labels == 8, labels == 9, labels > 0], [1.0, 3.0, 2.0])
        return found.astype(np.float32)

    def scanner(self, design: str) -> str:
        """Scanner of this person: "follows" the group (B for patients), "swapped", or "mixed"."""
        if design == "mixed":
            return "AB"[int(np.random.default_rng((19, self.head.seed)).integers(2))]
        return "B" if self.patient == (design == "follows") else "A"


def person(size: int, seed: int, *, patient: bool, lesions: tuple[int, int]) -> Person:
    """Make a person.

    Parameters
    ----------
    size : int
        Voxels a side.
    seed : int
        Of all chance; a seed belongs to one person.
    patient : bool
        Whether there are lesions.
    lesions : tuple of int
        Smallest and largest number of lesions of a patient; some may lie outside of the white
        matter, where they do not show.
    """
    chance = np.random.default_rng((17, seed))
    count = int(chance.integers(lesions[0], lesions[1] + 1))
    head = synthetic_head(size, seed, lesions=count if patient else 0)
    own = chance.uniform(1 - _GAIN, 1 + _GAIN)
    shine = chance.uniform(*_FOAM) * foam(size) * (head.labels.numpy() == 0)
    plain = head.image.numpy()
    scans = {
        "A": (own * plain).astype(np.float32),
        "B": (own * _BRIGHTER * (plain + shine)).astype(np.float32),
    }
    brain = head.brain.numpy() > 0
    maps = {name: tissue_maps(scan, brain) for name, scan in scans.items()}
    return Person(head, patient, scans, maps)


def foam(size: int) -> NDArray[np.float64]:
    """Where the foam of scanner B lies, 0 to 1, shape (size, size, size)."""
    axis = (np.arange(size) + 0.5) * (WIDTH_MM / size) - WIDTH_MM / 2
    right, front, up = np.meshgrid(axis, axis, axis, indexing="ij")
    across, along, above = (
        one / half for one, half in zip((right, front, up), _HEAD_MM, strict=True)
    )
    radius = np.sqrt(across**2 + along**2 + above**2)
    soft = 0.04
    shell = ((radius - _FOAM_FROM) / soft).clip(0, 1) * ((_FOAM_TO - radius) / soft).clip(0, 1)
    behind = ((_FOAM_BEHIND_MM - front) / 10.0).clip(0, 1)
    return np.asarray(shell * behind)


def tissue_maps(scan: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Probabilities of CSF, grey and white matter from a T1-weighted scan and its brain mask.

    Parameters
    ----------
    scan : ndarray, shape (1, I, J, K)
        Any unit of intensity; CSF is darker than grey matter, and that than white matter.
    brain : ndarray of bool, shape (1, I, J, K)
        A whole brain.

    Returns
    -------
    ndarray, shape (3, I, J, K)
        They sum to 1 within the brain and are 0 outside of it.
    """
    inside = scan[brain].astype(np.float64)
    counts, edges = np.histogram(inside, bins=_BINS)
    middle = (edges[1:] + edges[:-1]) / 2
    means = np.quantile(inside, (0.1, 0.45, 0.85))
    deviations = np.full(3, inside.std() / 3)
    weights = np.full(3, 1 / 3)
    for _ in range(_ROUNDS):
        part = _posterior(middle, means, deviations, weights) * counts
        total = part.sum(1)
        weights = total / total.sum()
        means = part @ middle / total
        spread = (part * (middle - means[:, None]) ** 2).sum(1) / total
        # A class narrower than the histogram's bins would take them for itself.
        deviations = np.sqrt(np.maximum(spread, (edges[1] - edges[0]) ** 2))
    order = np.argsort(means)
    found = np.zeros((3, *scan.shape[1:]), dtype=np.float32)
    found[:, brain[0]] = _posterior(inside, means[order], deviations[order], weights[order])
    return found


def channels_of(what: str) -> tuple[str, ...]:
    """Names of the channels of :meth:`Person.given`."""
    return CHANNELS if what == "maps" else ("T1",)


def _posterior(
    values: NDArray[np.float64],
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Probability of each class given the intensity, shape (3, n)."""
    away = (values - means[:, None]) / deviations[:, None]
    # Far outside all classes every density is 0; the largest exponent is taken out first.
    exponent = np.log(weights / deviations)[:, None] - 0.5 * away**2
    density = np.exp(exponent - exponent.max(0))
    return np.asarray(density / density.sum(0))
