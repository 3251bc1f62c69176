"""ROAD in 3D: remove voxels without leaving a visible gap, and watch the score.

Rong et al. 2022, arXiv:2202.00449; the imputation is in :mod:`.imputing`. The highest p percent of
the voxels are removed (most relevant first, MoRF), and, apart from that, the lowest p percent
(least relevant first, LeRF)::

    ROAD = mean over p of ( S_LeRF(p) - S_MoRF(p) ) / 2

Large where the score stands the loss of what the map calls unimportant and falls with what it calls
important. Smoothness alone gives such maps an advantage (arXiv:2304.13836), so the value stands
beside that of a random map as smooth as this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MetricError
from .base import Measured, Metric, metric, param
from .maps import evidence, part_param, ranking, smooth_random, smoothness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trial import Trial

__all__ = ["Road"]


@metric(
    "road",
    title="ROAD",
    family="faithfulness",
    summary="Does the score depend on the highest voxels and not on the lowest, gaps hidden?",
    paper="Rong et al. 2022, arXiv:2202.00449",
    direction="higher",
    scale="in units of the score; 0: order without meaning; compare with the control",
    unit="score",
    needs=("model",),
)
@dataclass(frozen=True)
class Road(Metric):
    """Half the mean difference of scores, least against most relevant first."""

    steps: int = param(5, low=1, high=19, help="percentages, evenly between 0 and 100")
    part: str = part_param()
    control: bool = param(True, help="measure a random map as smooth, too")
    seed: int = param(0, low=0, high=2**31 - 1, help="seed of noise, control and ties")

    def passes(self) -> int:
        """Two a percentage, the same for the control, and one for the region."""
        return 2 * self.steps * (2 if self.control else 1) + 1

    def measure(self, trial: Trial) -> Sequence[Measured]:
        """Return the combined value, MoRF and LeRF, and that of the control."""
        found = evidence(trial.network_values, trial.explanation, self.part)
        if found.size < 2 * (self.steps + 1):
            raise MetricError(f"{found.size} voxels are too few for {self.steps} percentages.")
        trial.progress.expect(self.passes() * trial.windows)
        most, least = self._run(trial, ranking(found, self.seed))
        value = float(np.mean(np.subtract(least, most)) / 2)
        details = {
            "percent": [100.0 * step / (self.steps + 1) for step in range(1, self.steps + 1)],
            "most_relevant_first": most,
            "least_relevant_first": least,
            "start": trial.engine.start_value,
        }
        told = (
            f"Without the highest voxels the score is {np.mean(most):.4g} on average, without the "
            f"lowest {np.mean(least):.4g} (image: {trial.engine.start_value:.4g})"
        )
        if not self.control:
            return [Measured(value, told + ".", details=details)]
        random = smooth_random(found.shape, smoothness(found), self.seed)
        most, least = self._run(trial, ranking(random, self.seed))
        other = float(np.mean(np.subtract(least, most)) / 2)
        verdict = "better than" if value > other else "no better than"
        return [
            Measured(
                value,
                f"{told}; {verdict} a random map as smooth ({value:.4g} against {other:.4g}).",
                details=details,
            ),
            Measured(other, f"A random map as smooth has {other:.4g}.", part="control"),
        ]

    def _run(self, trial: Trial, order: NDArray[np.int64]) -> tuple[list[float], list[float]]:
        """Scores at each percentage, most and least relevant first."""
        import torch

        from .imputing import impute

        x = trial.engine.x
        generator = torch.Generator().manual_seed(self.seed)
        found: tuple[list[float], list[float]] = ([], [])
        for step in range(1, self.steps + 1):
            count = round(order.size * step / (self.steps + 1))
            for scores, places in zip(found, (order[:count], order[-count:]), strict=True):
                removed = torch.zeros(order.size, dtype=torch.bool)
                removed[torch.from_numpy(places.copy())] = True
                gap = removed.view(x.shape[2:]).to(x.device)
                image = impute(x, gap, generator, trial.progress.check)
                scores.append(trial.value(image))
        return found
