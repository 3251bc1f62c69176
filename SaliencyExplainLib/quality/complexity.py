"""How spread out a map is. No pass of the network; the map on the network's grid is read.

With a the map and N voxels::

    sparseness             Gini index of |a|: sum_i (2 i - N - 1) |a|_(i) / ( N sum |a| )
    complexity             entropy of |a| / sum |a|, natural logarithm
    effective complexity   number of voxels with |a| > eps max |a|

Sparseness: Chalasani et al. 2020, arXiv:1810.06583. Complexity: Bhatt et al. 2020,
arXiv:2005.00631. Effective complexity: Nguyen and Martinez 2020, arXiv:2007.07584. Differs from
Quantus: nothing is added to |a|, and eps is relative to the maximum. None of them says that a map
is right: a single wrong voxel is the sparsest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..volume import voxel_volume_ml
from .base import Measured, Metric, metric, param

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = ["Complexity", "EffectiveComplexity", "Sparseness", "entropy", "gini"]


def gini(values: NDArray[Any]) -> float:
    """Gini index of magnitudes: 0 where all are equal, (N - 1) / N where one voxel has all."""
    sizes = np.sort(np.abs(np.asarray(values, dtype=np.float64)).ravel())
    count = sizes.size
    weights = 2.0 * np.arange(1, count + 1) - count - 1
    return float((weights * sizes).sum() / (count * sizes.sum()))


def entropy(values: NDArray[Any]) -> float:
    """Entropy of |a| / sum |a| in nats: 0 for one voxel, log N where all are equal."""
    sizes = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    shares = sizes[sizes > 0] / sizes.sum()
    return float(max(0.0, -(shares * np.log(shares)).sum()))


def _magnitudes(trial: Trial) -> NDArray[np.float64]:
    found = np.abs(trial.network_values)
    if not found.any():
        raise MetricError("The map is zero everywhere, so it has no spread.")
    return np.asarray(found)


@metric(
    "sparseness",
    title="Sparseness",
    family="complexity",
    summary="Is the attribution gathered in few voxels?",
    paper="Chalasani et al. 2020, arXiv:1810.06583 (Gini index)",
    direction="higher",
    scale="0: all voxels alike; 1: all in one voxel",
)
@dataclass(frozen=True)
class Sparseness(Metric):
    """Gini index of |a|."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to 1."""
        sizes = _magnitudes(trial)
        found = gini(sizes)
        ordered = np.sort(sizes.ravel())[::-1].cumsum()
        half = int(np.searchsorted(ordered, ordered[-1] / 2)) + 1
        reading = f"Half of all |attribution| lies in {half / sizes.size:.2%} of the voxels."
        return [Measured(found, reading, details={"voxels_with_half": half})]


@metric(
    "complexity",
    title="Complexity",
    family="complexity",
    summary="Over how many voxels is the attribution spread?",
    paper="Bhatt et al. 2020, arXiv:2005.00631",
    direction="lower",
    scale="0: one voxel; log N: all of N voxels alike",
    unit="nat",
)
@dataclass(frozen=True)
class Complexity(Metric):
    """Entropy of the shares of |a|."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 to log N."""
        sizes = _magnitudes(trial)
        found = entropy(sizes)
        count = float(np.exp(found))
        reading = (
            f"As spread out as an even map over {count:.0f} of {sizes.size} voxels "
            f"({count / sizes.size:.1%})."
        )
        return [Measured(found, reading, details={"voxels_as_if": count})]


@metric(
    "effective_complexity",
    title="Effective complexity",
    family="complexity",
    summary="How many voxels carry a visible attribution?",
    paper="Nguyen and Martinez 2020, arXiv:2007.07584",
    direction="lower",
    scale="1 to the number of voxels",
    unit="voxels",
)
@dataclass(frozen=True)
class EffectiveComplexity(Metric):
    """Number of voxels above a part of the maximum."""

    epsilon: float = param(
        0.1, low=0.0, high=0.999, help="limit as a part of the largest |attribution|"
    )

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 1 to N."""
        sizes = _magnitudes(trial)
        count = int((sizes > self.epsilon * sizes.max()).sum())
        ml = count * voxel_volume_ml(trial.explanation.network_map.affine)
        reading = (
            f"{count} of {sizes.size} voxels ({count / sizes.size:.1%}, {ml:.3g} ml) have more "
            f"than {self.epsilon:.0%} of the largest |attribution|."
        )
        return [Measured(float(count), reading, details={"volume_ml": ml})]
