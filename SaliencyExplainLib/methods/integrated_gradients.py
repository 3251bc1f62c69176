"""Integrated gradients: Sundararajan et al. 2017, arXiv:1703.01365, equation 1.

Out(v) = (x - x0)(v) * integral over a in [0, 1] of dS/dx(x0 + a (x - x0))(v).

Differs from the paper: Gauss-Legendre nodes instead of equal steps (equation 3), one point of the
path in memory at a time, the region of the target frozen on the unperturbed image (else
completeness fails), and the completeness error is always measured: it costs one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import Attribution, Method, method, param
from .baselines import BASELINES, make_baseline, resolve
from .completeness import Completeness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..engine import Engine

__all__ = ["IntegratedGradients", "path_nodes"]

_TOLERATED = 0.05


def path_nodes(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre nodes and weights on [0, 1]; the weights sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


@method(
    "integrated_gradients",
    title="Integrated gradients",
    family="gradient",
    summary="How is the score's change from the baseline to this image shared out over voxels?",
    paper="Sundararajan et al. 2017, arXiv:1703.01365, eq. 1",
    signed=True,
    weaknesses="the baseline is part of the question; look at the completeness error",
)
@dataclass(frozen=True)
class IntegratedGradients(Method):
    """Gradients averaged along the path from a baseline; sums to S(x) - S(baseline)."""

    steps: int = param(
        20, low=2, high=512, help="points on the path from the baseline to the image"
    )
    baseline: str = param(
        "automatic",
        choices=BASELINES,
        help="start of the path; automatic: blurred if the network normalises images, else zero",
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def passes(self) -> int:
        """Steps, one forward sweep for S(x) and one for S(baseline)."""
        return self.steps + 2

    def window_passes(self, *, linear: bool) -> int:
        """No sweep more; where S is not linear, a forward one before each gradient."""
        return self.passes() + (0 if linear else self.steps)

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units."""
        choice = resolve(self.baseline, engine)
        baseline = make_baseline(choice, engine, self.blur_mm)
        change = engine.start_value - engine.value(baseline)
        difference = engine.x - baseline
        total = engine.x.new_zeros(engine.x.shape[1:])
        nodes, weights = path_nodes(self.steps)
        points = (baseline + float(alpha) * difference for alpha in nodes)
        for weight, gradient in zip(weights, engine.gradients(points), strict=True):
            total += float(weight) * gradient
        maps = total * difference[0]
        added = Completeness.of(maps, change)
        advice = (
            "Use more steps, or another baseline (blurred suits networks with instance "
            "normalisation)."
        )
        return Attribution(
            maps,
            completeness_error=added.error,
            warnings=added.warnings(_TOLERATED, advice),
            used={"baseline": choice},
        )
