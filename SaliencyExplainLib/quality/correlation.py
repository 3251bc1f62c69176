"""Whether a map foretells how the score changes when random parts of the image are hidden.

With s a random set of voxels, x_s the image whose voxels in s are the baseline's, and c(v) what the
map says voxel v adds to the score (the map; a slope times x - x0)::

    faithfulness correlation   Pearson r over sets of ( sum_{v in s} c(v), S(x) - S(x_s) )
    infidelity                 mean over sets of ( sum_{v in s} c(v) - (S(x) - S(x_s)) )^2
    scaled infidelity          the same with b c, b the best factor, over mean (S(x) - S(x_s))^2

Faithfulness correlation: Bhatt et al. 2020, arXiv:2005.00631, definition 3; its interval is
Fisher's, tanh(atanh r +- 1.96 / sqrt(n - 3)). Infidelity: Yeh et al. 2019, arXiv:1901.09392,
definition 2.1, with the perturbation I = x - x_s; scaled as in their appendix, since a map in
arbitrary units is otherwise judged by its scale. Differs from both: the sets are unions of blocks,
because single hidden voxels of a volume are noise that networks hardly see (block_mm = 0 gives
single voxels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MetricError
from ..methods.baselines import BASELINES
from ..volume import spacing_mm
from .base import Measured, Metric, metric, param
from .segments import blocks_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = ["FaithfulnessCorrelation", "Infidelity", "fisher_interval", "infidelities"]


@dataclass(frozen=True)
class _Hiding(Metric):
    """A metric of random sets of hidden voxels; metrics with the same sets share their passes."""

    sets: int = param(50, low=4, high=100000, help="random sets of voxels that are hidden")
    hidden: float = param(
        20.0, low=0.001, high=90.0, unit="%", help="part of the image that a set hides"
    )
    block_mm: float = param(
        8.0, low=0.0, high=500.0, unit="mm", help="edge of the blocks of a set; 0: single voxels"
    )
    baseline: str = param("automatic", choices=BASELINES, help="what is put in the voxels' place")
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of the sets")

    def passes(self) -> int:
        """One a set, and one for the region."""
        return self.sets + 1

    def pairs(self, trial: Trial) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the map foretells for each set, and how the score changes, both of shape (n,)."""
        import torch

        name, baseline = trial.baseline(self.baseline, self.blur_mm)
        key = ("sets", *self.parameters().values(), name)
        if key not in trial.kept:
            trial.progress.expect(self.passes() * trial.windows)
            foretold, changes = [], []
            claimed = trial.contributions(baseline)
            for chosen in self._sets(trial):
                x = trial.engine.x
                hidden = torch.where(torch.from_numpy(chosen).to(x.device), baseline, x)
                changes.append(trial.engine.start_value - trial.value(hidden))
                foretold.append(float(claimed[chosen].sum()))
            trial.kept[key] = (np.array(foretold), np.array(changes))
        found: tuple[NDArray[np.float64], NDArray[np.float64]] = trial.kept[key]
        return found

    def _sets(self, trial: Trial) -> Any:
        """Masks of shape (I, J, K), one a set."""
        shape = trial.network_values.shape
        edges = self.block_mm / spacing_mm(trial.explanation.network_map.affine)
        blocks = blocks_of(shape, edges)
        count = int(blocks.max()) + 1
        size = round(count * self.hidden / 100)
        if not 0 < size < count:
            raise MetricError(
                f"{self.hidden:g} % of {count} blocks of {self.block_mm:g} mm are none or all. "
                "Use smaller blocks or another percentage."
            )
        generator = np.random.default_rng(self.seed)
        for _ in range(self.sets):
            chosen = np.zeros(count, dtype=bool)
            chosen[generator.choice(count, size, replace=False)] = True
            yield chosen[blocks]


@metric(
    "faithfulness_correlation",
    title="Faithfulness correlation",
    family="faithfulness",
    summary="Does the map foretell how much the score falls when random parts are hidden?",
    paper="Bhatt et al. 2020, arXiv:2005.00631, definition 3",
    direction="higher",
    scale="1: exactly, up to scale; 0: not at all; below 0: the other way round",
    needs=("model",),
)
@dataclass(frozen=True)
class FaithfulnessCorrelation(_Hiding):
    """Pearson's r between the map's sum over hidden voxels and the fall of the score."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, -1 to 1, with its interval."""
        foretold, changes = self.pairs(trial)
        if np.ptp(foretold) == 0 or np.ptp(changes) == 0:
            what = "map's sums do" if np.ptp(foretold) == 0 else "score does"
            raise MetricError(
                f"The {what} not differ between the sets, so there is no correlation. Hide larger "
                "parts, or look at another region."
            )
        r = float(np.corrcoef(foretold, changes)[0, 1])
        interval = fisher_interval(r, len(changes))
        reading = (
            f"Over {len(changes)} hidden sets the map's sum and the fall of the score correlate "
            f"with r = {r:.2f} (95 %: {interval[0]:.2f} to {interval[1]:.2f})."
        )
        details = {"foretold": foretold.tolist(), "changes": changes.tolist()}
        return [Measured(r, reading, interval=interval, details=details)]


@metric(
    "infidelity",
    title="Infidelity",
    family="faithfulness",
    summary="By how much does the map miss the score's change when random parts are hidden?",
    paper="Yeh et al. 2019, arXiv:1901.09392, definition 2.1",
    direction="lower",
    scale="0: exact; the scaled one: 0 exact, 1 no better than an empty map",
    unit="score^2",
    needs=("model",),
)
@dataclass(frozen=True)
class Infidelity(_Hiding):
    """Mean squared difference between the map's sum and the fall of the score."""

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return the plain value and the scaled one."""
        foretold, changes = self.pairs(trial)
        plain, scaled = infidelities(foretold, changes)
        rows = [
            Measured(plain, f"The map misses the score's change by {np.sqrt(plain):.3g} (RMS).")
        ]
        if np.isnan(scaled):
            told = "Hiding parts of the image does not change the score."
            return [*rows, Measured(None, told, part="scaled", unit="1")]
        told = (
            f"Scaled as well as it can be, the map leaves {scaled:.1%} of the change unexplained."
        )
        return [*rows, Measured(scaled, told, part="scaled", unit="1")]


def infidelities(
    foretold: NDArray[np.float64], changes: NDArray[np.float64]
) -> tuple[float, float]:
    """Infidelity as it is, and with the best factor over the mean squared change (0 to 1)."""
    plain = float(((foretold - changes) ** 2).mean())
    size, power = float((foretold**2).sum()), float((changes**2).mean())
    factor = float((foretold * changes).sum()) / size if size > 0 else 0.0
    if power == 0:
        return plain, float("nan")
    return plain, float(((factor * foretold - changes) ** 2).mean()) / power


def fisher_interval(r: float, count: int) -> tuple[float, float]:
    """95 percent interval of a correlation of `count` (at least 4) independent pairs."""
    if count < 4:
        return (-1.0, 1.0)
    middle = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    half = 1.959964 / np.sqrt(count - 3)
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))
