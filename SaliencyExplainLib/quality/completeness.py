"""Completeness: whether the parts add up to the score.

    error = | sum_v a(v) - (S(x) - S(x0)) | / | S(x) - S(x0) |

Sundararajan et al. 2017, arXiv:1703.01365, proposition 1. Only maps whose values are parts of the
score are asked. A method that promises completeness has measured it on its own run; its number is
taken as it is. For other methods S(x0) costs one pass, with the baseline that the method used, or
else the one of this metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MetricError
from ..methods.baselines import BASELINES
from ..volume import voxels_of
from .base import Measured, Metric, metric, param

if TYPE_CHECKING:
    from .trial import Trial

__all__ = ["Completeness"]


@metric(
    "completeness",
    title="Completeness error",
    family="axioms",
    summary="Does the map add up to the score's change from the baseline?",
    paper="Sundararajan et al. 2017, arXiv:1703.01365, proposition 1",
    direction="lower",
    scale="0: adds up exactly; 1: off by as much as the whole change",
    needs=("model",),
)
@dataclass(frozen=True)
class Completeness(Metric):
    """Relative difference between the map's sum and the score's change."""

    baseline: str = param(
        "automatic", choices=BASELINES, help="where the method has none of its own"
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def passes(self) -> int:
        """One, for S(x0)."""
        return 1

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return one value, 0 or more."""
        told = trial.explanation
        if told.completeness_error is not None:
            error = float(told.completeness_error)
            return [Measured(error, f"The map misses its sum by {error:.1%} (own run).")]
        if told.unit != "score":
            raise MetricError(
                f"The values of {told.title} are no parts of the score (unit: {told.unit}), so "
                "there is no sum to keep."
            )
        own = told.parameters.get("baseline")
        choice = own if own in BASELINES else self.baseline
        blur_mm = float(told.parameters.get("blur_mm", self.blur_mm))
        name, baseline = trial.baseline(choice, blur_mm)
        trial.progress.expect(trial.windows)
        change = trial.engine.start_value - trial.value(baseline)
        if change == 0:
            raise MetricError(
                f"The {name} baseline has the score of the image itself, so there is nothing to "
                "add up to."
            )
        summed = float(voxels_of(told.network_map).sum(dtype=float))
        error = abs(summed - change) / abs(change)
        reading = (
            f"The map sums to {summed:.4g}; the score changes by {change:.4g} from the {name} "
            f"baseline: {error:.1%} off."
        )
        details = {"sum": summed, "change": change, "baseline": name}
        return [Measured(error, reading, details=details)]
