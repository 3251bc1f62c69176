"""Gradient and input x gradient.

Gradient: Simonyan et al. 2013, arXiv:1312.6034, section 3: Out(v) = dS/dx(v). Kept signed; the
paper shows the magnitude, largest over channels. Input x gradient: Shrikumar et al. 2016,
arXiv:1605.01713: (x - x0) dS/dx; the paper has x0 = 0, which after z-scoring is mean tissue, so
other baselines are offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Attribution, Method, method, param
from .baselines import BASELINES, make_baseline

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["Gradient", "InputXGradient"]


@method(
    "gradient",
    unit="score / intensity",
    title="Gradient",
    family="gradient",
    summary="Where would a small change of intensity raise (+) or lower (-) the score?",
    paper="Simonyan et al. 2013, arXiv:1312.6034",
    signed=True,
    weaknesses="noisy; local: silent about large changes; small where the network saturates",
)
@dataclass(frozen=True)
class Gradient(Method):
    """dS/dx, one forward and one backward pass."""

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units per intensity unit of the network's input."""
        return Attribution(engine.gradient())


@method(
    "input_x_gradient",
    title="Input x gradient",
    family="gradient",
    summary="What does each voxel's difference from the baseline add, were the network linear?",
    paper="Shrikumar et al. 2016, arXiv:1605.01713",
    signed=True,
    weaknesses="with z-scored input and a zero baseline, voxels of mean intensity get nothing",
)
@dataclass(frozen=True)
class InputXGradient(Method):
    """(x - x0) * dS/dx, one forward and one backward pass."""

    baseline: str = param(
        "zero", choices=BASELINES[1:], help="what 'nothing' looks like, in the network's input"
    )
    blur_mm: float = param(
        12.0, low=0.5, high=100.0, unit="mm", help="standard deviation of the blurred baseline"
    )

    def attribute(self, engine: Engine) -> Attribution:
        """Map of shape (C, I, J, K) in score units."""
        baseline = make_baseline(self.baseline, engine, self.blur_mm)
        return Attribution((engine.x - baseline)[0] * engine.gradient())
