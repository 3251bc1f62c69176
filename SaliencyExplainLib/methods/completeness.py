"""Whether a map adds up to the change of the score that it shares out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Completeness"]


@dataclass(frozen=True)
class Completeness:
    """The sum of a map beside the change from the baseline that it should be.

    Attributes
    ----------
    summed : float
        Sum of the map over voxels and channels.
    change : float
        S(x) - S(baseline).
    """

    summed: float
    change: float

    @classmethod
    def of(cls, maps: torch.Tensor, change: float) -> Completeness:
        """Add up a map (C, I, J, K), in double precision on the CPU: not every GPU has it."""
        return cls(float(maps.cpu().double().sum()), change)

    @property
    def error(self) -> float:
        """|sum - change| / |change|; infinite where nothing changed but the map is not zero."""
        if self.change:
            return abs(self.summed - self.change) / abs(self.change)
        return 0.0 if self.summed == 0 else float("inf")

    def warnings(self, tolerated: float, advice: str) -> tuple[str, ...]:
        """Say where the error is larger than tolerated, and what to do."""
        if self.error <= tolerated:
            return ()
        return (
            f"The map sums to {self.summed:.4g} but the score changes by {self.change:.4g} from "
            f"the baseline (completeness error {self.error:.0%}). {advice}",
        )
